"""Verdicts in, from a file or from rows in memory: all of them checked before any is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args

from limbeck.errors import InputError
from limbeck.inputs import Table, counted, read_table
from limbeck.review.answers import Allowed, allowed_answers
from limbeck.review.batches import check_reviewer
from limbeck.review.decisions import answer_key, latest
from limbeck.review.store import Review, VerdictName, kept_records, open_reviews, read_takes

VERDICTS: tuple[VerdictName, ...] = get_args(VerdictName)
_SHOWN = 60


@dataclass(frozen=True)
class Stored:
    """What became of a file of verdicts: stored, said before by the same reviewer, still blank."""

    stored: int
    unchanged: int
    blank: int


def put_verdicts(
    run_folder: Path | str, verdicts: Path | str | Sequence[Mapping[str, Any]], *, reviewer: str = ""
) -> Stored:
    """Check verdicts and store them in the run's ledger, all of them or none.

    `verdicts` is a JSON Lines file, such as a batch of `take_batch` with its verdicts filled in, or rows: "id",
    "reviewer", "verdict" ("accept", "reject" or "correct") and, to correct, the "outputs" that change, with a
    "rationale" where the row has one. `reviewer` stands in where a row names none. A row without a verdict waits.
    Raises InputError that names the line: no such row, no such verdict or label, a reviewer that is none or another.
    """
    table = _read(verdicts)
    reader = _Reader(run_folder, reviewer.strip())
    found = [reader.review(row, table.where(i)) for i, row in enumerate(table.rows)]
    given = [review for review in found if review is not None]
    if not given:
        raise InputError(
            f"{table.source} holds no verdict: {counted(len(found), 'row')} without one",
            valid=f'"verdict": one of {", ".join(VERDICTS)}',
            hint=f"fill in the verdicts, then: limbeck review put {run_folder} FILE",
        )
    with open_reviews(run_folder, write=True) as store:
        new = _changed(given, latest(store.reviews()))
        store.add_reviews(new)
    return Stored(len(new), len(given) - len(new), len(found) - len(given))


def _changed(given: Sequence[Review], before: Mapping[str, Mapping[str, Review]]) -> list[Review]:
    """Return the reviews that say something else than the same reviewer's last word on the row."""
    said = {(record, who): _content(one) for record, each in before.items() for who, one in each.items()}
    new: list[Review] = []
    for review in given:
        if said.get((review.record, review.reviewer)) != _content(review):
            new.append(review)
        said[review.record, review.reviewer] = _content(review)
    return new


def _content(review: Review) -> tuple[str, ...]:
    return review.verdict, answer_key(review.seen), answer_key(review.outputs), review.rationale


def _read(verdicts: Path | str | Sequence[Mapping[str, Any]]) -> Table:
    if isinstance(verdicts, (str, Path)):
        path = Path(verdicts)
        empty = path.is_file() and not path.stat().st_size
    else:
        empty = not verdicts
    if empty:
        raise InputError(
            f"{verdicts if isinstance(verdicts, (str, Path)) else 'the list'} holds no verdicts",
            valid='one object a line: {"id": "...", "reviewer": "...", "verdict": "accept"}',
            hint="limbeck review take RUN --reviewer NAME",
        )
    return read_table(verdicts)


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return value.strip() if isinstance(value, str) else "" if value is None else str(value)


class _Reader:
    """Turns lines into reviews, by what each reviewer was shown."""

    def __init__(self, run_folder: Path | str, reviewer: str) -> None:
        self.run_folder, self.reviewer = run_folder, reviewer
        self.records = {record.id: record for record in kept_records(run_folder)}
        self.shown = {(take.record, take.reviewer): take.outputs for take in read_takes(run_folder)}

    @cached_property
    def allowed(self) -> Allowed:
        """What corrected outputs may hold; asked for where one is corrected, for it may have to load the task."""
        return allowed_answers(self.run_folder, list(self.records.values()))

    def review(self, row: Mapping[str, Any], place: str) -> Review | None:
        """Return the review of one line, None where its verdict is blank; InputError names the place of a fault."""
        record, who = _text(row, "id"), self._reviewer(row, place)
        seen = self.shown.get((record, who), self.records[record].outputs if record in self.records else None)
        if seen is None:
            raise InputError(
                f"{place}: there is no row {record[:_SHOWN]!r} in this run" if record else f"{place}: no id",
                valid="the id of a kept row, as a batch gives it",
                hint="limbeck review take RUN --reviewer NAME",
            )
        said = _text(row, "verdict").lower()
        if not said:
            return None
        if said == "reject":
            return Review(record, who, "reject", seen)
        line = _Line(place, seen, _outputs(row, place))
        if said == "accept":
            line.check_accepted()
            return Review(record, who, "accept", seen, seen)
        if said != "correct":
            raise InputError(f"{place}: the verdict is {said[:_SHOWN]!r}", valid=", ".join(VERDICTS))
        rationale = self._new_rationale(record, _text(row, "rationale"))
        return Review(record, who, "correct", seen, line.corrected(self.allowed, bool(rationale)), rationale)

    def _reviewer(self, row: Mapping[str, Any], place: str) -> str:
        given = row.get("reviewer")
        who = check_reviewer(self.reviewer if given is None or given == "" else given, place)
        if self.reviewer and who != self.reviewer:
            raise InputError(f"{place}: the reviewer is {who!r}, not {self.reviewer!r}", valid=self.reviewer)
        return who

    def _new_rationale(self, record: str, given: str) -> str:
        """Return a rationale that was changed: the one that led to the wrong answer does not lead to the right one."""
        known = self.records.get(record)
        return "" if known is not None and given == known.rationale.strip() else given


@dataclass(frozen=True)
class _Line:
    """The outputs of one line beside those that the reviewer was shown."""

    place: str
    seen: Mapping[str, Any]
    given: Mapping[str, Any]

    def check_accepted(self) -> None:
        """Raise InputError where other outputs are accepted than were shown."""
        if answer_key({**self.seen, **self.given}) != answer_key(self.seen):
            raise InputError(
                f"{self.place} accepts {_short(self.given)}, but what was shown is {_short(self.seen)}",
                valid='"correct" for changed outputs; "accept" for the outputs as they were shown, or without any',
            )

    def corrected(self, allowed: Allowed, explained: bool) -> dict[str, Any]:
        """Return the outputs with the changed ones checked; InputError where nothing is changed nor `explained`."""
        changed = {k: v for k, v in self.given.items() if not self._stays(k, v)}
        outputs = {**self.seen, **allowed.checked(changed, self.place)}
        if answer_key(outputs) == answer_key(self.seen) and not explained:
            raise InputError(
                f"{self.place} corrects nothing: its outputs are those that were shown, {_short(self.seen)}",
                valid='changed "outputs", or the verdict "accept"',
            )
        return outputs

    def _stays(self, name: str, value: Any) -> bool:
        return name in self.seen and answer_key({name: value}) == answer_key({name: self.seen[name]})


def _outputs(row: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    given = row.get("outputs")
    if given is None or given == "":
        return {}
    if not isinstance(given, Mapping):
        raise InputError(
            f"{place}: the outputs are {str(given)[:_SHOWN]!r}, not an object", valid='as in {"label": "spam"}'
        )
    return cast("Mapping[str, Any]", given)


def _short(outputs: Mapping[str, Any]) -> str:
    text = str(dict(outputs))
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
