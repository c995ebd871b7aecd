"""Demonstrations for small teachers: class-balanced, interleaved and drawn anew per block.

A small model copies the label it saw last or most, so every class appears equally often and no label stands
twice in a row while another is left. A block is the fold whose gold rows a prompt does not show:
demonstrations change with the block and not with the call, so that the prompt's prefix stays in the
engine's cache and yet every gold row is answered by a prompt that never showed it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, cast

import dspy

from limbeck.errors import InputError

# How much a row's length counts against the random draw: the longest row of a class keeps a fair chance.
_SHORT_ROW_PREFERENCE = 0.5
# A row this many times longer than the median would crowd the others out of a small context.
_TOO_LONG = 4.0


def row_length(example: dspy.Example) -> int:
    """Return the characters of an example's inputs.

    >>> row_length(dspy.Example(text="four", label="x").with_inputs("text"))
    4
    """
    return sum(len(str(value)) for value in cast(Any, example.inputs()).values())


def draw_demos(
    gold: Sequence[dspy.Example],
    k: int,
    seed: int,
    *,
    exclude_fold: int | None = None,
    folds: Sequence[int] | None = None,
    labels: Sequence[str] = (),
    output: str = "",
) -> list[dspy.Example]:
    """Return at most `k` demonstrations out of `gold`, the same for the same seed.

    With `labels` and the name of the `output` field the draw is class-balanced (counts differ by one at
    most while rows last) and interleaved; without them every row is of one class. Short rows are preferred
    a little. With `exclude_fold`, rows of that fold are never shown; `folds` names each gold row's fold and
    a length that differs from `gold` raises InputError.
    """
    if exclude_fold is not None:
        if folds is None or len(folds) != len(gold):
            found = "none" if folds is None else str(len(folds))
            raise InputError(f"folds of {found} rows for {len(gold)} gold rows", valid="one fold a gold row")
        gold = [row for row, fold in zip(gold, folds, strict=True) if fold != exclude_fold]
    rng = random.Random(f"{seed}:{exclude_fold}")
    classes = _by_class(gold, labels, output)
    queues = {label: _preferred(rows, rng, _median_length(gold)) for label, rows in classes.items()}
    return _interleave(queues, min(k, len(gold)), rng)


def with_demos(program: dspy.Module, demos: Sequence[dspy.Example]) -> dspy.Module:
    """Return a copy of the program whose predictors show the demonstrations.

    A predictor gets the demonstrations that hold an input and an output of its own; fields that its
    signature does not name (a prediction's probabilities) are left out, so that the copy can be saved as
    JSON.
    """
    copy = program.deepcopy()
    for predictor in cast(list[Any], copy.predictors()):
        fitted = [fit_demo(demo, predictor.signature) for demo in demos]
        predictor.demos = [demo for demo in fitted if demo is not None]
    return copy


def fit_demo(demo: Mapping[str, Any] | dspy.Example, signature: Any) -> dspy.Example | None:
    """Return the demonstration with the signature's fields only, or None where it lacks inputs or outputs."""
    kept = {key: value for key, value in cast(Any, demo).items() if key in signature.fields}
    inputs = [key for key in kept if key in signature.input_fields]
    if not inputs or len(inputs) == len(kept):
        return None
    extra = {"augmented": True} if cast(Any, demo).get("augmented") else {}
    return cast(Any, dspy.Example(**extra, **kept)).with_inputs(*inputs)


def _by_class(gold: Sequence[dspy.Example], labels: Sequence[str], output: str) -> dict[str, list[dspy.Example]]:
    if not labels or not output:
        return {"": list(gold)}
    classes: dict[str, list[dspy.Example]] = {str(label): [] for label in labels}
    for row in gold:
        classes.setdefault(str(cast(Any, row)[output]), []).append(row)
    return {label: rows for label, rows in classes.items() if rows}


def _median_length(gold: Sequence[dspy.Example]) -> float:
    lengths = sorted(row_length(row) for row in gold)
    return float(lengths[len(lengths) // 2]) if lengths else 0.0


def _preferred(rows: Sequence[dspy.Example], rng: random.Random, median: float) -> list[dspy.Example]:
    by_length = sorted(range(len(rows)), key=lambda i: (row_length(rows[i]), i))
    rank = {index: place / max(len(rows) - 1, 1) for place, index in enumerate(by_length)}

    def cost(index: int) -> tuple[bool, float]:
        too_long = row_length(rows[index]) > _TOO_LONG * median
        return too_long, rng.random() + _SHORT_ROW_PREFERENCE * rank[index]

    return [rows[i] for i in sorted(range(len(rows)), key=cost)]


def _interleave(queues: dict[str, list[dspy.Example]], k: int, rng: random.Random) -> list[dspy.Example]:
    queues = {label: list(rows) for label, rows in queues.items()}
    drawn: list[dspy.Example] = []
    last = ""
    while len(drawn) < k:
        order = [label for label, rows in queues.items() if rows]
        rng.shuffle(order)
        if order[0] == last and len(order) > 1:
            order[0], order[-1] = order[-1], order[0]
        for label in order[: k - len(drawn)]:
            drawn.append(queues[label].pop(0))
            last = label
    return drawn
