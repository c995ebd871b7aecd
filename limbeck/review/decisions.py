"""What follows from verdicts for the records: verified, corrected or rejected.

A reviewer's last verdict on a row counts. More than half of a row's reviewers decide; without such a majority the
row is left out, to be safe, until another reviewer has decided (`take_batch` offers it first).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from limbeck.records import VERIFIED, Record
from limbeck.review.store import Review

REVIEWED, TIED = "reviewed", "review_tie"
# How often a person accepts a wrong answer. Test sets that people labelled hold 3.3% wrong labels on average
# (Northcutt, Athalye and Mueller 2021, arXiv:2103.14749), and an answer that is shown is easy to nod to.
_SLIP = 0.05
_REJECTED = "rejected"


@dataclass(frozen=True)
class Decision:
    """What a row's reviewers say together: `votes` of `reviewers` for these `outputs`, None to leave the row out.

    `tied` where no answer has more than half of them.
    """

    outputs: Mapping[str, Any] | None
    votes: int
    reviewers: int
    rationale: str = ""

    @property
    def tied(self) -> bool:
        """Whether another reviewer is needed."""
        return 2 * self.votes <= self.reviewers


def answer_key(outputs: Mapping[str, Any]) -> str:
    """Return a text that equal answers share: the order of keys, outer blanks and 3 or 3.0 make no difference.

    >>> answer_key({"a": " x ", "b": 3.0}) == answer_key({"b": 3, "a": "x"})
    True
    """
    return json.dumps(_plain(outputs), sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in cast("Sequence[Any]", value)]
    if isinstance(value, str):
        return value.strip()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def review_key(review: Review) -> str:
    """Return what a review says in the end, comparable between reviewers: an answer, or that there is none."""
    return _REJECTED if review.verdict == "reject" else answer_key(review.outputs)


def latest(reviews: Iterable[Review]) -> dict[str, dict[str, Review]]:
    """Return each row's last review by each reviewer, by record and then by reviewer.

    >>> found = latest([Review("r", "ada", verdict, {"y": "a"}) for verdict in ("accept", "reject")])
    >>> found["r"]["ada"].verdict
    'reject'
    """
    found: dict[str, dict[str, Review]] = {}
    for review in reviews:
        found.setdefault(review.record, {})[review.reviewer] = review
    return found


def decide(reviews: Iterable[Review]) -> dict[str, Decision]:
    """Return the decision on every row that was reviewed, by record."""
    return {record: _decision(list(said.values())) for record, said in latest(reviews).items()}


def _decision(said: Sequence[Review]) -> Decision:
    best, votes = Counter(map(review_key, said)).most_common(1)[0]
    winners = [review for review in said if review_key(review) == best]
    outputs = None if best == _REJECTED else winners[-1].outputs
    rationale = next((review.rationale for review in reversed(winners) if review.rationale), "")
    return Decision(outputs, votes, len(said), rationale)


def apply_reviews(records: Iterable[Record], verdicts: Iterable[Review]) -> list[Record]:
    """Return the records in order with what people said of them; ids and parents stay.

    A row that a majority accepts, or corrects, is of level 3 (a lower level stays) and counts in full. Accepted: its
    soft label is sharpened by what a person's nod is worth. Corrected: it has the corrected outputs and neither the
    soft label nor the rationale and trace of the wrong answer. A row that a majority rejects is rejected as
    "reviewed", one without a majority as "review_tie". Rows that were rejected before stay as they are.

    >>> from limbeck.records import Provenance
    >>> row = Record({"x": 1}, {"y": "a"}, Provenance("pool"), soft={"a": 0.6, "b": 0.4})
    >>> done = apply_reviews([row], [Review(row.id, "ada", "correct", {"y": "a"}, {"y": "b"})])[0]
    >>> done.outputs, done.provenance.level, done.soft, done.id == row.id
    ({'y': 'b'}, 3, None, True)
    """
    decisions = decide(verdicts)
    return [_decided(r, decisions[r.id]) if r.kept and r.id in decisions else r for r in records]


def _decided(record: Record, decision: Decision) -> Record:
    scores = {**record.scores, "reviewers": float(decision.reviewers), "review": decision.votes / decision.reviewers}
    if decision.tied:
        return replace(record, scores=scores).reject(TIED)
    if decision.outputs is None:
        return replace(record, scores=scores).reject(REVIEWED)
    origin = replace(record.provenance, level=min(record.provenance.level, VERIFIED))
    # The weight was how far the machine's labels of this class could be trusted.
    verified = replace(record, provenance=origin, scores=scores, weight=max(record.weight, 1.0))
    if answer_key(decision.outputs) == answer_key(record.outputs):
        soft = _sharpened(record, decision.votes)
        accepted = replace(verified, soft=soft, soft_source=record.soft_source if soft else "")
        # Where the rationale alone was wrong, so may be the trace that led through it.
        return replace(accepted, rationale=decision.rationale, calls=()) if decision.rationale else accepted
    return replace(
        verified, outputs=dict(decision.outputs), soft=None, soft_source="", rationale=decision.rationale, calls=()
    )


def _sharpened(record: Record, votes: int) -> Mapping[str, float] | None:
    """Return the soft label after so many people accepted its answer: Bayes' rule, with `_SLIP` for a wrong nod."""
    if record.soft is None or len(record.outputs) != 1:
        return record.soft
    label = str(next(iter(record.outputs.values())))
    if not record.soft.get(label):
        return None  # people accepted what the distribution holds impossible: the label alone is the target
    odds = {name: p * (1.0 if name == label else (_SLIP / (1 - _SLIP)) ** votes) for name, p in record.soft.items()}
    total = sum(odds.values())
    return {name: value / total for name, value in odds.items()}
