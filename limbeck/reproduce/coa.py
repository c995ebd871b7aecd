"""Chain-of-Abstraction against direct answers and written-out steps (Gao et al. 2024), on sums.

Three students learn the same sums: one gives the answer alone, one works the steps out, one writes the steps with
placeholders for their results, which a calculator fills in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from limbeck.chains import ChainError, parse_chain, run_chain
from limbeck.engine.loading import load_model
from limbeck.finetune.adapters import detach_lora
from limbeck.finetune.rows import tokenize_rows
from limbeck.reproduce.outcome import Arm, Claim, Outcome
from limbeck.reproduce.setting import Setting
from limbeck.reproduce.solver import GREEDY, LARGEST, LEARNING, OPERATIONS, fit, is_right, row_of, sample
from limbeck.sums import Sum, make_sums

DIRECT, STEPS, CHAIN = "direct answer", "worked steps", "chain of abstraction"
CLAIMS = (
    Claim(CHAIN, DIRECT, "a chain that tools fill answers more sums rightly than a direct answer"),
    Claim(CHAIN, STEPS, "a chain that tools fill beats worked steps (about 6 points)", 0.06),
)


@dataclass(frozen=True)
class Sizes:
    """How many sums are learned from and tested, and of how many operations."""

    worked: int
    tested: int
    operations: int = OPERATIONS


def chain_of(one: Sum) -> tuple[str, ...]:
    """Return a sum's solution with placeholders for its results.

    >>> chain_of(Sum(12, (("+", 7), ("*", 3))))
    ('[12 + 7 = y1]', '[y1 * 3 = y2]', 'The answer is y2.')
    """
    names = [str(one.start), *(f"y{place}" for place in range(1, len(one.operations) + 1))]
    steps = [
        f"[{name} {sign} {number} = {result}]"
        for name, (sign, number), result in zip(names, one.operations, names[1:], strict=False)
    ]
    return (*steps, f"The answer is {names[-1]}.")


def filled(one: Sum, steps: Sequence[str]) -> float:
    """Return 1 where a written chain, filled by the calculator, ends in the right answer; 0 also where none can run."""
    try:
        return float(run_chain(parse_chain("\n".join(steps))).answer == one.answer)
    except ChainError:
        return 0.0


def said(one: Sum, steps: Sequence[str]) -> float:
    """Return 1 where a text ends in the right answer."""
    return float(is_right(one, steps))


WAYS: tuple[tuple[str, Callable[[Sum], Sequence[str]], Callable[[Sum, Sequence[str]], float]], ...] = (
    (DIRECT, lambda one: one.steps[-1:], said),
    (STEPS, lambda one: one.steps, said),
    (CHAIN, chain_of, filled),
)


def run(setting: Setting, sizes: Sizes | None = None) -> Outcome:
    """Train a student a way on the same sums and compare them on new ones."""
    sizes = sizes or setting.pick(Sizes(100, 80), Sizes(200, 250))
    sums = make_sums(sizes.worked + sizes.tested, operations=sizes.operations, largest=LARGEST, seed=setting.seed)
    shown, tested = sums[: sizes.worked], sums[sizes.worked :]
    arms: list[Arm] = []
    for name, solution, score in WAYS:
        student = load_model(setting.model)
        rows = tokenize_rows(student.tokenizer, [row_of(one.problem, solution(one)) for one in shown])
        student = fit(setting, name, student, rows, LEARNING)
        written = sample(student, tested, 1, temperature=0.0)
        detach_lora(student.model)
        arms.append(Arm(name, tuple(score(one, steps) for one, (steps,) in zip(tested, written, strict=True))))
    return setting.conclude(
        "coa",
        CLAIMS,
        arms,
        unit=GREEDY,
        settings={"sums": sizes.worked, "operations": sizes.operations},
        notes=["Only the chain's student has a calculator."],
    )
