"""Rows of a nearby data set as inputs of this task: read by column, and chosen by their likeness to the gold rows."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.cleaning import input_value
from limbeck.columns import as_label, field_names, is_blank, looks_like_id
from limbeck.compile.dedup import normalize, record_text
from limbeck.compile.nearest import text_encoder
from limbeck.compile.rewriting import is_closed
from limbeck.compile.source import Source
from limbeck.errors import InputError
from limbeck.inputs import Table, read_table
from limbeck.records import Provenance, Record

RELATED = "related"
# Words a row has on average in a column that is taken for its text.
_TEXT_WORDS = 2.0


@dataclass(frozen=True)
class Related:
    """One row of the related file under this task's field names; `outputs` are empty where it has none that fit."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    where: str

    @property
    def id(self) -> str:
        """The id that the adapted record names as its parent's."""
        return Record(self.inputs, {}, Provenance(RELATED, attributes=self.where)).id


def read_related(path: str, source: Source) -> list[Related]:
    """Return the rows of a file as inputs of the task, those without text left out.

    Columns are found by the task's field names; a task of one input takes the column with the longest texts where
    none has its name. Raises InputError for a file without text and for one that lacks a column of several.
    """
    if not path:
        raise InputError(
            "--method adaptation needs the rows of a nearby data set",
            valid="--related FILE, in any format that --labels takes",
            hint="limbeck run --help",
        )
    table = read_table(path)
    columns = {name: column for column, name in field_names(table.columns).items()}
    into = {name: columns[name] for name in source.fields if name in columns}
    if len(source.fields) == 1 and not into:
        into = {next(iter(source.fields)): _text_column(table, source)}
    table.require(name for name in source.fields if name not in into)
    found: list[Related] = []
    for index, row in enumerate(table.rows):
        if not any(is_blank(row[column]) for column in into.values()):
            where = f"{Path(path).name}, {table.unit} {table.lines[index]}"
            inputs = {name: input_value(row[column]) for name, column in into.items()}
            found.append(Related(inputs, _outputs(row, columns, source), where))
    if not found or not any(len(record_text(row.inputs).split()) >= _TEXT_WORDS for row in found):
        raise _no_text(table)
    return found


def _no_text(table: Table) -> InputError:
    return InputError(
        f"the rows of {table.source} hold no text to adapt: {', '.join(table.columns)}",
        valid="a column of texts, named like the task's input",
        hint=f"head -2 {table.source}",
    )


def _text_column(table: Table, source: Source) -> str:
    outputs = {name for row in source.gold for name in row.outputs}
    words: dict[str, float] = {}
    for column in table.columns:
        values = [row[column] for row in table.rows if not is_blank(row[column])]
        texts = values and all(isinstance(value, str) for value in values) and column not in outputs
        if texts and not looks_like_id(column, values):
            words[column] = sum(len(value.split()) for value in values) / len(values)
    best = max(words, key=lambda column: words[column], default="")
    if not best or words[best] < _TEXT_WORDS:
        raise _no_text(table)
    return best


def _outputs(row: Mapping[str, Any], columns: Mapping[str, str], source: Source) -> dict[str, Any]:
    """Return a row's outputs where it has all of the task's and its label is one of the task's."""
    names = dict.fromkeys(name for gold in source.gold for name in gold.outputs)
    if any(name not in columns or is_blank(row[columns[name]]) for name in names):
        return {}
    found = {name: row[columns[name]] for name in names}
    if source.label_field in found:
        found[source.label_field] = as_label(found[source.label_field])
        return found if found[source.label_field] in source.labels else {}
    return found


def usable_rows(
    rows: Sequence[Related], source: Source, *, max_rows: int, most_words: int, seed: int
) -> tuple[list[Related], dict[str, int]]:
    """Return the rows to choose from in a seeded order, each text once, and a count of those left out by reason."""
    gold = {normalize(record_text(row.inputs)) for row in source.gold}
    seen: set[str] = set()
    counts: Counter[str] = Counter()
    usable: list[Related] = []
    for row in random.Random(f"{seed}:related").sample(rows, len(rows)):
        text = record_text(row.inputs)
        key = normalize(text)
        reason = "related_repeated" if key in seen else "related_is_gold" if key in gold else ""
        reason = reason or ("related_too_long" if len(text.split()) > most_words else "")
        seen.add(key)
        if reason:
            counts[reason] += 1
        elif len(usable) < max_rows:
            usable.append(row)
    return usable, dict(counts)


class Choice:
    """Related rows in the order to try them: by block in turn, the most similar first, a queue for each label.

    A row of block b is compared with the gold rows that block b's prompts may show; the nearest one's label is the
    guess that balances the choice. A row is as similar as the mean cosine of its `nearest` gold rows.
    """

    def __init__(self, rows: Sequence[Related], source: Source, *, nearest: int) -> None:
        self.queues: dict[str, list[tuple[float, Related, int]]] = {}
        self.encode = text_encoder()
        if not rows:
            return
        encode, closed = self.encode, is_closed(source)
        related_N_D = encode([record_text(row.inputs) for row in rows])
        gold_G_D = encode([record_text(row.inputs) for row in source.gold])
        blocks, places = source.blocks, {row.id: i for i, row in enumerate(source.gold)}
        ranked: list[tuple[float, int, str]] = []
        for at, block in enumerate(blocks):
            shown = [places[row.id] for row in source.shown(block)]
            mine = list(range(at, len(rows), len(blocks)))
            close_N_G = related_N_D[mine] @ gold_G_D[shown].T
            top = np.sort(close_N_G, axis=1)[:, -nearest:].mean(axis=1)
            near = [int(place) for place in close_N_G.argmax(axis=1)]
            known = [rows[i].outputs or source.gold[shown[g]].outputs for i, g in zip(mine, near, strict=True)]
            guesses = [str(outputs[source.label_field]) if closed else "" for outputs in known]
            ranked += zip([float(score) for score in top], mine, guesses, strict=True)
        for score, i, guess in sorted(ranked, key=lambda found: (-found[0], found[1])):
            self.queues.setdefault(guess, []).append((score, rows[i], blocks[i % len(blocks)]))

    def take(self, missing: Mapping[str, int], size: int) -> list[tuple[float, Related, int]]:
        """Return the next `size` rows with their similarity and block: first for labels that miss most."""
        want, taken = Counter(missing), list[tuple[float, Related, int]]()
        while len(taken) < size:
            open_labels = [label for label in self.queues if self.queues[label] and want[label] > 0]
            if open_labels:
                label = max(open_labels, key=lambda name: (want[name], self.queues[name][0][0]))
            elif any(self.queues.values()):
                label = max((n for n in self.queues if self.queues[n]), key=lambda name: self.queues[name][0][0])
            else:
                break
            want[label] -= 1
            taken.append(self.queues[label].pop(0))
        return taken
