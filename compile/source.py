"""What the writers of new inputs know of a task: fields, instructions, labels, and gold rows by fold."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from limbeck.compile.attributes import lengths_of
from limbeck.compile.dedup import record_text
from limbeck.compile.label import gold_records
from limbeck.introspect import predictors_of
from limbeck.programs.generate import InputWriter
from limbeck.records import Record
from limbeck.task import Task

# Longer inputs, or inputs of several lines, are written one a call.
_MAX_LINE_WORDS = 60
_TOKENS_PER_WORD = 2.0


@dataclass(frozen=True)
class Source:
    """What the writer knows of the task: its fields, labels and gold rows with their folds.

    `fields` maps the input fields to their types. `folds` names each gold row's fold, () for none.
    """

    fields: Mapping[str, Any]
    instructions: str
    gold: tuple[Record, ...]
    folds: tuple[int, ...] = ()
    label_field: str = ""
    labels: tuple[str, ...] = ()
    meanings: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def blocks(self) -> tuple[int, ...]:
        """The folds to keep out in turn; (-1,) where nothing is kept out."""
        found = tuple(sorted(set(self.folds)))
        return found if len(found) > 1 else (-1,)

    def shown(self, block: int, label: str | None = None) -> list[Record]:
        """Return the gold rows that a block's prompts may show, of one label or of all."""
        folds = self.folds or (-2,) * len(self.gold)
        rows = [row for row, fold in zip(self.gold, folds, strict=True) if fold != block]
        return rows if label is None else [r for r in rows if str(r.outputs.get(self.label_field)) == label]

    @property
    def one_line(self) -> bool:
        """Whether an input is one short text, so that a call can write several."""
        texts = [str(value) for row in self.gold for value in row.inputs.values()]
        short = all("\n" not in text.strip() and len(text.split()) <= _MAX_LINE_WORDS for text in texts)
        return len(self.fields) == 1 and short

    @property
    def tokens(self) -> int:
        """A generous number of tokens for one input: twice the words of the longest tenth, and some."""
        words = max(lengths_of([record_text(row.inputs) for row in self.gold]))
        return int(words * _TOKENS_PER_WORD) + 8 + 16 * len(self.fields)


def writer_of(source: Source, *, labelled: bool) -> InputWriter:
    """Return what writes new inputs of the task, for given labels or without."""
    described = labelled and bool(source.meanings)
    return InputWriter(
        source.fields, source.instructions, labelled=labelled, described=described, several=source.one_line
    )


def source_of(task: Task, gold: Sequence[dspy.Example], folds: Sequence[int] = ()) -> Source:
    """Return what writers may know of a task, given its gold rows and each row's fold (() for no folds)."""
    types: dict[str, Any] = {}
    for predictor in reversed(predictors_of(task.program)):
        types |= {name: info.annotation for name, info in predictor.signature.input_fields.items()}
    return Source(
        fields={name: types.get(name, str) for name in task.input_fields},
        instructions=task.instructions,
        gold=tuple(gold_records(gold, folds=folds or None, label_field=task.label_field)),
        folds=tuple(folds),
        label_field=task.label_field,
        labels=task.labels,
        meanings=task.label_descriptions,
    )
