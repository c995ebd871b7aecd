"""Which rows people are asked about: the most uncertain ones, and a random part that error rates come from.

Uncertainty sampling follows Lewis and Gale 1994 (margin and entropy as in Settles 2009). The rows it finds are harder
than most, so an error rate taken from them would be too high. The random part is a simple random sample of all kept
rows over all batches: the next rows of a random order, whatever has become of them. One that somebody has judged
already, say because it was uncertain, counts into the sample without being shown again; left out, the sample would
lack hard rows and flatter the labels.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from limbeck.errors import InputError
from limbeck.records import MANUAL, VERIFIED, Record
from limbeck.review import OVERLAP_SHARE, RANDOM_SHARE
from limbeck.review.decisions import decide
from limbeck.review.store import Part, Review, Take, kept_records, open_reviews

Measure = Literal["margin", "entropy"]
_LONGEST_NAME = 100


@dataclass(frozen=True)
class BatchRow:
    """One row to judge. `part` says why it is here; whoever judges had better not know."""

    id: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    rationale: str
    part: Part


@dataclass(frozen=True)
class Batch:
    """Rows for one reviewer, in a random order."""

    reviewer: str
    rows: tuple[BatchRow, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many rows are here for which reason."""
        return dict(sorted(Counter(str(row.part) for row in self.rows).items()))

    def lines(self) -> str:
        """Return the batch as JSON Lines, each with an empty `verdict` to fill in; `put_verdicts` reads them back."""
        return "".join(json.dumps(self._line(row), ensure_ascii=False, default=str) + "\n" for row in self.rows)

    def _line(self, row: BatchRow) -> dict[str, Any]:
        line = {"id": row.id, "reviewer": self.reviewer, "verdict": "", "inputs": row.inputs, "outputs": row.outputs}
        return {**line, "rationale": row.rationale} if row.rationale else line


def uncertainty(record: Record, by: Measure = "margin") -> float:
    """Return how doubtful a row's answer is, 0 certain to 1.

    From the soft label: 1 less the gap of the two best labels, or the entropy as a share of its maximum. Without one,
    1 less the samples' agreement, else 1 less the confidence; 1 where nothing speaks for the answer.

    >>> from limbeck.records import Provenance
    >>> row = Record({"x": 1}, {"y": "a"}, Provenance("pool"), soft={"a": 0.75, "b": 0.25})
    >>> uncertainty(row), round(uncertainty(row, "entropy"), 2)
    (0.5, 0.81)
    """
    if record.soft:
        values = sorted(record.soft.values(), reverse=True)
        if len(values) == 1:
            return 0.0
        if by == "margin":
            return 1.0 - (values[0] - values[1])
        return -sum(p * math.log(p) for p in values if p > 0) / math.log(len(values))
    for name in ("agreement", "confidence"):
        if name in record.scores:
            return 1.0 - record.scores[name]
    return 1.0


def take_batch(
    run_folder: Path | str,
    n: int,
    *,
    reviewer: str,
    random_share: float = RANDOM_SHARE,
    overlap_share: float = OVERLAP_SHARE,
    by: Measure = "margin",
    seed: int = 0,
) -> Batch:
    """Return up to `n` rows for a reviewer, none of which they had before, and remember in the ledger who has them.

    `random_share` of them are drawn at random, `overlap_share` are rows that other reviewers have, for agreement;
    first come rows that reviewers disagree on. The rest, and what the other parts do not fill, are the most uncertain
    rows that nobody has; where there are none left, rows of others. Labels that people wrote or have verified before
    curation are not reviewed. Raises InputError for a number or share out of range, a blank reviewer, a folder without
    curated rows.
    """
    reviewer = check_reviewer(reviewer, "--reviewer")
    _check_numbers(n, random_share, overlap_share, by)
    records = kept_records(run_folder)
    with open_reviews(run_folder, write=True) as store:
        drawing = Drawing(records, store.takes(), store.reviews(), reviewer, by, seed)
        takes = drawing.draw(n, round(random_share * n), round(overlap_share * n))
        store.add_takes(takes)
    return _batch(records, reviewer, [take for take in takes if take.shown], seed)


def open_batch(run_folder: Path | str, *, reviewer: str, seed: int = 0) -> Batch:
    """Return the rows that a reviewer was given and has not judged: for a batch that was lost or left half done."""
    reviewer = check_reviewer(reviewer, "--reviewer")
    records = kept_records(run_folder)
    with open_reviews(run_folder) as store:
        judged = {review.record for review in store.reviews() if review.reviewer == reviewer}
        takes = {take.record: take for take in store.takes() if take.shown and take.reviewer == reviewer}
    return _batch(records, reviewer, [t for t in takes.values() if t.record not in judged], seed)


