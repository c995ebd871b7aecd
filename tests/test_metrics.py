"""Metrics: known values, bounds, and indifference to garbage."""

from __future__ import annotations

from enum import Enum
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from limbeck.metrics import (
    Kind,
    chrf,
    default_metric,
    exact_match,
    get_field,
    is_number,
    normalize,
    parse_number,
    same_label,
    same_number,
    slot_f1,
    token_f1,
)

KINDS: tuple[Kind, ...] = ("classification", "number", "short_answer", "extraction", "text", "program")


class Colour(Enum):
    RED = "red"


class Slot(BaseModel):
    slot: str
    value: str | None = None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234.5", 1234.5),
        ("$3", 3.0),
        ("-$5", -5.0),
        ("\u22125", -5.0),
        ("42 apples", 42.0),
        ("12 - 5 = 7 apples.", 7.0),
        ("the answer is 186.", 186.0),
        ("3/4", 0.75),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("5%", 5.0),
        ("x-5", 5.0),
        ("1,2345", 2345.0),
        ("1/0", None),
        ("none", None),
        ("", None),
        (None, None),
        (True, None),
        (float("nan"), None),
        ("9" * 400, None),
        (10**400, None),
        (7, 7.0),
    ],
)
def test_numbers_are_read_out_of_text(text: Any, number: float | None):
    assert parse_number(text) == number


@given(st.integers(-(10**9), 10**9), st.sampled_from(["{}", "${}", "about {} cups", "{:,}", "= {:,} .", "{}.0"]))
def test_a_number_survives_its_dress(number: int, dress: str):
    assert parse_number(dress.format(abs(number))) == abs(number)
    assert parse_number(f"{number:,}") == number


@given(st.text())
def test_reading_a_number_never_raises(text: str):
    number = parse_number(text)
    assert number is None or number == number
    assert not is_number(text) or number is not None


@pytest.mark.parametrize("text", ["12", "-3.5", "1,200", "$4", "7 %", " 8 ", 3, 2.5])
def test_a_number_alone_is_a_number(text: Any):
    assert is_number(text)


@pytest.mark.parametrize("text", ["2 cups", "2020-01-02", "1,23", "v2", "", "-", True, None, "3/4", "1.2.3"])
def test_anything_else_is_not(text: Any):
    assert not is_number(text)


def test_equal_numbers_match_within_rounding():
    assert same_number("0.33333", 1 / 3) == 1.0
    assert same_number("1,000", "1000 dollars") == 1.0
    assert same_number(0, "0.0") == 1.0
    assert same_number(100, 101) == 0.0
    assert same_number("five", "5") == 0.0
    assert same_number("unknown", "Unknown.") == 1.0
    assert same_number(5, "many") == 0.0


def test_labels_match_but_for_case_and_outer_blanks():
    assert same_label("Card  lost", " card lost ") == 1.0
    assert same_label("red", Colour.RED) == 1.0
    assert same_label("a", "b") == 0.0


def test_normalisation_follows_squad():
    assert normalize("The  Eiffel Tower!") == "eiffel tower"
    assert normalize("A") == "a", "an answer that is an article is kept"
    assert exact_match("the Eiffel tower", "Eiffel Tower.") == 1.0
    assert exact_match("?", "!") == 0.0


def test_token_f1_gives_part_marks():
    assert token_f1("Eiffel Tower", "the Eiffel Tower in Paris") == pytest.approx(2 * 2 / 6)
    assert token_f1("Paris", "London") == 0.0


def test_slots_are_compared_as_pairs():
    gold = {"time": "7 pm", "people": 2, "names": ["Ann", "Bob"], "date": None}
    assert slot_f1(gold, gold) == 1.0
    assert slot_f1(gold, {"time": "7 PM", "people": "2"}) == pytest.approx(2 * 2 / 6)
    assert slot_f1({}, {}) == 1.0
    assert slot_f1({}, {"time": "7 pm"}) == 0.0
    assert slot_f1({"time": ""}, {}) == 1.0


def test_lists_are_compared_as_multisets():
    gold = [{"slot": "time", "value": "7 pm"}, {"slot": "time", "value": "8 pm"}]
    assert slot_f1(gold, list(reversed(gold))) == 1.0
    assert slot_f1(gold, [gold[0], gold[0]]) == 0.5
    assert slot_f1(["a", "b"], '["B", "c"]') == 0.5
    assert slot_f1([], []) == 1.0
    assert slot_f1([[1, 2]], [[1, 2.0]]) == 1.0
    assert slot_f1([True], [False]) == 0.0


def test_models_and_mappings_are_the_same():
    assert slot_f1([{"slot": "time"}], [Slot(slot="time")]) == 1.0
    assert slot_f1({"slot": "time"}, Slot(slot="time", value="7")) == pytest.approx(2 / 3)


def test_garbage_is_worth_nothing():
    assert slot_f1([], "no list") == 0.0
    assert slot_f1({"a": "b"}, "{broken") == 0.0


def test_chrf_is_the_published_formula():
    assert chrf("a cat sat", "a cat sat") == 1.0
    assert chrf("abc", "xyz") == 0.0
    assert chrf("", "") == 1.0
    assert chrf("abc", "") == 0.0
    # By hand: unigrams 2/2 and 2/3, bigrams 1/1 and 1/2; P = 1, R = 7/12; F2 = 5PR / (4P + R).
    assert chrf("abc", "ab") == pytest.approx(5 * (7 / 12) / (4 + 7 / 12))


def test_the_default_metric_is_named_after_its_kinds():
    assert default_metric({"y": "number"}).name == "number match"
    both = default_metric({"label": "classification", "n": "number"})
    assert both.name == "mean of label accuracy, n number match"
    example = dspy.Example(text="t", label="a", n=3).with_inputs("text")
    assert both(example, dspy.Prediction(label="A", n="4")) == 0.5
    assert both(example, dspy.Prediction(label="A"), trace=[]) == 0.5
    assert both(example, None) == 0.0


def test_a_missing_field_is_none():
    assert get_field(dspy.Prediction(a=1), "b") is None
    assert get_field(None, "b") is None
    assert get_field("text", "b") is None
    assert get_field({"b": 2}, "b") == 2


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(KINDS), anything, anything)
def test_scores_stay_between_0_and_1(kind: Kind, gold: Any, predicted: Any):
    metric = default_metric({"y": kind})
    assert 0.0 <= metric({"y": gold}, {"y": predicted}) <= 1.0
    assert metric({"y": gold}, {"y": predicted}, []) == metric({"y": gold}, {"y": predicted})


@given(st.sampled_from(KINDS), st.text(min_size=1).filter(str.strip))
def test_the_gold_answer_scores_1(kind: Kind, answer: str):
    value: Any = [answer] if kind == "extraction" else answer
    assert default_metric({"y": kind})({"y": value}, {"y": value}) == 1.0
