"""What columns hold: kinds, labels, field names."""

from __future__ import annotations

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.columns import (
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
    without_keys,
)
from limbeck.errors import InputError
from limbeck.metrics import Kind
from limbeck.signatures.tasks import FieldSpec, build_signature

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


@pytest.mark.parametrize(
    ("values", "test_values", "kind"),
    [
        (["spam", "ham"] * 4, [], "classification"),
        (["not spam at all", "spam"] * 4, [], "classification"),
        ([True, False, True], [], "classification"),
        ([1, 0, 1, 1, 0, 0], [], "classification"),
        (["1", "2", "3"] * 3, [], "classification"),
        ([1.5, 2.5] * 10, [], "number"),
        (["12", "$30", "7"], [], "number"),
        ([*range(48)], [], "number"),
        (["card_arrival", "pin_blocked", "age_limit"], [], "classification"),
        (["HUM", "LOC", "DESC"], [], "classification"),
        (["Paris", "Rome", "Oslo"], [], "short_answer"),
        (["Paris", "Rome", "Oslo"], ["Rome", "Paris"], "classification"),
        (["Paris", "Rome", "Oslo"], ["Rome", "Bonn"], "short_answer"),
        (["the Eiffel Tower", "in 1987"], [], "short_answer"),
        ([" ".join(WORDS), " ".join(WORDS[::-1])], [], "text"),
        (["short", " ".join(WORDS * 4), "short too"], [], "text"),
        ([["a"], []], [], "extraction"),
        (['["a"]', '{"b": 1}'], [], "extraction"),
        (["[a]", "[b] c"], [], "short_answer"),
    ],
)
def test_kinds_are_inferred(values: list[object], test_values: list[object], kind: Kind):
    assert infer_kind(values, test_values) == kind


def test_labels_become_text():
    assert [as_label(v) for v in (True, False, 3, 3.0, 2.5, " a  b ")] == [
        "true",
        "false",
        "3",
        "3",
        "2.5",
        "a b",
    ]


def test_blank_is_none_or_blanks():
    assert is_blank(None)
    assert is_blank(" \n")
    assert not is_blank([])
    assert not is_blank(0)


def test_structures_are_parsed():
    assert structure(' {"a": 1}') == {"a": 1}
    assert structure([1]) == [1]
    assert structure("[1") is None
    assert structure("3") is None
    assert structure("[" * 100_000) is None


def test_ids_are_recognised_by_name_and_by_never_repeating():
    assert looks_like_id("ID", [1, 2, 3])
    assert not looks_like_id("id", [1, 1, 2])
    assert not looks_like_id("text", ["a", "b"])
    assert all(looks_like_id(name, [1, 2]) for name in ("Ticket ID", "ticket_id", "orderId", "order-ID"))
    assert not any(looks_like_id(name, [1, 2]) for name in ("paid", "PAID", "Madrid", "ids"))


def test_field_names_are_kept_where_they_can_be():
    assert field_names(["text", "Größe"]) == {"text": "text", "Größe": "Größe"}
    assert field_names(["a b", "a-b", "2nd", "class", "?"]) == {
        "a b": "a_b", "a-b": "a_b_", "2nd": "field_2nd", "class": "class_", "?": "field",
    }  # fmt: skip


@settings(max_examples=50)
@given(st.lists(st.text(max_size=8) | st.sampled_from(["copy", "inputs", "base", "reasoning", "lm"]), unique=True))
def test_any_columns_make_a_signature_and_an_example(columns: list[str]):
    names = field_names(columns)
    fields = list(names.values())
    assert len(set(fields)) == len(columns)
    build_signature([FieldSpec(f) for f in fields], [FieldSpec("answer_of_model")], "Go.")
    example = dspy.Example(**dict.fromkeys(fields, "x")).with_inputs(*fields)
    assert set(example.inputs().keys()) == set(fields)


def test_one_value_is_no_task():
    with pytest.raises(InputError, match="holds the one value 'a' in all 3 rows") as caught:
        output_column("label", "label", ["a", "a", "a"], [], None)
    assert "another class" in caught.value.hint


@pytest.mark.parametrize(
    ("one", "other"), [("1", "1.0"), ("caf\u00e9", "cafe\u0301"), ("news", "ne\u200bws"), ("A", "a")]
)
def test_labels_that_look_alike_are_refused(one: str, other: str):
    with pytest.raises(InputError, match="differ only in case"):
        output_column("label", "label", [one, other, "else", "else"], [], "classification")


def test_labels_with_numbers_in_them_are_different():
    values = ["Q1 2020", "Q2 2020", "3.1", "3.10", "007", "7", "Class 1", "Type 1"]
    assert len(output_column("label", "label", values, [], "classification").labels) == len(values)


def test_blanks_at_the_ends_do_not_count():
    column = output_column("label", "label", ["news ", "news", " sports", "sports"], [], None)
    assert column.labels == ("news", "sports")
    assert dict(column.native) == {"news": "news", "sports": "sports"}


def test_labels_that_differ_in_case_or_blanks_are_named():
    with pytest.raises(InputError, match="'Sports' and 'sports'; 'new s' and 'news'"):
        output_column("label", "label", ["Sports", "sports", "new s", "news "] * 3, [], None)


def test_a_closed_set_keeps_the_values_of_the_file():
    column = output_column("ok", "ok", [True, False, True], [], None)
    assert column.labels == ("false", "true")
    assert column.native == {"true": True, "false": False}


def test_test_labels_must_be_known():
    column = output_column("label", "label", ["a", "b"] * 3, [], None)
    check_test_labels(column, ["b"], "test.csv")
    with pytest.raises(InputError, match=r"test.csv has 2 labels that no labelled row has: c, d") as caught:
        check_test_labels(column, ["a", "c", "d"], "test.csv")
    assert "short_answer" in caught.value.hint
    with pytest.raises(InputError, match="'a' and 'A'"):
        check_test_labels(column, ["A"], "test.csv")


def test_values_are_converted_to_their_kind():
    def convert(kind: Kind, value: object) -> object:
        return OutputColumn("y", "y", kind).convert(value, "a.csv, line 2")

    assert convert("number", "$1,200") == 1200
    assert isinstance(convert("number", 3.0), int)
    assert convert("number", "2.5 cups") == 2.5
    assert convert("text", 5) == "5"
    assert convert("text", " as it is ") == " as it is "
    assert convert("extraction", '["a"]') == ["a"]


@pytest.mark.parametrize(("kind", "what"), [("number", "a number"), ("extraction", "a JSON list or object")])
def test_a_value_that_does_not_fit_is_named(kind: Kind, what: str):
    with pytest.raises(InputError, match=f"a.csv, line 2, column 'y' is not {what}: 'many'") as caught:
        OutputColumn("y", "y", kind).convert("many", "a.csv, line 2")
    assert "--kind classification" in caught.value.hint


def test_character_offsets_are_found_and_dropped():
    text = "at 7 pm for two"
    spans = [
        {"slot": "time", "value": "7 pm", "start": 3, "end": 7},
        {"value": "two", "start": 12, "end": 15},
    ]
    assert offset_keys([spans, []], [text, "none"]) == ("start", "end")
    assert without_keys(spans, ("start", "end")) == [{"slot": "time", "value": "7 pm"}, {"value": "two"}]
    assert without_keys({"start": 1}, ("start",)) == {"start": 1}


def test_other_numbers_are_kept():
    assert offset_keys([[{"item": "tea", "count": 2, "table": 5}]], ["tea for two"]) == ()
    assert offset_keys([["tea"], {"a": 1}], ["tea", "b"]) == ()
