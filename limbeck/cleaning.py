"""Labelled, test and unlabelled rows made fit for use: blanks, duplicates, contradictions, leaks.

What can be left out without changing the task is left out and named in a warning; what cannot is an
`InputError`. Rows are compared by their input text without case and extra blanks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.columns import is_blank
from limbeck.errors import InputError
from limbeck.inputs import Table, counted

# A file in which more than a fifth of the rows is unusable is the wrong file, or the wrong column.
MAX_UNUSABLE_SHARE = 0.2


@dataclass(frozen=True)
class Row:
    """One row under field names, and the place it came from."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    where: str

    @property
    def key(self) -> str:
        """What makes two rows the same: the inputs without case and extra blanks."""
        return input_key(self.inputs)


def input_key(inputs: Mapping[str, Any]) -> str:
    """Return the comparison key of one row's inputs.

    >>> input_key({"text": " Hello  THERE"}) == input_key({"text": "hello there"})
    True
    """
    return json.dumps({k: _fold(v) for k, v in sorted(inputs.items())}, ensure_ascii=False)


def _fold(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    return " ".join(text.split()).casefold()


def input_value(value: Any) -> str | list[str]:
    """Return a cell as an input field: text stays text, lists of text stay lists, the rest becomes JSON.

    >>> input_value("hi"), input_value(3), input_value(None), input_value(["a", "b"])
    ('hi', '3', '', ['a', 'b'])
    """
    if value is None:
        return ""
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value)):  # pyright: ignore[reportUnknownVariableType]
        return value  # pyright: ignore[reportUnknownVariableType]
    return json.dumps(value, ensure_ascii=False)


def take_rows(table: Table, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> tuple[list[Row], list[str]]:
    """Return the usable rows of a table and warnings about the rest; maps go from column to field name."""
    table.require([*inputs, *outputs])
    rows: list[Row] = []
    no_input: list[str] = []
    no_output: list[str] = []
    for index, raw in enumerate(table.rows):
        place = table.where(index)
        if all(is_blank(raw[c]) for c in inputs):
            no_input.append(place)
        elif any(is_blank(raw[c]) for c in outputs):
            no_output.append(place)
        else:
            taken = {f: input_value(raw[c]) for c, f in inputs.items()}
            rows.append(Row(taken, {f: raw[c] for c, f in outputs.items()}, place))
    total = len(table.rows)
    warnings = [
        *_left_out("empty-inputs", f"have nothing in {_names(inputs)}", no_input, total),
        *_left_out("missing-output", f"have no value in {_names(outputs)}", no_output, total),
    ]
    return rows, warnings


def _names(columns: Iterable[str]) -> str:
    return ", ".join(repr(c) for c in columns)


def _left_out(name: str, what: str, places: Sequence[str], total: int) -> list[str]:
    if not places:
        return []
    listed = ", ".join(places[:5]) + (", ..." if len(places) > 5 else "")
    if len(places) > MAX_UNUSABLE_SHARE * total:
        raise InputError(
            f"{len(places)} of {total} rows {what}: {listed}",
            valid=f"at most {MAX_UNUSABLE_SHARE:.0%} of the rows left out",
            hint="correct these rows, choose other columns with --input and --output, or give rows without an output "
            "as --unlabeled FILE",
        )
    return [f"{name}: left out {len(places)} of {total} rows that {what}: {listed}"]


def drop_duplicates(rows: Sequence[Row], *, open_ended: bool) -> tuple[list[Row], list[str]]:
    """Return every input once, and warnings.

    Equal rows are kept once. Equal inputs with different outputs are all set aside, for nobody knows which is
    right; where outputs are open (`open_ended`) several can be, and the first stays. Raises `InputError` if
    the contradictions are more than a fifth of the rows.
    """
    kept: list[Row] = []
    repeated: list[str] = []
    contradictory: list[str] = []
    for group in _by_input(rows):
        if _agree(group) or open_ended:
            kept.append(group[0])
            repeated += [row.where for row in group[1:]]
        else:
            shown = [f"{row.where} ({_short(row.outputs)})" for row in group]
            contradictory += shown
    warnings = _left_out("contradictory-rows", "have the same input and different outputs", contradictory, len(rows))
    if repeated:
        warnings.append(
            f"duplicate-rows: left out {counted(len(repeated), 'row')} whose input comes earlier: "
            + ", ".join(repeated[:5])
        )
    return kept, warnings


def contradictions(rows: Sequence[Row]) -> list[str]:
    """Return a warning if test rows have equal inputs and different outputs: none can be right on all of them."""
    torn = [row for group in _by_input(rows) if not _agree(group) for row in group]
    if not torn:
        return []
    shown = ", ".join(f"{row.where} ({_short(row.outputs)})" for row in torn[:4])
    return [f"contradictory-test-rows: {len(torn)} of {len(rows)} have the same input and different outputs: {shown}"]


def _by_input(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.key, []).append(row)
    return list(groups.values())


def _agree(group: Sequence[Row]) -> bool:
    return all(_same(group[0].outputs, row.outputs) for row in group)


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return json.dumps(dict(a), sort_keys=True) == json.dumps(dict(b), sort_keys=True)


def _short(outputs: Mapping[str, Any]) -> str:
    return ", ".join(str(v)[:30] for v in outputs.values())


def drop_seen(rows: Sequence[Row], seen: Iterable[str], *, name: str, what: str) -> tuple[list[Row], list[str]]:
    """Return the rows whose inputs are not among the keys `seen`, and a warning about the others."""
    known = set(seen)
    kept = [row for row in rows if row.key not in known]
    gone = len(rows) - len(kept)
    return kept, [f"{name}: left out {gone} of {len(rows)} {what}"] if gone else []


def rare_classes(labels: Sequence[str]) -> list[str]:
    """Return a warning if some class has fewer than two rows: it cannot be in train and dev both."""
    rare = sorted(label for label, count in Counter(labels).items() if count < 2)
    if not rare:
        return []
    listed = ", ".join(rare[:5]) + (", ..." if len(rare) > 5 else "")
    return [f"rare-classes: {len(rare)} of {len(set(labels))} classes with one row only: {listed}"]
