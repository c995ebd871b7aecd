"""From tables to clean rows under field names: which columns are inputs and what the outputs hold."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from limbeck.cleaning import Row, contradictions, drop_duplicates, drop_seen, rare_classes, take_rows
from limbeck.columns import (
    KINDS,
    OutputColumn,
    as_label,
    check_test_labels,
    field_names,
    infer_kind,
    is_blank,
    looks_like_id,
    offset_keys,
    output_column,
    structure,
)
from limbeck.errors import InputError
from limbeck.inputs import Source, Table, read_table
from limbeck.metrics import Kind


@dataclass(frozen=True)
class Prepared:
    """Clean rows; `inputs` maps columns to fields, `test` is None where the user gave no test set."""

    inputs: Mapping[str, str]
    outputs: tuple[OutputColumn, ...]
    rows: tuple[Row, ...]
    test: tuple[Row, ...] | None
    unlabeled: tuple[Row, ...]
    source: str
    warnings: tuple[str, ...]


def prepare(
    labels: Source,
    *,
    output: str | Sequence[str],
    inputs: Sequence[str] | None = None,
    test: Source | None = None,
    unlabeled: Source | None = None,
    kind: Kind | None = None,
) -> Prepared:
    """Return clean rows of the three sources; raise `InputError` for what cannot be mended.

    Inputs are by default all columns but the outputs, ids, and those that test or unlabelled rows lack.
    """
    if kind is not None and kind not in KINDS:
        raise InputError(f"there is no kind {kind!r}", valid=", ".join(KINDS), hint="--kind classification")
    tables = [None if s is None else read_table(s) for s in (labels, test, unlabeled)]
    table, test_table, pool_table = tables
    assert table is not None  # labels are not optional
    outputs = [output] if isinstance(output, str) else list(dict.fromkeys(output))
    table.require(outputs)
    chosen, warnings = _input_columns(table, outputs, inputs, [t for t in (test_table, pool_table) if t])
    names = field_names([*chosen, *outputs])
    into, out = {c: names[c] for c in chosen}, {c: names[c] for c in outputs}
    rows, notes = take_rows(table, into, out)
    test_rows, test_notes = take_rows(test_table, into, out) if test_table else ([], [])
    columns = [_output(c, f, rows, test_rows, kind) for c, f in out.items()]
    rows, repeated = drop_duplicates(
        _converted(rows, columns),
        open_ended=all(c.kind in ("short_answer", "text") for c in columns),
    )
    columns = [_present(c, rows) for c in columns]
    warnings += [*notes, *repeated, *test_notes, *_notes_on_columns(columns, rows, table, chosen, inputs)]
    for column in columns:
        if column.labels and test_table:
            check_test_labels(column, [r.outputs[column.name] for r in test_rows], test_table.source)
    keys = {row.key for row in rows}
    test_rows, overlap = _without_overlap(_converted(test_rows, columns), keys, test_table)
    overlap += contradictions(test_rows)
    keys |= {row.key for row in test_rows}
    pool, pool_notes = _pool(pool_table, into, keys)
    return Prepared(
        into,
        tuple(columns),
        tuple(rows),
        tuple(test_rows) if test_table else None,
        tuple(pool),
        table.source,
        (*warnings, *overlap, *pool_notes),
    )


def _input_columns(
    table: Table, outputs: Sequence[str], given: Sequence[str] | None, others: Sequence[Table]
) -> tuple[list[str], list[str]]:
    if given is not None:
        chosen = list(dict.fromkeys(given))
        for each in (table, *others):
            each.require(chosen)
        if both := [c for c in chosen if c in outputs]:
            raise InputError(
                f"column {both[0]!r} is both input and output",
                valid=", ".join(c for c in table.columns if c not in outputs),
                hint="take it out of --input or --output",
            )
        return chosen, []
    rest = [c for c in table.columns if c not in outputs]
    ids = [c for c in rest if looks_like_id(c, [row[c] for row in table.rows])]
    chosen = [c for c in rest if c not in ids]
    shared = [c for c in chosen if all(c in other.columns for other in others)]
    if chosen and not shared:
        others[0].require(chosen[:1])
        others[-1].require(chosen[:1])
    if not shared:
        raise InputError(
            f"{table.source} has no input column beside {', '.join(outputs)}",
            valid="at least one column that holds what the model reads",
            hint=f"add a column to {table.source}, or name one with --input",
        )
    warnings = [
        f"id-column: {c!r} names the rows and is not an input; --input {shlex.quote(c)} makes it one" for c in ids
    ]
    if absent := [c for c in chosen if c not in shared]:
        where = ", ".join(dict.fromkeys(o.source for o in others if any(c not in o.columns for c in absent)))
        warnings.append(f"columns-left-out: {', '.join(absent)} not in {where}, so not an input")
    return shared, warnings


def _output(column: str, field: str, rows: Sequence[Row], test_rows: Sequence[Row], kind: Kind | None) -> OutputColumn:
    values = [row.outputs[field] for row in rows]
    found = output_column(column, field, values, [row.outputs[field] for row in test_rows], kind)
    if found.kind != "extraction":
        return found
    for name in list(rows[0].inputs):
        keys = offset_keys([structure(v) for v in values], [str(row.inputs[name]) for row in rows])
        if keys:
            return replace(found, dropped_keys=keys)
    return found


def _converted(rows: Iterable[Row], columns: Sequence[OutputColumn]) -> list[Row]:
    return [replace(row, outputs={c.name: c.convert(row.outputs[c.name], row.where) for c in columns}) for row in rows]


def _present(column: OutputColumn, rows: Sequence[Row]) -> OutputColumn:
    """Return the column without the classes of which no row is left."""
    if not column.labels:
        return column
    present = {row.outputs[column.name] for row in rows}
    if len(present) < 2:
        raise InputError(
            f"fewer than two classes of {column.column!r} are left without contradictory rows",
            valid="at least two classes",
            hint="label each input one way, in one row",
        )
    return replace(column, labels=tuple(label for label in column.labels if label in present))


def _notes_on_columns(
    columns: Sequence[OutputColumn],
    rows: Sequence[Row],
    table: Table,
    chosen: Sequence[str],
    given: Sequence[str] | None,
) -> list[str]:
    notes: list[str] = []
    for column in columns:
        values = [row.outputs[column.name] for row in rows]
        if column.labels:
            notes += [*_trimmed(column, table), *rare_classes(values)]
        elif column.kind == "number" and 2 * len(set(values)) <= len(values) and all(v == int(v) for v in values):
            notes.append(
                f"whole-numbers: {column.column!r} holds {len(set(values))} different whole numbers and is predicted "
                "as a number; if these are classes, add --kind classification"
            )
        elif column.kind == "short_answer" and len(set(values)) == len(values):
            notes.append(
                f"all-different: every value of {column.column!r} is different, so it is an open answer; "
                "if these are classes, add --kind classification"
            )
        if column.dropped_keys:
            dropped = " and ".join(column.dropped_keys)
            notes.append(f"offsets-left-out: {dropped} of {column.column!r} are character positions")
        if given is None and column.labels:
            notes += _leaks(column, table, chosen)
    return notes


def _trimmed(column: OutputColumn, table: Table) -> list[str]:
    """Return a warning if labels come with blanks that others of the same class have not."""
    raw = {v for row in table.rows if isinstance(v := row[column.column], str) and not is_blank(v)}
    odd = sorted(v for v in raw if v != as_label(v) and as_label(v) in raw)
    if not odd:
        return []
    shown = ", ".join(map(repr, odd[:5]))
    return [f"labels-trimmed: in {column.column!r} blanks at the ends or doubled do not count: {shown}"]


def _leaks(column: OutputColumn, table: Table, chosen: Sequence[str]) -> list[str]:
    """Return a warning for every input column that looks like another label and gives the output away."""
    notes: list[str] = []
    if len(chosen) < 2:
        return notes
    for name in chosen:
        seen: dict[str, set[str]] = {}
        for row in table.rows:
            seen.setdefault(as_label(row[name]), set()).add(as_label(row[column.column]))
        if all(len(labels) == 1 for labels in seen.values()) and _like_labels(name, table):
            others = " ".join("--input " + shlex.quote(c) for c in chosen if c != name)
            notes.append(
                f"gives-away: every value of {name!r} goes with one {column.column!r}; if it is not known "
                f"at prediction time, leave it out with {others}"
            )
    return notes


def _like_labels(name: str, table: Table) -> bool:
    values = [row[name] for row in table.rows if not is_blank(row[name])]
    return bool(values) and infer_kind(values) == "classification"


def _without_overlap(rows: list[Row], keys: set[str], table: Table | None) -> tuple[list[Row], list[str]]:
    if table is None:
        return [], []
    kept, notes = drop_seen(rows, keys, name="test-overlap", what="test rows that are also labelled rows")
    if not kept:
        raise InputError(
            f"all {len(rows)} usable rows of {table.source} are also labelled rows",
            valid="test rows that no model has learned from",
            hint="give another --test file, or leave it out: some labels are then cut off for testing",
        )
    return kept, notes


def _pool(table: Table | None, inputs: Mapping[str, str], keys: set[str]) -> tuple[list[Row], list[str]]:
    if table is None:
        return [], []
    rows, notes = take_rows(table, inputs, {})
    rows, overlap = drop_seen(
        rows, keys, name="unlabeled-overlap", what="unlabelled rows that are also labelled or test rows"
    )
    rows, repeated = drop_duplicates(rows, open_ended=True)
    return rows, [*notes, *overlap, *repeated]
