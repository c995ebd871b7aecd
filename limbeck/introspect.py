"""What a user's DSPy program and examples say about their task: fields, types and closed sets."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin

import dspy

from limbeck.errors import InputError
from limbeck.metrics import Kind
from limbeck.models.labels import closed_values, label_text


def predictors_of(program: dspy.Module) -> list[Any]:
    """Return the program's predictors in the order they were set; raise `InputError` if it has none."""
    found: list[Any] = [p for _, p in program.named_predictors()]
    if not found:
        raise InputError(
            f"{type(program).__name__} has no predictors",
            valid="a dspy.Module with dspy.Predict or dspy.ChainOfThought as attributes",
            hint="set them in __init__, as in self.answer = dspy.Predict(...)",
        )
    return found


def example_fields(examples: Sequence[dspy.Example]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the input and output fields that all examples share; raise `InputError` if they do not."""
    if len(examples) < 2:
        raise InputError(f"{len(examples)} labelled examples", valid="at least two", hint="add examples")
    first = _fields(examples[0])
    for number, example in enumerate(examples, 1):
        inputs, outputs = _fields(example)
        if not inputs or not outputs or (set(inputs), set(outputs)) != (set(first[0]), set(first[1])):
            raise InputError(
                f"example {number} has inputs {inputs} and outputs {outputs}, the first {first[0]} and {first[1]}",
                valid="the same inputs and outputs, one at least of each, in every example",
                hint='mark the inputs: dspy.Example(text="...", label="...").with_inputs("text")',
            )
    return first


def _fields(example: dspy.Example) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        return tuple(example.inputs().keys()), tuple(example.labels().keys())
    except ValueError:  # with_inputs was never called
        return (), ()


def output_annotation(program: dspy.Module, name: str) -> Any:
    """Return the type of an output field in the last predictor that has it; None if none has."""
    for predictor in reversed(predictors_of(program)):
        if name in predictor.signature.output_fields:
            return predictor.signature.output_fields[name].annotation
    return None


def closed_outputs(program: dspy.Module, outputs: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the closed set of every output field that has one."""
    found = {name: closed_values(output_annotation(program, name)) for name in outputs}
    return {name: tuple(map(label_text, values)) for name, values in found.items() if values}


def check_closed(examples: Sequence[dspy.Example], closed: Mapping[str, Sequence[str]]) -> None:
    """Raise `InputError` for an example whose output is outside the field's closed set."""
    for number, example in enumerate(examples, 1):
        for name, values in closed.items():
            text = label_text(example[name])
            if text not in values:
                raise InputError(
                    f"example {number} has {name} = {text!r}, which its signature does not allow",
                    valid=", ".join(values[:20]),
                    hint=f"correct the example, or add {text!r} to the signature",
                )


def kind_of(annotation: Any) -> Kind:
    """Return the kind of output that fits a type, for the default metric.

    >>> kind_of(int), kind_of(list[str]), kind_of(bool), kind_of(str | None)
    ('number', 'extraction', 'classification', 'short_answer')
    """
    if get_origin(annotation) in (Union, UnionType):
        kinds: set[Kind] = {kind_of(part) for part in get_args(annotation) if part is not type(None)}
        return kinds.pop() if len(kinds) == 1 else "short_answer"
    if annotation in (int, float):
        return "number"
    if annotation in (None, str, Any):
        return "short_answer"
    return "classification" if closed_values(annotation) else "extraction"


def source_of(thing: Any) -> str:
    """Return the source text of a class or function; its name where there is none (built-ins, a console)."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return str(cast(Any, getattr(thing, "__qualname__", type(thing).__qualname__)))
