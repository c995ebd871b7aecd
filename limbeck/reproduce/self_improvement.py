"""Self-improvement by own verified answers (ReST-EM, Singh et al. 2023): does the score rise round after round?

A solver learns sums from a few worked ones. In each round it answers further sums several times; its distinct right
answers, checked by the sum itself, are what the next round's solver learns from beside the worked ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from limbeck.engine.loading import load_model
from limbeck.finetune.loop import TrainConfig, detach_lora
from limbeck.finetune.rounds import Gathered, RoundsConfig, run_rounds
from limbeck.finetune.rows import TrainRow
from limbeck.reproduce.outcome import Arm, Claim, Outcome, compare
from limbeck.reproduce.setting import Setting
from limbeck.reproduce.solver import Worked, fit, graded, is_right, rows_of, sample, worked
from limbeck.sums import Sum, make_sums

if TYPE_CHECKING:
    from limbeck.engine.loading import LoadedModel

START, BEST = "before the rounds", "the best round"
CLAIMS = (Claim(BEST, START, "rounds of own verified answers raise the score above the supervised start"),)


@dataclass(frozen=True)
class _Sizes:
    worked: int
    asked: int
    held_out: int
    tested: int
    rounds: int
    n: int = 4
    operations: int = 4


@dataclass
class OwnAnswers:
    """Practice on sums: what the student answers rightly, each answer once, with the worked sums."""

    setting: Setting
    asked: Sequence[Sum]
    held_out: Sequence[Sum]
    given: Sequence[TrainRow]
    n: int
    kept: list[int] = field(default_factory=list[int])

    def gather(self, number: int, student: LoadedModel) -> Gathered:
        """Return the round's rows: the worked sums and the student's distinct right answers."""
        drawn = sample(student, self.asked, self.n, seed=1000 * self.setting.seed + number)
        right = [
            Worked(one.problem, steps)
            for one, answers in zip(self.asked, drawn, strict=True)
            for steps in dict.fromkeys(answers)
            if is_right(one, steps)
        ]
        self.kept.append(len(right))
        said = [steps for answers in drawn for steps in answers]
        self.setting.say(f"round {number}: {len(right)} distinct right answers of {len(said)}")
        return Gathered([*self.given, *rows_of(student, right)], len(set(said)) / len(said))

    def measure(self, student: LoadedModel) -> Sequence[float]:
        """Return whether each held-out sum is answered rightly."""
        return graded(student, self.held_out)


def run(setting: Setting) -> Outcome:
    """Fit the start, run the rounds, and compare the best of them with the start on new sums."""
    sizes = setting.pick(_Sizes(50, 60, 60, 80, 2), _Sizes(60, 250, 150, 250, 4))
    total = sizes.worked + sizes.asked + sizes.held_out + sizes.tested
    sums = make_sums(total, operations=sizes.operations, seed=setting.seed)
    shown, rest = sums[: sizes.worked], sums[sizes.worked :]
    asked, rest = rest[: sizes.asked], rest[sizes.asked :]
    held_out, tested = rest[: sizes.held_out], rest[sizes.held_out :]
    config = TrainConfig(lr=1e-3, epochs=4, batch_size=16, seed=setting.seed)
    student = load_model(setting.model)
    given = rows_of(student, worked(shown))
    student = fit(setting, "start", student, given, config)
    start = graded(student, tested)
    practice = OwnAnswers(setting, asked, held_out, given, sizes.n)
    # From the round before: the start is a fitted adapter, not the base.
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
    arms = (Arm(START, start), Arm(BEST, best))
    points = [[one.number, *one.score] for one in done.report.rounds]
    return Outcome(
        "self-improvement",
        "Beyond Human Data, Singh et al. 2023 (arXiv:2312.06585)",
        "share of sums answered rightly, greedy",
        arms,
        compare(CLAIMS, arms, chance=0.0),
        {
            "model": setting.model,
            "seed": setting.seed,
            "worked sums": sizes.worked,
            "operations": sizes.operations,
            "asked a round": f"{sizes.asked} x {sizes.n}",
        },
        (
            f"Kept a round: {practice.kept}. Best round {done.report.best}, chosen on {sizes.held_out} other sums; "
            f"ended: {done.report.reason}.",
        ),
        setting.seconds,
        {"held-out sums": points},
    )
