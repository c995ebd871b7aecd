"""How a student answers, where that is not by the task's own program, and its rationale as a task of its own.

A student of chains of abstraction (Gao et al. 2024, arXiv:2401.17464) decodes a whole chain, which a calculator then
fills; one that learns step by step (Hsieh et al. 2023, arXiv:2305.02301) answers without the rationale.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import dspy

from limbeck.chains import is_chain
from limbeck.compile.abstraction import METHOD
from limbeck.compile.source import source_of
from limbeck.compile.synthesizers import portions_of
from limbeck.introspect import output_annotation
from limbeck.models.adapter import Rendered, render
from limbeck.programs.abstraction import ChainProgram
from limbeck.records import Record
from limbeck.signatures.rationale import explain

if TYPE_CHECKING:
    from limbeck.task import Task

# By the task's own program; without its rationale; by a chain of abstraction.
Way = Literal["", "direct", "chain"]
OWN: Way = ""
DIRECT: Way = "direct"
CHAIN: Way = "chain"


def student_program(task: Task, way: Way) -> dspy.Module:
    """Return a new program that answers the task in this way.

    >>> from limbeck.task import task_from_labels
    >>> task = task_from_labels([{"q": "1 + 1", "a": 2}, {"q": "2 + 5", "a": 7}], output="a", reasoning=True)
    >>> ways = OWN, DIRECT, CHAIN
    >>> [list(cast(Any, student_program(task, way)).predictors()[0].signature.output_fields) for way in ways]
    [['reasoning', 'a'], ['a'], ['reasoning']]
    """
    if way == OWN:
        return task.program.deepcopy()
    if way == CHAIN:
        (output,) = task.output_fields
        text = output_annotation(task.program, output) is str
        return ChainProgram(source_of(task, ()).fields, output, task.instructions, text=text)
    (predictor,) = cast(list[Any], task.program.predictors())
    signature = predictor.signature
    for name in list(signature.output_fields):
        signature = signature if name in task.output_fields else signature.delete(name)
    return dspy.Predict(signature)


def by_chains(task: Task, methods: Sequence[str], closed: bool) -> bool:
    """Return whether a student answers by chains: where all that is written for its one open output are chains.

    `methods` are those of the run, as `--method` takes them.
    """
    written = {portion.chain[-1] for portion in portions_of(methods, closed)}
    return not closed and len(task.output_fields) == 1 and written == {METHOD}


def teaches(way: Way, record: Record) -> bool:
    """Return whether a student that answers so can learn from a record."""
    return way != CHAIN or is_chain(record.rationale)


def direct_way(task: Task) -> Way:
    """Return the way of a student whose rationale is a task of its own: without one, where the program has one call."""
    predictors = cast(list[Any], task.program.predictors())
    reasons = len(predictors) == 1 and bool(set(predictors[0].signature.output_fields) - set(task.output_fields))
    return DIRECT if reasons else OWN


def explained(task: Task, program: dspy.Module, record: Record, adapter: Any, weight: float) -> list[Rendered]:
    """Return the row that asks a student for a record's rationale alone, under the instructions of its program.

    None where the record has no rationale, where the program writes it itself, and for several predictors.
    """
    predictors = cast(list[Any], program.predictors())
    if not record.rationale or len(predictors) != 1:
        return []
    if set(predictors[0].signature.output_fields) - set(task.output_fields):
        return []
    signature: Any = explain(predictors[0].signature)
    outputs = dict.fromkeys(signature.output_fields, record.rationale)
    return [render(signature, adapter=adapter, inputs=record.inputs, outputs=outputs, demos=(), weight=weight)]
