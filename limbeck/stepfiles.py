"""Published step labels, read from their files as they are: PRM800K and BIG-Bench Mistake.

PRM800K (Lightman et al. 2023, arXiv:2305.20050): https://github.com/openai/prm800k. BIG-Bench Mistake (Tyen et al.
2023, arXiv:2311.08516) labels the first wrong step of a chain of thought.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from limbeck.answers import same_answer
from limbeck.errors import InputError
from limbeck.records import VERIFIED, Provenance
from limbeck.steps import RIGHT, WRONG, Solution, rated, read_objects

PRM800K, MISTAKE = "prm800k", "bigbench-mistake"
_SHOWN = 60


@dataclass(frozen=True)
class StepFile:
    """What was read of a file: solutions, how many lines it has, and how many of them were left out for what reason."""

    solutions: tuple[Solution, ...]
    lines: int
    left_out: Mapping[str, int]


def read_prm800k(path: Path, *, alternatives: bool = True, strict: bool = True) -> StepFile:
    """Return the solutions of one of PRM800K's files.

    A line is one solution: at every step the chosen completion, or the one a person wrote where none was chosen. At
    the last step nothing may be chosen: the solution ends with the step of `pre_generated_steps`, if there are any.
    With `alternatives` every other rated completion is a solution of its own, the steps before it unrated; behind the
    first error there are none. Steps that were generated and not labelled stand unrated at the end. Lines of quality
    control, of initial screening and of broken problems are left out. Raises InputError that names the line where
    labels do not fit the text; without `strict` such a line is left out as "misaligned".
    """
    found: list[Solution] = []
    left_out: Counter[str] = Counter()
    lines = 0
    for where, row in read_objects(path):
        lines += 1
        try:
            reason = _left_out(row, where)
            found += [] if reason else _Line(row, where).solutions(alternatives)
        except InputError:
            if strict:
                raise
            reason = "misaligned"
        if reason:
            left_out[reason] += 1
    return StepFile(tuple(found), lines, dict(left_out))


def _left_out(row: Mapping[str, Any], where: str) -> str:
    for name in ("quality_control", "initial_screening"):
        if row.get(f"is_{name}_question"):
            return name
    return "bad_problem" if _mapping(row.get("label"), "label", where).get("finish_reason") == "bad_problem" else ""


class _Line:
    """One line of PRM800K: `path` are the steps that the solution took so far, with their ratings."""

    def __init__(self, row: Mapping[str, Any], where: str) -> None:
        self.where = where
        question, label = (_mapping(row.get(name), name, where) for name in ("question", "label"))
        self.problem = _text(question.get("problem"), "question.problem", where)
        self.target = str(question.get("ground_truth_answer") or "")
        self.answer = str(question.get("pre_generated_answer") or "")
        generated = _list(question.get("pre_generated_steps") or [], where)
        self.generated = [_text(step, "a generated step", where) for step in generated]
        self.steps, self.solved = _list(label.get("steps"), where), label.get("finish_reason") == "solution"
        self.origin = Provenance(PRM800K, level=VERIFIED, attributes=str(row.get("labeler") or ""))
        self.path: list[tuple[str, int | None]] = []

    def solutions(self, alternatives: bool) -> list[Solution]:
        """Return the line's solution and, after it, its alternatives."""
        others: list[Solution] = []
        for number, step in enumerate(self.steps):
            place = f"{self.where}, step {number + 1}"
            completions, taken = self._read(step, place, last=number + 1 == len(self.steps))
            if alternatives and all(rating != WRONG for _, rating in self.path):
                others += self._alternatives(completions, taken)
            if taken is not None:
                self.path.append(taken)
        self._check_generated()
        return [*self._main(), *others]

    def _read(self, step: Any, place: str, *, last: bool) -> tuple[list[tuple[str, int | None]], Any]:
        """Return a step's rated completions, and the one that the solution goes on with, None where it ends."""
        step = _mapping(step, "a step", place)
        completions = [_completion(one, place) for one in _list(step.get("completions") or [], place)]
        chosen, human = step.get("chosen_completion"), step.get("human_completion")
        if chosen is not None:
            if isinstance(chosen, bool) or not isinstance(chosen, int) or not 0 <= chosen < len(completions):
                raise InputError(
                    f"{place}: completion {chosen!r} is chosen of {len(completions)}",
                    valid=f"0 to {len(completions) - 1}, or null" if completions else "null",
                )
            return completions, completions[chosen]
        if human:
            return completions, _human(human, place)
        if not last:
            raise InputError(f"{place}: no completion is chosen and yet there are steps after it", valid="an index")
        wanted = self.generated[len(self.path) :][:1]
        return completions, next((one for one in completions if _same([one[0]], wanted)), None)

    def _alternatives(self, completions: Sequence[tuple[str, int | None]], taken: Any) -> Iterator[Solution]:
        before = tuple(text for text, _ in self.path)
        for one in completions:
            if one is not taken and one[1] is not None:
                ratings = (*[None] * len(before), one[1])
                yield Solution(self.problem, (*before, one[0]), ratings, self.origin, target=self.target)

    def _check_generated(self) -> None:
        for number, (text, _) in enumerate(self.path):
            wanted = self.generated[number : number + 1]
            if self.generated and not _same([text], wanted):
                raise InputError(
                    f"{self.where}, step {number + 1} is labelled as {text[:_SHOWN]!r}",
                    valid=f"as generated: {wanted[0][:_SHOWN]!r}" if wanted else f"{len(self.generated)} steps",
                )

    def _main(self) -> Iterator[Solution]:
        texts = (*(text for text, _ in self.path), *self.generated[len(self.path) :])
        ratings = (*(rating for _, rating in self.path), *[None] * (len(texts) - len(self.path)))
        if not any(rating is not None for rating in ratings):
            return
        right = True if self.solved else None
        if self.answer and self.target:
            right = same_answer(self.target, self.answer)
        yield Solution(self.problem, texts, ratings, self.origin, answer=self.answer, target=self.target, right=right)


