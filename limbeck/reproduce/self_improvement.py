"""Self-improvement by own verified answers (ReST-EM, Singh et al. 2023): does the score rise round after round?

A solver learns sums from a few worked ones. In each round it answers further sums several times and goes on with its
distinct right answers, checked by the sum itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.compile.distribution import distinct
from limbeck.engine.loading import load_model
from limbeck.finetune.adapters import detach_lora
from limbeck.finetune.loop import TrainConfig
from limbeck.finetune.rounds import RoundsConfig, run_rounds
from limbeck.finetune.selftrain import Problem, SelfTraining
from limbeck.reproduce.outcome import Arm, Claim, Outcome
from limbeck.reproduce.setting import Setting
from limbeck.reproduce.solver import GREEDY, LARGEST, LEARNING, OPERATIONS, fit, graded, lines, messages, worked
from limbeck.sums import Sum, answer_of, make_sums

START, BEST = "before the rounds", "the best round"
CLAIMS = (Claim(BEST, START, "rounds of own verified answers raise the score above the supervised start"),)


@dataclass(frozen=True)
class Sizes:
    """How many sums are learned from, asked and tested, and how they are made."""

    worked: int
    asked: int
    held_out: int
    tested: int
    rounds: int
    n: int = 4
    operations: int = OPERATIONS


def problems(sums: Sequence[Sum]) -> list[Problem]:
    """Return sums as problems without their answers; the right one is in the inputs for the check alone."""
    return [Problem({"problem": one.problem, "right": one.answer}, messages(one.problem)) for one in sums]


def check(inputs: Mapping[str, Any], answer: str) -> float:
    """Return 1 where a written solution ends in the right answer, else 0."""
    return float(answer_of(lines(answer)) == inputs["right"])


def run(setting: Setting, sizes: Sizes | None = None) -> Outcome:
    """Fit the start, run the rounds, and compare the best of them with the start on new sums."""
    sizes = sizes or setting.pick(Sizes(100, 60, 60, 80, 2), Sizes(120, 200, 150, 250, 4))
    total = sizes.worked + sizes.asked + sizes.held_out + sizes.tested
    sums = make_sums(total, operations=sizes.operations, largest=LARGEST, seed=setting.seed)
    shown, rest = sums[: sizes.worked], sums[sizes.worked :]
    asked, rest = rest[: sizes.asked], rest[sizes.asked :]
    held_out, tested = rest[: sizes.held_out], rest[sizes.held_out :]
    student = load_model(setting.model)
    student = fit(setting, "start", student, worked(student, shown), LEARNING)
    start = graded(student, tested)
    practice = SelfTraining(
        problems(asked),
        problems(held_out),
        check,
        lambda texts: distinct(texts, 4),
        samples=sizes.n,
        most=2,
        max_tokens=96,
        seed=setting.seed,
    )
    rounds = RoundsConfig(most=sizes.rounds, patience=2)
    further = TrainConfig(lr=5e-4, epochs=2, batch_size=16, seed=setting.seed)
    done = run_rounds(
        student,
        practice,
        further,
        rounds,
        progress=lambda one: setting.say(f"round {one.number}: held out {one.score.mean:.3f}"),
    )
    best = graded(done.loaded, tested)
    detach_lora(done.loaded.model)
    kept = [one.rows for one in done.report.rounds[1:]]
    arms = (Arm(START, start), Arm(BEST, best))
    points = [[one.number, *one.score] for one in done.report.rounds]
    return setting.conclude(
        "self-improvement",
        CLAIMS,
        arms,
        unit=GREEDY,
        settings={
            "worked sums": sizes.worked,
            "operations": sizes.operations,
            "asked a round": f"{sizes.asked} x {sizes.n}",
        },
        notes=[
            f"Answers kept a round: {kept}. Best round {done.report.best}, chosen on {sizes.held_out} other sums; "
            f"ended: {done.report.reason}."
        ],
        curves={"held-out sums": points},
    )
