"""What programs and examples say about their task."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

import dspy
import pytest

from limbeck.errors import InputError
from limbeck.introspect import (
    check_closed,
    closed_outputs,
    example_fields,
    kind_of,
    output_annotation,
    predictors_of,
    source_of,
)


class Topic(Enum):
    NEWS = "news"
    SPORT = "sport"


class Two(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("text -> note")
        self.second = dspy.Predict("text, note -> ok: bool, n: int")


def example(**fields: Any) -> dspy.Example:
    return dspy.Example(**fields).with_inputs("text")


def test_predictors_are_found_in_order():
    assert [list(p.signature.output_fields) for p in predictors_of(Two())] == [["note"], ["ok", "n"]]
    with pytest.raises(InputError, match="has no predictors"):
        predictors_of(dspy.Module())


def test_fields_come_from_the_examples():
    assert example_fields([example(text="a", label="x"), example(label="y", text="b")]) == (
        ("text",),
        ("label",),
    )


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "0 labelled examples"),
        ([example(text="a", label="x"), dspy.Example(text="a", label="x")], "example 2 has inputs ()"),
        ([example(text="a"), example(text="b")], "example 1 has inputs ('text',) and outputs ()"),
        ([example(text="a", label="x"), example(text="b", y="x")], "outputs ('y',), the first ('text',)"),
    ],
)
def test_examples_that_do_not_fit_are_named(examples: list[dspy.Example], message: str):
    with pytest.raises(InputError) as caught:
        example_fields(examples)
    assert message in caught.value.message


def test_closed_sets_are_found_in_the_last_predictor_that_has_the_field():
    program = Two()
    assert output_annotation(program, "n") is int
    assert output_annotation(program, "nowhere") is None
    assert closed_outputs(program, ["ok", "n", "note"]) == {"ok": ("True", "False")}


def test_values_outside_a_closed_set_are_named():
    closed = {"topic": ("news", "sport")}
    check_closed([example(text="a", topic=Topic.NEWS), example(text="b", topic="sport")], closed)
    with pytest.raises(InputError, match="example 1 has topic = 'arts'"):
        check_closed([example(text="a", topic="arts")], closed)


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [(int, "number"), (str, "short_answer"), (None, "short_answer"), (list[str], "extraction"),
     (Literal["a", "b"], "classification"), (bool, "classification"), (Topic, "classification"),
     (str | None, "short_answer"), (Any, "short_answer"), (Literal["a", "b"] | None, "classification"),
     (int | float, "number"), (list[str] | None, "extraction")],
)  # fmt: skip
def test_kinds_follow_types(annotation: Any, kind: str):
    assert kind_of(annotation) == kind


def test_source_or_name():
    assert "class Two" in source_of(Two)
    assert source_of(len) == "len"
