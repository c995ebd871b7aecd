"""What people say of a run's rows: batches to review, their verdicts, what follows for the records, agreement.

>>> from limbeck.review import put_verdicts, take_batch
>>> batch = take_batch("runs/tickets", 40, reviewer="ada")  # doctest: +SKIP
>>> put_verdicts("runs/tickets", [{"id": batch.rows[0].id, "reviewer": "ada", "verdict": "accept"}])  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.review.answers import Allowed, allowed_answers
    from limbeck.review.batches import Batch, BatchRow, open_batch, take_batch, uncertainty
    from limbeck.review.decisions import Decision, apply_reviews, decide, latest
    from limbeck.review.reliability import Agreement, Coefficient, agreement
    from limbeck.review.status import Status, review_status
    from limbeck.review.store import Review, Take, read_reviews, read_takes
    from limbeck.review.verdicts import Stored, put_verdicts

# What of a batch is drawn at random, and what other reviewers have too.
RANDOM_SHARE, OVERLAP_SHARE = 0.3, 0.2

_HOMES = {
    "Agreement": "reliability",
    "Allowed": "answers",
    "Batch": "batches",
    "BatchRow": "batches",
    "Coefficient": "reliability",
    "Decision": "decisions",
    "Review": "store",
    "Status": "status",
    "Stored": "verdicts",
    "Take": "store",
    "agreement": "reliability",
    "allowed_answers": "answers",
    "apply_reviews": "decisions",
    "decide": "decisions",
    "latest": "decisions",
    "open_batch": "batches",
    "put_verdicts": "verdicts",
    "read_reviews": "store",
    "read_takes": "store",
    "review_status": "status",
    "take_batch": "batches",
    "uncertainty": "batches",
}

__all__ = [
    "OVERLAP_SHARE",
    "RANDOM_SHARE",
    "Agreement",
    "Allowed",
    "Batch",
    "BatchRow",
    "Coefficient",
    "Decision",
    "Review",
    "Status",
    "Stored",
    "Take",
    "agreement",
    "allowed_answers",
    "apply_reviews",
    "decide",
    "latest",
    "open_batch",
    "put_verdicts",
    "read_reviews",
    "read_takes",
    "review_status",
    "take_batch",
    "uncertainty",
]


def __getattr__(name: str) -> Any:
    # Names load on first use: the command line's --help must not wait for numpy.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
