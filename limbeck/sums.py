"""Seeded sums of several steps whose every step can be checked exactly: a small world to try process supervision in."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from limbeck.errors import InputError
from limbeck.records import ENVIRONMENT, Provenance
from limbeck.steps import Solution, rated

METHOD = "sums"
_WORDS = {"+": "Add", "-": "Subtract", "*": "Multiply by"}
_SIGNS = {word: sign for sign, word in _WORDS.items()}
_OPERATION = re.compile(rf"({'|'.join(_SIGNS)}) (\d{{1,9}})\.")
_PROBLEM = re.compile(rf"Start with (\d{{1,9}})\.((?: {_OPERATION.pattern})+) What is the result\?")
_EQUATION = re.compile(
    r"(?:([\d)] ?[-+*x×/=^] ?)|(?<![\d.])(?<!\d,))(-?\d+) ?([-+*x×]) ?(\d+) ?= ?(-?\d+)(?!\d|[.,]\d| ?[-+*x×/=])"
)
_ANSWER = re.compile(r"the answer is:? ?(-?\d+)(?!\d|[.,]\d| ?[-+*x×/=] ?-?[\d(])\.?", re.IGNORECASE)
_MOST_TRIES = 50


@dataclass(frozen=True)
class Sum:
    """A number and the operations on it in order, each a sign ("+", "-", "*") and a number.

    >>> one = Sum(12, (("+", 7), ("*", 3)))
    >>> one.problem
    'Start with 12. Add 7. Multiply by 3. What is the result?'
    >>> one.steps
    ('12 + 7 = 19', '19 * 3 = 57', 'The answer is 57.')
    """

    start: int
    operations: tuple[tuple[str, int], ...]

    @property
    def problem(self) -> str:
        """The sum in words."""
        told = " ".join(f"{_WORDS[sign]} {number}." for sign, number in self.operations)
        return f"Start with {self.start}. {told} What is the result?"

    @cached_property
    def values(self) -> tuple[int, ...]:
        """The start and the result of every operation."""
        values = [self.start]
        for sign, number in self.operations:
            values.append(calculate(values[-1], sign, number))
        return tuple(values)

    @property
    def answer(self) -> int:
        """The result of the last operation."""
        return self.values[-1]

    @property
    def steps(self) -> tuple[str, ...]:
        """The worked solution: an equation for every operation, then the answer."""
        return _written(self.values, self.operations)


def parse_sum(problem: str) -> Sum | None:
    """Return the sum that these words tell as `Sum.problem` does, None where they tell none.

    >>> parse_sum("Start with 12. Add 7. What is the result?")
    Sum(start=12, operations=(('+', 7),))
    """
    told = _PROBLEM.fullmatch(problem.strip())
    if told is None:
        return None
    return Sum(int(told[1]), tuple((_SIGNS[word], int(number)) for word, number in _OPERATION.findall(told[2])))


def calculate(value: int, sign: str, number: int) -> int:
    """Return one operation's result.

    >>> calculate(12, "-", 7)
    5
    """
    return value + number if sign == "+" else value - number if sign == "-" else value * number


def _written(values: Sequence[int], operations: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    equations = [
        f"{value} {sign} {number} = {result}"
        for value, (sign, number), result in zip(values, operations, values[1:], strict=False)
    ]
    return (*equations, f"The answer is {values[-1]}.")


def make_sums(n: int, *, operations: int = 4, largest: int = 999, seed: int = 0) -> list[Sum]:
    """Return `n` different sums of so many operations, the same for the same seed; no value leaves 0 to `largest`.

    Raises InputError where there are not so many.
    """
    if n < 1 or operations < 1 or largest < 1:
        raise InputError(f"{n} sums of {operations} operations up to {largest}", valid="1 or more of each")
    rng, found = random.Random(seed), dict[Sum, None]()
    for _ in range(_MOST_TRIES * n):
        found[_drawn(rng, operations, largest)] = None
        if len(found) == n:
            return list(found)
    raise InputError(
        f"only {len(found)} different sums of {operations} operations up to {largest} were found, not {n}",
        valid="fewer sums, more operations or larger values",
    )


def _drawn(rng: random.Random, operations: int, largest: int) -> Sum:
    value = start = rng.randint(1, min(99, largest))
    drawn: list[tuple[str, int]] = []
    for _ in range(operations):
        most = {"+": min(99, largest - value), "-": min(99, value), "*": min(9, largest // value if value else 9)}
        sign = rng.choice([sign for sign, number in most.items() if number >= (2 if sign == "*" else 1)])
        number = rng.randint(2 if sign == "*" else 1, most[sign])
        drawn.append((sign, number))
        value = calculate(value, sign, number)
    return Sum(start, tuple(drawn))


def flawed(one: Sum, at: int, *, seed: int = 0) -> tuple[str, ...]:
    """Return a solution whose step `at` (from 0) has a wrong result that the later steps go on from, rightly.

    The last step, the answer, may be the wrong one. Raises InputError for a step that there is not.
    """
    if not 0 <= at <= len(one.operations):
        raise InputError(f"step {at} of {len(one.steps)}", valid=f"0 to {len(one.operations)}")
    slip = random.Random(f"{seed} {at} {one.problem}").choice([-10, -3, -2, -1, 1, 2, 3, 10])
    if at == len(one.operations):
        return (*one.steps[:-1], f"The answer is {one.answer + slip}.")
    values = [*one.values[: at + 1], one.values[at + 1] + slip]
    for sign, number in one.operations[at + 1 :]:
        values.append(calculate(values[-1], sign, number))
    return _written(values, one.operations)


def first_wrong_step(one: Sum, steps: Sequence[str]) -> int | None:
    """Return the place of the first wrong step of a written solution, from 0; None where every step is right.

    Step k has to hold the k-th operation as its one equation, words around it do not matter; the one after the last
    operation the answer. What stands after the answer is wrong. A solution that stops early has no wrong step for that.

    >>> one = Sum(12, (("+", 7), ("*", 3)))
    >>> first_wrong_step(one, ["12 + 7 = 19", "19 * 3 = 56", "The answer is 56."])
    1
    """
    return next((place for place, step in enumerate(steps) if not _is_right(one, place, step)), None)


def _is_right(one: Sum, place: int, step: str) -> bool:
    if place >= len(one.operations):
        said = _ANSWER.findall(step)
        return place == len(one.operations) and said == [str(one.answer)]
    found = [match.groups() for match in _EQUATION.finditer(step)]
    # Behind another operation an equation is the end of a longer one.
    if len(found) != 1 or found[0][0]:
        return False
    _, left, sign, right, result = found[0]
    sign = "*" if sign in "x×" else sign
    wanted, value = one.operations[place], one.values[place]
    said, told = (int(left), sign, int(right)), (value, *wanted)
    turned = sign != "-" and said == (wanted[1], wanted[0], value)
    return (said == told or turned) and int(result) == one.values[place + 1]


def answer_of(steps: Sequence[str]) -> int | None:
    """Return the answer that a written solution gives at its end, None where it gives none.

    >>> answer_of(["1 + 1 = 2", "The answer is 2."]), answer_of(["1 + 1 = 2"])
    (2, None)
    """
    said = _ANSWER.findall(steps[-1]) if steps else []
    return int(said[-1]) if said else None


def labelled(one: Sum, steps: Sequence[str]) -> Solution:
    """Return a written solution with the exact labels of its steps up to the first wrong one, and of its answer."""
    said = answer_of(steps)
    return Solution(
        one.problem,
        tuple(steps),
        rated(len(steps), first_wrong_step(one, steps)),
        Provenance(METHOD, level=ENVIRONMENT),
        answer="" if said is None else str(said),
        target=str(one.answer),
        right=said == one.answer,
    )
