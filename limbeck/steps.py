"""One solution with what is known of each of its steps, and its JSON Lines form.

Ratings are those of Lightman et al. 2023 (arXiv:2305.20050): -1 wrong, 0 neither wrong nor of use, 1 right. Soft labels
are probabilities that a step is right, such as the shares of Math-Shepherd (Wang et al. 2023, arXiv:2312.08935).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from limbeck.errors import InputError
from limbeck.records import Provenance, stable_hash

WRONG, NEUTRAL, RIGHT = -1, 0, 1
_SHOWN = 60


@dataclass(frozen=True)
class Solution:
    """A problem's solution in steps, each with a rating, None where nothing is known of it.

    `soft` has a probability of being right for every step, None where there is none (empty: none at all). `answer` is
    what the solution comes to, `target` the right answer ("" where unknown) and `right` whether they are the same, None
    where nobody knows. Raises InputError for labels that are not one a step or of another kind.
    """

    problem: str
    steps: tuple[str, ...]
    ratings: tuple[int | None, ...]
    provenance: Provenance
    soft: tuple[float | None, ...] = ()
    answer: str = ""
    target: str = ""
    right: bool | None = None

    def __post_init__(self) -> None:
        empty = next((place for place, step in enumerate(self.steps, 1) if not step.strip()), 0)
        if not self.steps or empty:
            raise InputError(f"step {empty} is empty" if empty else "a solution without steps", valid="texts")
        for name, labels in (("ratings", self.ratings), ("soft labels", self.soft)):
            if len(labels) != len(self.steps) and (labels or name == "ratings"):
                raise InputError(f"{len(labels)} {name} for {len(self.steps)} steps", valid="one a step")
        for rating in self.ratings:
            if rating is not None and (isinstance(rating, bool) or rating not in (WRONG, NEUTRAL, RIGHT)):
                raise InputError(f"a step is rated {rating!r}", valid="-1 wrong, 0 neutral, 1 right, null not rated")
        for share in self.soft:
            if share is not None and not 0 <= share <= 1:
                raise InputError(f"a step's soft label is {share!r}", valid="a probability: 0 to 1")

    @property
    def id(self) -> str:
        """A stable name: a hash of problem and steps, whatever is known of them."""
        return stable_hash([self.problem, *self.steps])

    @property
    def first_error(self) -> int | None:
        """The place of the first step that is rated wrong, from 0; None where none is."""
        return self.ratings.index(WRONG) if WRONG in self.ratings else None

    def targets(self, *, neutral: float | None = 1.0, soft: bool = True) -> tuple[tuple[int, float], ...]:
        """Return (place, probability of being right) of the steps to learn from: up to and including the first error.

        A soft label stands before a rating unless `soft` is False. `neutral` is what a neutral step counts, None to
        leave it out.

        >>> one = Solution("?", ("a", "b", "c", "d"), (1, 0, -1, None), Provenance("prm800k"))
        >>> one.targets(), one.targets(neutral=None)
        (((0, 1.0), (1, 1.0), (2, 0.0)), ((0, 1.0), (2, 0.0)))
        """
        masses = {RIGHT: 1.0, NEUTRAL: neutral, WRONG: 0.0, None: None}
        until = len(self.steps) if self.first_error is None else self.first_error + 1
        given = self.soft if soft and self.soft else (None,) * len(self.steps)
        known = [masses[rating] if share is None else share for rating, share in zip(self.ratings, given, strict=True)]
        return tuple((place, mass) for place, mass in enumerate(known[:until]) if mass is not None)


def rated(steps: int, first_error: int | None) -> tuple[int | None, ...]:
    """Return the ratings of so many steps by the first wrong one: nothing is known of what comes after it.

    >>> rated(4, 1), rated(2, None)
    ((1, -1, None, None), (1, 1))
    """
    if first_error is None:
        return (RIGHT,) * steps
    if not 0 <= first_error < steps:
        raise InputError(f"the first error is step {first_error} of {steps}", valid=f"0 to {steps - 1}, null for none")
    return (*[RIGHT] * first_error, WRONG, *[None] * (steps - first_error - 1))


def read_objects(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the objects of a JSON Lines file with their places, one at a time; InputError names a line that is none."""
    if not path.is_file():
        raise InputError(f"there is no file {path}", valid="a JSON Lines file", hint=f"ls {path.parent}")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{path}, line {number}", _object(line, f"{path}, line {number}")


def _object(line: bytes, where: str) -> Mapping[str, Any]:
    shown = repr(line[:_SHOWN].decode("utf-8", "replace"))
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}; it starts {shown}", valid="one object, in UTF-8") from error
    if not isinstance(found, dict):
        raise InputError(f"{where} is no object: {shown}", valid="one object")
    return cast("Mapping[str, Any]", found)


def write_solutions(solutions: Iterable[Solution], path: Path) -> None:
    """Write solutions as JSON Lines, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"id": one.id, **asdict(one)}, ensure_ascii=False) + "\n" for one in solutions)
    part.write_text("".join(lines), encoding="utf-8", newline="\n")
    part.replace(path)


def read_solutions(path: Path) -> list[Solution]:
    """Return the solutions of a file that `write_solutions` made; raises InputError for a line that is none."""
    return [_solution(row, where) for where, row in read_objects(path)]


def _solution(row: Mapping[str, Any], where: str) -> Solution:
    try:
        values: dict[str, Any] = {name: row[name] for name in Solution.__dataclass_fields__}
        values |= {name: tuple(row[name]) for name in ("steps", "ratings", "soft")}
        origin: dict[str, Any] = dict(row["provenance"])
        origin["parents"] = tuple(origin["parents"])
        values["provenance"] = Provenance(**origin)
        return Solution(**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{where} is no solution: {type(error).__name__}: {error}",
            valid=f"a JSON object with {', '.join(Solution.__dataclass_fields__)}",
        ) from error


def numbered_steps(steps: Sequence[str]) -> str:
    """Return steps as numbered lines, as people and judges read them.

    >>> numbered_steps(["2 + 3 = 5", "5 * 2 = 10"])
    '1. 2 + 3 = 5\\n2. 5 * 2 = 10'
    """
    return "\n".join(f"{place}. {step.strip()}" for place, step in enumerate(steps, 1))
