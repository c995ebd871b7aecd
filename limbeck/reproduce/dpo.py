"""DPO after a supervised fit (Rafailov et al. 2023; SFT then DPO as in Nous-Hermes-2): does the verified score rise?

A solver learns sums from worked ones and answers further sums several times. Of a sum's answers one that is right is
preferred to one that is wrong; the solver goes on with these pairs. Beside it stands the cheaper use of the same
answers: fine-tuning on the right ones alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from limbeck.engine.loading import load_model
from limbeck.errors import StageEmpty
from limbeck.finetune.adapters import detach_lora
from limbeck.finetune.dpo import prefer, preference_rows
from limbeck.finetune.loop import TrainConfig
from limbeck.finetune.objectives import Preference
from limbeck.finetune.rows import PlainRow, tokenize_rows
from limbeck.reproduce.outcome import Arm, Claim, Outcome
from limbeck.reproduce.setting import Setting
from limbeck.reproduce.solver import (
    GREEDY,
    LARGEST,
    LEARNING,
    OPERATIONS,
    fit,
    graded,
    is_right,
    row_of,
    sample,
    worked,
)
from limbeck.sums import Sum, make_sums

SUPERVISED, PREFERRED, REJECTED = "supervised", "supervised, then DPO", "supervised, then its right answers"
CLAIMS = (Claim(PREFERRED, SUPERVISED, "DPO after the supervised fit raises the verified score"),)

_BETA = 0.1


@dataclass(frozen=True)
class Sizes:
    """How many sums are learned from, asked and tested, and how they are made."""

    worked: int
    paired: int
    tested: int
    n: int = 8
    operations: int = OPERATIONS


def pairs_of(one: Sum, drawn: list[tuple[str, ...]], most: int, rng: random.Random) -> list[PlainRow]:
    """Return at most so many pairs of a right and a wrong answer of one sum, no answer twice."""
    answers = [steps for steps in dict.fromkeys(drawn) if steps]
    right = [steps for steps in answers if is_right(one, steps)]
    wrong = [steps for steps in answers if not is_right(one, steps)]
    rng.shuffle(right)
    rng.shuffle(wrong)
    return [row_of(one.problem, a, b) for a, b in list(zip(right, wrong, strict=False))[:most]]


def run(setting: Setting, sizes: Sizes | None = None) -> Outcome:
    """Fit the solver, pair its answers, go on with DPO or with the right answers, and compare on new sums."""
    sizes = sizes or setting.pick(Sizes(120, 60, 80), Sizes(200, 200, 250))
    sums = make_sums(
        sizes.worked + sizes.paired + sizes.tested, operations=sizes.operations, largest=LARGEST, seed=setting.seed
    )
    shown, rest = sums[: sizes.worked], sums[sizes.worked :]
    paired, tested = rest[: sizes.paired], rest[sizes.paired :]
    solver = load_model(setting.model)
    rows = worked(solver, shown)
    solver = fit(setting, "solver", solver, rows, LEARNING)
    before = graded(solver, tested)
    setting.say(f"the solver answers {sizes.n} times each of {len(paired)} sums")
    drawn = sample(solver, paired, sizes.n, seed=setting.seed)
    rng = random.Random(setting.seed)
    pairs = [pair for one, answers in zip(paired, drawn, strict=True) for pair in pairs_of(one, answers, 2, rng)]
    made = preference_rows(solver, pairs)
    if not made.rows:
        raise StageEmpty(
            f"no pair of a right and a wrong answer among {sizes.n} answers to each of {len(paired)} sums",
            hint="a --model that solves some of them",
        )
    setting.say(f"{len(made.rows)} pairs")
    further = TrainConfig(lr=1e-4, epochs=2, batch_size=16, seed=setting.seed)
    after = prefer(solver, made.rows, further, Preference(_BETA)).loaded
    preferred = graded(after, tested)
    detach_lora(after.model)
    again = load_model(setting.model)
    kept = [
        row_of(one.problem, steps)
        for one, answers in zip(paired, drawn, strict=True)
        for steps in [s for s in dict.fromkeys(answers) if is_right(one, s)][:2]
    ]
    again = fit(setting, "right answers", again, [*rows, *tokenize_rows(again.tokenizer, kept)], LEARNING)
    rejected = graded(again, tested)
    detach_lora(again.model)
    arms = (Arm(SUPERVISED, before), Arm(PREFERRED, preferred), Arm(REJECTED, rejected))
    return setting.conclude(
        "dpo",
        CLAIMS,
        arms,
        unit=GREEDY,
        settings={
            "worked sums": sizes.worked,
            "operations": sizes.operations,
            "pairs": len(made.rows),
            "beta": _BETA,
            "right answers": len(kept),
        },
        notes=[f"Left out of the pairs: {dict(made.left_out)}."],
    )
