"""Level 6: a student that plays in an environment and learns from what it won, without people."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from limbeck.engine.seq2seq import engine_of
from limbeck.environments.protocol import Environment
from limbeck.environments.rollouts import Student, Trajectory, effective_actions, play, trajectory_records
from limbeck.errors import InputError
from limbeck.finetune.credit import CreditConfig, advantage_rows, assign_credit, least_return
from limbeck.finetune.rounds import Gathered
from limbeck.finetune.rows import tokenize_rows
from limbeck.records import Record, stable_hash

if TYPE_CHECKING:
    from limbeck.engine.loading import LoadedModel


@dataclass
class Play:
    """What a round plays: `episodes` of the training seeds, drawn anew, `attempts` times each, at a temperature.

    A held-out seed is played greedily and scored by its undiscounted return. `aside` are further seeds that are never
    trained on: those of a later test. Training seeds that begin as a held-out one or one of these does are left out,
    for equal states are equal rows. `memory` is how many earlier rounds' trajectories stay in the log that values come
    from. Train with `normalize="labels"`: the loss is then over the legal actions, as the policy is.

    `trajectories` holds all that was played to learn from, round by round, `records` the same as records of level 6.
    """

    make: Callable[[], Environment]
    train_seeds: Sequence[int]
    held_out: Sequence[int]
    instructions: str = ""
    aside: Sequence[int] = ()
    episodes: int = 64
    attempts: int = 4
    temperature: float = 1.0
    credit: CreditConfig = field(default_factory=CreditConfig)
    memory: int = 0
    seed: int = 0
    trajectories: list[list[Trajectory]] = field(default_factory=list[list[Trajectory]], init=False, repr=False)
    records: list[Record] = field(default_factory=list[Record], init=False, repr=False)

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.memory < 0:
            raise InputError(
                f"episodes={self.episodes}, memory={self.memory}", valid="episodes 1 or more, memory 0 or more"
            )
        unseen = {*self.held_out, *self.aside}
        both = unseen & set(self.train_seeds)
        if both:
            raise InputError(
                f"seed {min(both)} is both trained on and held out", valid="two sets of seeds without overlap"
            )
        self._begun = {self.make().reset(seed).text for seed in unseen}

    def gather(self, number: int, student: LoadedModel) -> Gathered:
        """Play a round, credit it and return the advantage-weighted rows."""
        seeds = self._draw_seeds(number)
        run = int(stable_hash([self.seed, number])[:7], 16)  # a sum would be another seed's other round
        played = self._play(student, seeds, self.temperature, self.attempts, run=run)
        self.trajectories.append(played)
        self.records += trajectory_records(played, student=student.name)
        world = self.make()
        floor = least_return(world.rewards, world.most_steps, self.credit.discount)
        log = [one for kept in self.trajectories[-1 - self.memory :] for one in kept]
        credited = assign_credit(log, self.credit, floor=floor)
        rows = tokenize_rows(student.tokenizer, advantage_rows(credited, self.instructions), closed=True)
        counts = {
            "episodes": len(played),
            "won": sum(one.won for one in played) / max(1, len(played)),
            "faults": sum(bool(one.fault) for one in played),
            "states": len(credited),
        }
        return Gathered(rows, effective_actions(played), counts)

    def measure(self, student: LoadedModel) -> list[float]:
        """Return the return of every held-out seed, played greedily."""
        return [one.won for one in self._play(student, self.held_out, 0.0, 1, run=self.seed)]

    def _draw_seeds(self, number: int) -> list[int]:
        order = random.Random(f"{self.seed} {number}").sample(list(self.train_seeds), len(self.train_seeds))
        found: list[int] = []
        for seed in order:
            if len(found) == self.episodes:
                break
            if self.make().reset(seed).text not in self._begun:
                found.append(seed)
        return found

    def _play(
        self, student: LoadedModel, seeds: Sequence[int], temperature: float, attempts: int, run: int
    ) -> list[Trajectory]:
        engine = engine_of(student)
        try:
            policy = Student(engine, self.instructions)
            return play(self.make, policy, seeds, attempts=attempts, temperature=temperature, run=run)
        finally:
            engine.close()
