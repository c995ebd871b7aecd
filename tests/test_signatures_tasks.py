"""Signatures from columns: types that DSPy parses into plain JSON, descriptions that replace each other."""

from __future__ import annotations

from typing import Any, Literal

import dspy
import pytest
from dspy.adapters.utils import parse_value

from limbeck.signatures.tasks import (
    FieldSpec,
    annotation_of,
    build_signature,
    default_instructions,
    describe_structure,
    literal,
    with_label_descriptions,
)


def test_a_signature_has_its_fields_types_and_instructions():
    outputs = [FieldSpec("label", literal(["a", "b"]), "which"), FieldSpec("why")]
    signature: Any = build_signature([FieldSpec("text"), FieldSpec("tags", list[str])], outputs, "Choose.")
    assert signature.instructions == "Choose."
    assert list(signature.input_fields) == ["text", "tags"]
    assert signature.output_fields["label"].annotation == Literal["a", "b"]
    assert signature.output_fields["label"].json_schema_extra["desc"] == "which"
    assert signature.output_fields["why"].json_schema_extra["desc"] == "${why}"


@pytest.mark.parametrize(
    ("values", "annotation"),
    [
        (["a", "b"], str),
        ([1, 2.5], float),
        ([1, 2], int),
        ([True], bool),
        ([["a"], []], list[str]),
        ([[1], [2]], list[int]),
        ([["a"], {"b": 1}], Any),
        (["a", 1], Any),
        ([], str),
    ],
)
def test_types_fit_every_value(values: list[Any], annotation: Any):
    assert annotation_of(values, "field") == annotation


def test_none_makes_a_type_optional():
    assert annotation_of(["a", None], "x") == str | None


def test_objects_parse_to_plain_dictionaries():
    spans = [[{"slot": "time", "value": "7 pm"}], [], [{"slot": "people", "value": "2", "sure": True}]]
    annotation = annotation_of(spans, "slots")
    for value in spans:
        assert parse_value(str(value).replace("'", '"').replace("True", "true"), annotation) == value
    assert parse_value('[{"slot": "people", "value": 2, "other": 1}]', annotation) == [{"slot": "people", "value": "2"}]


def test_nested_objects_are_typed_and_saved_as_json():
    values = [{"who": {"name": "Ann", "age": None}, "tags": ["x"]}, {"who": {"name": "Bob", "age": 3}}]
    annotation = annotation_of(values, "person_data")
    assert annotation.__name__ == "PersonData"
    parsed = parse_value('{"who": {"name": "Cy", "age": null}, "tags": ["y"]}', annotation)
    assert parsed == {"who": {"name": "Cy", "age": None}, "tags": ["y"]}
    predict = dspy.Predict(build_signature([FieldSpec("text")], [FieldSpec("data", annotation)], "Extract."))
    predict.demos = [dspy.Example(text="t", data=parsed)]
    assert predict.dump_state()["demos"] == [{"text": "t", "data": parsed}]


def test_the_structure_is_described_in_one_line():
    spans = [[{"slot": s, "value": v}] for s, v in [("time", "7"), ("date", "x"), ("time", "8"), ("date", "y")]]
    assert describe_structure(spans, "slots") == (
        'JSON list of objects with the keys slot ("date", "time") and value; [] if there is none'
    )
    assert describe_structure([["a"]], "key_words") == "JSON list of key words; [] if there is none"
    assert describe_structure([{"a": "1", "b": 2}], "data") == (
        "JSON object with the keys a and b; leave out what is not there"
    )


def test_label_descriptions_replace_earlier_ones():
    first = with_label_descriptions("${label}", {}, {"HUM": "a  person", "LOC": "a place"})
    assert first == "HUM: a person\nLOC: a place"
    second = with_label_descriptions(first, {"HUM": "a  person", "LOC": "a place"}, {"HUM": "a group"})
    assert second == "HUM: a group"
    assert with_label_descriptions("The kind.", {}, {"HUM": "x"}) == "The kind.\nHUM: x"
    assert with_label_descriptions("The kind.\nHUM: x", {"HUM": "x"}, {}) == "The kind."


@pytest.mark.parametrize("kind", ["classification", "extraction", "number", "short_answer", "text", "program"])
def test_instructions_name_the_columns(kind: str):
    said = default_instructions(kind, ["subject", "mail_body", "sender"], ["news_topic"])
    assert "subject, mail body and sender" in said
    assert "news topic" in said
