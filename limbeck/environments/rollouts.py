"""Rollouts: a policy plays seeded episodes, many at once, and what happened is kept as trajectories and records.

Each draw depends on its run, episode and step alone, so that an episode is the same whatever is played beside it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from limbeck.engine.requests import Message, ScoreRequest, Scores
from limbeck.environments.protocol import Environment, Guarded, Observation, Stop
from limbeck.errors import InputError
from limbeck.records import ENVIRONMENT, Provenance, Record


class Policy(Protocol):
    """Says how likely each legal action is."""

    def __call__(self, observations: Sequence[Observation]) -> Sequence[Sequence[float]]:
        """Return the actions' log-probabilities (natural, unnormalised) for every observation, in order."""
        ...


class Scorer(Protocol):
    """Scores closed sets, as `engine.TorchEngine` does."""

    def score_many(self, requests: Sequence[ScoreRequest]) -> Sequence[Scores]:
        """Return the scores of the requests, in order."""
        ...


@dataclass(frozen=True)
class Student:
    """A language model as a policy: the legal actions are the closed set of its answer to the state.

    `instructions` say what the task is, in the system's turn; blank leaves it out.
    """

    scorer: Scorer
    instructions: str = ""

    def __call__(self, observations: Sequence[Observation]) -> Sequence[Sequence[float]]:
        """Return the actions' log-probabilities for every observation."""
        asked = [ScoreRequest(ask(self.instructions, one.text), "", one.actions) for one in observations]
        return [scores.logprobs for scores in self.scorer.score_many(asked)]


def ask(instructions: str, state: str) -> tuple[Message, ...]:
    """Return the messages that ask for an action in a state, the same in play and in training."""
    user = ("user", state)
    return (("system", instructions), user) if instructions else (user,)


@dataclass(frozen=True)
class Decision:
    """One step: the state, its legal actions with the policy's probabilities, the action taken, its reward."""

    state: str
    actions: tuple[str, ...]
    probabilities: tuple[float, ...]
    action: str
    reward: float


@dataclass(frozen=True)
class Trajectory:
    """One episode; `seed` is the environment's, `run` the policy's, `attempt` numbers the plays of one seed.

    A step whose reward cannot be is not among the decisions. `fault` says in words what was wrong where the environment
    did not end the episode itself.
    """

    environment: str
    seed: int
    run: int
    attempt: int
    decisions: tuple[Decision, ...]
    stop: Stop
    fault: str = ""

    @property
    def won(self) -> float:
        """The undiscounted sum of the rewards."""
        return sum(decision.reward for decision in self.decisions)

    def returns(self, discount: float = 1.0) -> tuple[float, ...]:
        """Return what each decision and those after it won, discounted by the steps between."""
        found, after = list[float](), 0.0
        for decision in reversed(self.decisions):
            after = decision.reward + discount * after
            found.append(after)
        return tuple(reversed(found))


@dataclass
class _Episode:
    world: Guarded
    seed: int
    run: int
    attempt: int
    observation: Observation
    decisions: list[Decision] = field(default_factory=list[Decision])

    def advance(self, logprobs: Sequence[float], temperature: float) -> Trajectory | None:
        """Take one step; return the trajectory where it was the last."""
        state = self.observation
        if len(logprobs) != len(state.actions):
            raise InputError(f"the policy gave {len(logprobs)} of {len(state.actions)} actions a log-probability")
        probabilities = tempered(logprobs, temperature)
        draws = random.Random(f"{self.run} {self.seed} {self.attempt} {len(self.decisions)}")
        action = draws.choices(state.actions, probabilities)[0]
        outcome = self.world.step(action)
        if outcome.stop != "bad reward":
            self.decisions.append(Decision(state.text, state.actions, probabilities, action, outcome.reward))
        self.observation = outcome.observation
        if outcome.stop is None:
            return None
        steps = tuple(self.decisions)
        return Trajectory(self.world.name, self.seed, self.run, self.attempt, steps, outcome.stop, outcome.fault)


