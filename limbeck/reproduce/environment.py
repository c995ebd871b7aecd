"""Learning from an environment without people: does the return rise round after round?

A student plays countdown, choosing among the legal actions. Steps are credited by a Bellman backup over what was played
(as Q-Transformer does, Chebotar et al. 2023) and trained on by their advantage. New games measure the gain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from limbeck.engine.loading import load_model
from limbeck.engine.torch_engine import TorchEngine
from limbeck.environments.countdown import Countdown
from limbeck.environments.protocol import Observation
from limbeck.environments.rollouts import Student, play
from limbeck.finetune.adapters import detach_lora
from limbeck.finetune.loop import TrainConfig
from limbeck.finetune.practice import Play
from limbeck.finetune.rounds import RoundsConfig, run_rounds
from limbeck.reproduce.outcome import Arm, Claim, Outcome
from limbeck.reproduce.setting import Setting

if TYPE_CHECKING:
    from limbeck.engine.loading import LoadedModel

INSTRUCTIONS = "Combine two of the numbers so that the target can be reached. Say the one step to take next."
START, BEST = "before the rounds", "the best round"
CLAIMS = (Claim(BEST, START, "rounds of play raise the return above the untouched student's"),)
# Seeds that held-out and tested games are taken from: far more than there are of either.
_CHOICE = 100_000


@dataclass(frozen=True)
class Sizes:
    """How many games are played a round, how often each, and how many measure it and the end."""

    episodes: int
    held_out: int
    tested: int
    rounds: int
    attempts: int = 4
    numbers: int = 3


def different(make: partial[Countdown], seeds: Iterable[int], count: int) -> list[int]:
    """Return the first `count` seeds whose games begin differently, or as many as there are."""
    found: dict[str, int] = {}
    for seed in seeds:
        if len(found) == count:
            break
        found.setdefault(make().reset(seed).text, seed)
    return list(found.values())


def returns(model: LoadedModel, make: partial[Countdown], seeds: Sequence[int]) -> tuple[float, ...]:
    """Return what greedy play wins of each game."""
    engine = TorchEngine(model)
    try:
        return tuple(one.won for one in play(make, Student(engine, INSTRUCTIONS), seeds, temperature=0.0))
    finally:
        engine.close()


def run(setting: Setting, sizes: Sizes | None = None) -> Outcome:
    """Play and train in rounds, then compare the best round's student with the untouched one on new games."""
    sizes = sizes or setting.pick(Sizes(60, 60, 100, 2), Sizes(150, 150, 300, 4))
    make = partial(Countdown, numbers=sizes.numbers)
    first = 1_000_000 * (setting.seed + 1)
    games = different(make, range(first, first + _CHOICE), sizes.held_out + sizes.tested)
    held_out, tested = games[: sizes.held_out], games[sizes.held_out :]
    student = load_model(setting.model)
    start = returns(student, make, tested)
    practice = Play(
        make,
        range(first + _CHOICE, first + _CHOICE + 20 * sizes.episodes),
        held_out,
        INSTRUCTIONS,
        tested,
        episodes=sizes.episodes,
        attempts=sizes.attempts,
        memory=2,
        seed=setting.seed,
    )
    done = run_rounds(
        student,
        practice,
        TrainConfig(lr=5e-4, epochs=2, batch_size=16, normalize="labels", seed=setting.seed),
        RoundsConfig(most=sizes.rounds, patience=2),
        progress=lambda one: setting.say(f"round {one.number}: held out {one.score.mean:.3f}, {one.rows} rows"),
    )
    best = returns(done.loaded, make, tested)
    detach_lora(done.loaded.model)
    arms = (Arm(START, start), Arm(BEST, best))
    chance = sum(one.won for one in play(make, _uniform, tested)) / len(tested)
    return setting.conclude(
        "environment",
        CLAIMS,
        arms,
        unit="share of games won, greedy",
        chance=chance,
        settings={
            "game": f"countdown of {sizes.numbers}",
            "games a round": f"{sizes.episodes} x {sizes.attempts}",
        },
        notes=[
            f"Random play wins {chance:.3f}. Best round {done.report.best}, chosen on {len(held_out)} other games; "
            f"ended: {done.report.stop} ({done.report.reason}). No game that was trained on begins as a tested one."
        ],
        curves={"held-out games": [[one.number, *one.score] for one in done.report.rounds]},
    )


def _uniform(observations: Sequence[Observation]) -> list[list[float]]:
    """Return the same log-probability for every action."""
    return [[0.0] * len(one.actions) for one in observations]