def _batch(records: Sequence[Record], reviewer: str, takes: Iterable[Take], seed: int) -> Batch:
    known = {record.id: record for record in records}
    rows = [
        BatchRow(take.record, known[take.record].inputs, take.outputs, known[take.record].rationale, take.part)
        for take in takes
        if take.record in known
    ]
    # The order must not tell the parts apart, nor put all the hard rows where people are tired.
    rows.sort(key=lambda row: _order(seed, reviewer, row.id))
    return Batch(reviewer, tuple(rows))


def reviewable(records: Iterable[Record]) -> dict[str, Record]:
    """Return the rows that people may be asked about, by id: kept, and not yet written or verified by people."""
    return {r.id: r for r in records if r.kept and r.provenance.level not in (MANUAL, VERIFIED)}


class Drawing:
    """One draw of rows for one reviewer, from what was given and said before."""

    def __init__(
        self,
        records: Iterable[Record],
        takes: Sequence[Take],
        reviews: Sequence[Review],
        reviewer: str,
        by: Measure,
        seed: int,
    ) -> None:
        self.rows, self.reviewer = reviewable(records), reviewer
        shown = [take for take in takes if take.shown]
        self.judged = {review.record for review in reviews}
        self.mine = {one.record for one in (*shown, *reviews) if one.reviewer == reviewer}
        self.others = {one.record for one in (*shown, *reviews) if one.reviewer != reviewer}
        self.sampled = {take.record for take in takes if take.part == "random"}
        self.tied = {record for record, decision in decide(reviews).items() if decision.tied}
        self.random = sorted(self.rows, key=lambda record: _order(seed, record))
        self.doubtful = sorted(self.random, key=lambda record: -uncertainty(self.rows[record], by))
        self.takes: dict[str, Take] = {}

    def draw(self, n: int, n_random: int, n_shared: int) -> list[Take]:
        """Return the takes of one batch: at most `n` that are shown, and random ones that need no second look."""
        for record in [r for r in self.random if r not in self.sampled][:n_random]:
            self._take(record, "random", shown=record not in self.mine and record not in self.judged)
        self._fill(self.random, "shared", self.tied.__contains__, n)
        shared = sum(take.part == "shared" for take in self.takes.values())
        self._fill(self.random, "shared", self.others.__contains__, min(n, self._shown() + n_shared - shared))
        self._fill(self.doubtful, "uncertain", lambda record: record not in self.others, n)
        self._fill(self.doubtful, "shared", self.others.__contains__, n)
        return list(self.takes.values())

    def _fill(self, order: Sequence[str], part: Part, wanted: Callable[[str], bool], until: int) -> None:
        """Take wanted rows in this order until so many are shown."""
        left, had = until - self._shown(), self.mine | {take.record for take in self.takes.values() if take.shown}
        free = [r for r in order if wanted(r) and r not in had]
        for record in free[: max(0, left)]:
            # What was drawn at random and needed no second look stays a part of the random sample.
            self._take(record, self.takes[record].part if record in self.takes else part)

    def _take(self, record: str, part: Part, *, shown: bool = True) -> None:
        self.takes[record] = Take(record, self.reviewer, part, self.rows[record].outputs, shown)

    def _shown(self) -> int:
        return sum(take.shown for take in self.takes.values())


def check_reviewer(name: Any, place: str) -> str:
    """Return a reviewer's name without outer blanks; InputError where it is none."""
    text = name.strip() if isinstance(name, str) else ""
    if not text or len(text) > _LONGEST_NAME or not text.isprintable():
        raise InputError(
            f"{place}: the reviewer is {str(name)[:_LONGEST_NAME]!r}",
            valid=f"a name of at most {_LONGEST_NAME} characters on one line",
            hint="give every person a name of their own, always the same",
        )
    return text


def _check_numbers(n: int, random_share: float, overlap_share: float, by: str) -> None:
    if n < 1:
        raise InputError(f"a batch of {n} rows", valid="1 row or more")
    for name, share in (("random", random_share), ("overlap", overlap_share)):
        if not 0 <= share <= 1:
            raise InputError(f"the {name} share is {share}", valid="0 to 1")
    if random_share + overlap_share > 1:
        raise InputError(
            f"the random share {random_share} and the overlap share {overlap_share} are more than a whole batch",
            valid="together 1 at most",
        )
    if by not in ("margin", "entropy"):
        raise InputError(f"there is no measure {by!r} of uncertainty", valid="margin, entropy")


def _order(*parts: Any) -> bytes:
    return hashlib.sha256(json.dumps(parts).encode("ascii")).digest()
