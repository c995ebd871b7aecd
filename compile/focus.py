"""What a student gets wrong chooses what is written next.

A focus is made of out-of-fold predictions on the gold rows: labels that are missed get more new rows, pairs of labels
that are taken for each other stand side by side in the prompt, and rows of open tasks that are answered badly are
shown as demonstrations more often.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from limbeck.records import Record

T = TypeVar("T")
# The share of new rows that is dealt by the errors; the rest keeps the distribution that was asked for.
_BY_ERRORS = 0.5
# A row that is answered right is still drawn, at this weight against 1 for one that is answered wrong.
_LEAST_WEIGHT = 0.2


@dataclass(frozen=True)
class Focus:
    """Where a student is weak; an empty one leaves everything as it is.

    `weak` maps the gold rows' ids to 1 minus their score, `labels` each label to its share of the errors, `confused`
    each label to those it was mistaken for or with, most often first.
    """

    weak: Mapping[str, float] = field(default_factory=dict[str, float])
    labels: Mapping[str, float] = field(default_factory=dict[str, float])
    confused: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def distribution(self, asked: Mapping[str, float]) -> dict[str, float]:
        """Return label shares that sum to 1: half as asked, half by the errors; what is not asked for stays out.

        >>> Focus(labels={"spam": 1.0}).distribution({"spam": 1, "ham": 1})
        {'spam': 0.75, 'ham': 0.25}
        """
        by_errors = {label: self.labels.get(label, 0.0) if share else 0.0 for label, share in asked.items()}
        asked_total, errors = sum(asked.values()), sum(by_errors.values())
        part = _BY_ERRORS if errors else 0.0
        return {
            label: (1 - part) * share / asked_total + part * by_errors[label] / (errors or 1.0)
            for label, share in asked.items()
        }

    def weight(self, record: Record) -> float:
        """Return how likely a gold row is drawn as a demonstration, between 0.2 and 1; 1 without a focus."""
        return max(_LEAST_WEIGHT, self.weak.get(record.id, 1.0 if not self.weak else 0.0))

    def draw(self, rows: Sequence[Record], count: int, rng: random.Random) -> list[Record]:
        """Return `count` different rows, weak ones more likely (Efraimidis and Spirakis 2006)."""
        if not self.weak:
            return rng.sample(list(rows), count)
        return sorted(rows, key=lambda row: math.log(rng.random()) / self.weight(row))[-count:] if count else []

    def others(self, label: str, shuffled: Sequence[str]) -> list[str]:
        """Return labels to show beside one: those it is confused with first, then the others as they come."""
        near = [other for other in self.confused.get(label, ()) if other in shuffled]
        return near + [other for other in shuffled if other not in near]


def focus_of(
    gold: Sequence[Record], scores: Sequence[float], said: Sequence[str] = (), *, label_field: str = ""
) -> Focus:
    """Return the focus of out-of-fold `scores` in [0, 1], row by row of `gold`; `said` are the predicted labels.

    >>> from limbeck.records import Provenance
    >>> rows = [Record({"text": t}, {"label": l}, Provenance("gold")) for t, l in [("x", "a"), ("y", "b")]]
    >>> focus_of(rows, [1.0, 0.0], ["a", "a"], label_field="label").confused
    {'b': ('a',), 'a': ('b',)}
    """
    weak = {row.id: 1.0 - score for row, score in zip(gold, scores, strict=True)}
    pairs: Counter[tuple[str, str]] = Counter()
    missed: Counter[str] = Counter()
    for row, label in zip(gold, said, strict=False):
        true = str(row.outputs.get(label_field))
        if label != true:
            missed[true] += 1
            pairs[true, label] += 1
            pairs[label, true] += 1
    confused: dict[str, list[str]] = {}
    for (label, other), _ in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
        confused.setdefault(label, []).append(other)
    total = sum(missed.values())
    return Focus(
        weak,
        {label: count / total for label, count in missed.items()},
        {label: tuple(others) for label, others in sorted(confused.items(), reverse=True)},
    )