def _completion(one: Any, place: str) -> tuple[str, int | None]:
    one = _mapping(one, "a completion", place)
    rating = one.get("rating")
    if rating is not None and (isinstance(rating, bool) or rating not in (-1, 0, 1)):
        raise InputError(f"{place}: a completion is rated {rating!r}", valid="-1, 0, 1 or null")
    return _text(one.get("text"), "a completion's text", place), rating


def _human(human: Any, place: str) -> tuple[str, int | None]:
    """Return the step that a person wrote: people write right ones, and do not rate their own."""
    if isinstance(human, str):
        return _text(human, "human_completion", place), RIGHT
    text, rating = _completion(human, place)
    return text, RIGHT if rating is None else rating


def read_bigbench_mistake(path: Path) -> StepFile:
    """Return the chains of a BIG-Bench Mistake file; the answer is compared but for blanks and case.

    Raises InputError that names the line where the mistake is at no step.
    """
    found = [_mistake(row, where) for where, row in read_objects(path)]
    return StepFile(tuple(found), len(found), {})


def _mistake(row: Mapping[str, Any], where: str) -> Solution:
    problem = _text(row.get("input"), "input", where)
    steps = tuple(_text(step, "a step", where) for step in _list(row.get("steps"), where))
    at = row.get("mistake_index")
    if at is not None and (isinstance(at, bool) or not isinstance(at, int)):
        raise InputError(f"{where}: mistake_index is {at!r}", valid="the index of a step, null for none")
    answer, target = (str(row.get(name) or "") for name in ("model_answer", "target"))
    origin = Provenance(MISTAKE, level=VERIFIED, attributes=str(row.get("task") or ""))
    try:
        ratings = rated(len(steps), at)
        right = _same([answer.casefold()], [target.casefold()])
        return Solution(problem, steps, ratings, origin, answer=answer, target=target, right=right)
    except InputError as error:
        raise InputError(f"{where}: {error.message}", valid=error.valid) from error


def _same(left: Sequence[str], right: Sequence[str]) -> bool:
    """Return whether texts are the same but for blanks."""
    return [" ".join(text.split()) for text in left] == [" ".join(text.split()) for text in right]


def _mapping(value: Any, name: str, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: {name} is {str(value)[:_SHOWN]!r}", valid="an object")
    return cast("Mapping[str, Any]", value)


def _list(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise InputError(f"{where}: the steps are {str(value)[:_SHOWN]!r}", valid="a list")
    return cast("Sequence[Any]", value)


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: {name} is {str(value)[:_SHOWN]!r}", valid="a text that is not blank")
    return value