def tempered(logprobs: Sequence[float], temperature: float) -> tuple[float, ...]:
    """Return softmax(logprobs / temperature); 0 is greedy, the first of the best.

    Raises InputError where no log-probability is finite.

    >>> tempered([0.0, 0.0], 1.0), tempered([-1.0, -2.0], 0.0)
    ((0.5, 0.5), (1.0, 0.0))
    """
    top = max(logprobs)
    if not math.isfinite(top):
        raise InputError(f"the policy's best log-probability is {top}", valid="a finite number")
    if temperature == 0:
        best = logprobs.index(top)
        return tuple(float(place == best) for place in range(len(logprobs)))
    masses = [math.exp((value - top) / temperature) for value in logprobs]
    total = sum(masses)
    return tuple(mass / total for mass in masses)


def play(
    make: Callable[[], Environment],
    policy: Policy,
    seeds: Iterable[int],
    *,
    attempts: int = 1,
    temperature: float = 1.0,
    run: int = 0,
    at_once: int = 64,
) -> list[Trajectory]:
    """Play every environment seed `attempts` times and return the trajectories in order, attempts together.

    `make` gives a fresh environment; each is guarded. `at_once` episodes run side by side, one call of the policy for
    all their next steps. `temperature` 0 is greedy; `run` seeds the
    draws. Raises InputError for impossible numbers.
    """
    if temperature < 0 or attempts < 1 or at_once < 1:
        raise InputError(
            f"temperature={temperature:g}, attempts={attempts}, at_once={at_once}",
            valid="temperature 0 or more, attempts and at_once 1 or more",
        )
    waiting = enumerate((one, attempt) for one in seeds for attempt in range(attempts))
    running: dict[int, _Episode] = {}
    ended: dict[int, Trajectory] = {}
    while True:
        for number, (one, attempt) in islice(waiting, at_once - len(running)):
            world = Guarded(make())
            running[number] = _Episode(world, one, run, attempt, world.reset(one))
        if not running:
            return [ended[number] for number in sorted(ended)]
        scored = policy([episode.observation for episode in running.values()])
        for (number, episode), logprobs in zip(list(running.items()), scored, strict=True):
            trajectory = episode.advance(logprobs, temperature)
            if trajectory is not None:
                ended[number] = trajectory
                del running[number]


def effective_actions(trajectories: Iterable[Trajectory]) -> float:
    """Return how many different actions were taken, as the exponential of their entropy: 1 where all are the same.

    >>> step = lambda action: Decision("s", ("a", "b"), (0.5, 0.5), action, 0.0)
    >>> round(effective_actions([Trajectory("e", 0, 0, 0, (step("a"), step("b")), "done")]), 6)
    2.0
    """
    counts: dict[str, int] = {}
    for trajectory in trajectories:
        for decision in trajectory.decisions:
            counts[decision.action] = counts.get(decision.action, 0) + 1
    total = sum(counts.values())
    return math.exp(-sum(n / total * math.log(n / total) for n in counts.values()))


def trajectory_records(trajectories: Iterable[Trajectory], *, student: str) -> list[Record]:
    """Return one record of level 6 a decision, each the child of the one before it.

    `student` names the model that played. `scores` hold the reward, the return from there on and the probability the
    action had.
    """
    records: list[Record] = []
    for trajectory in trajectories:
        parents: tuple[str, ...] = ()
        steps = zip(trajectory.decisions, trajectory.returns(), strict=True)
        for step, (decision, won) in enumerate(steps):
            place = decision.actions.index(decision.action)
            record = Record(
                inputs={"state": decision.state, "actions": list(decision.actions)},
                outputs={"action": decision.action},
                provenance=Provenance(
                    f"environment: {trajectory.environment}",
                    parents,
                    teacher=student,
                    seed=trajectory.seed,
                    level=ENVIRONMENT,
                    attributes=f"run {trajectory.run}, attempt {trajectory.attempt}, step {step}",
                ),
                scores={"reward": decision.reward, "return": won, "probability": decision.probabilities[place]},
            )
            parents = (record.id,)
            records.append(record)
    return records
