"""Records made from one row each: which rows are taken, their outputs and first answers, the new record's origin."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import dspy

from limbeck.compile.demos import with_demos
from limbeck.compile.label import Answer, LabelConfig, Labeler, answer_all
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import GOLD, block_of_child
from limbeck.records import CHECKED, Provenance, Record, stable_hash
from limbeck.signatures.tasks import FieldSpec, annotation_of, literal, with_label_descriptions


def pick_rows(records: Sequence[Record], wanted: int, seed: int) -> list[Record]:
    """Return the kept records in their order; `wanted` of them, drawn by the seed, where there are more.

    >>> rows = [Record({"x": i}, {}, Provenance("gold", seed=i)) for i in range(9)]
    >>> pick_rows(rows, 3, seed=1) == pick_rows(rows, 3, seed=1), len(pick_rows(rows, 30, seed=1))
    (True, 9)
    """
    kept = [record for record in records if record.kept]
    chosen = random.Random(f"{seed}:rows").sample(range(len(kept)), min(wanted, len(kept)))
    return [kept[i] for i in sorted(chosen)]


def output_specs(source: Source) -> list[FieldSpec]:
    """Return the task's output fields with their types as the gold rows show them, labels with their meanings."""
    specs: list[FieldSpec] = []
    for name in dict.fromkeys(name for row in source.gold for name in row.outputs):
        if name == source.label_field:
            specs.append(FieldSpec(name, literal(source.labels), with_label_descriptions("", {}, source.meanings)))
            continue
        annotation = annotation_of((row.outputs[name] for row in source.gold if name in row.outputs), name)
        # That gold numbers are whole does not say that the next one is.
        specs.append(FieldSpec(name, float if annotation is int else annotation))
    return specs


def child_of(
    parent: Record,
    source: Source,
    method: str,
    lm: dspy.LM,
    *,
    seed: int,
    prompt: str,
    attributes: str = "",
    level: int = CHECKED,
) -> Provenance:
    """Return the provenance of a record made from one parent; its level is the parent's where that is higher.

    `prompt` is the hash of the prompt that wrote it.
    """
    return Provenance(
        method,
        parents=(parent.id,),
        teacher=str(cast(Any, lm).model),
        prompt_hash=prompt,
        seed=int(stable_hash([seed, method, parent.id])[:7], 16),
        level=max(level, parent.provenance.level),
        licence=parent.provenance.licence,
        block=block_of_child(parent, source),
        attributes=attributes,
    )


def first_answers(records: Sequence[Record], labeler: Labeler, config: LabelConfig) -> list[Answer]:
    """Return what a model says to each row: its outputs where a model wrote them, else the labeler's answer.

    Gold rows are answered without demonstrations, which might be the rows themselves. Raises what `answer_all` does.
    """
    known = [Answer(record.outputs) for record in records]
    gold = [i for i, record in enumerate(records) if record.provenance.method == GOLD]
    open_ones = [i for i, record in enumerate(records) if record.provenance.method != GOLD and not record.outputs]
    bare = {block: with_demos(program, []) for block, program in labeler.programs.items()}
    for rows, programs in ((gold, bare), (open_ones, labeler.programs)):
        blocks = [records[i].provenance.block for i in rows]
        answers = answer_all(
            [records[i].inputs for i in rows],
            replace(labeler, programs=programs),
            blocks=[labeler.block_for(block) for block in blocks],
            config=config,
        )
        for i, answer in zip(rows, answers, strict=True):
            known[i] = answer
    return known
