"""Closed sets: which values there are, how a model's words are matched to them."""

from __future__ import annotations

import enum
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.models.labels import closed_values, label_text, match_label, plain, sharpen


class Mood(enum.Enum):
    GOOD = "in good spirits"
    BAD = "low"


@pytest.mark.parametrize(
    ("annotation", "values"),
    [
        (Literal["a", 2, True], ("a", 2, True)),
        (bool, (True, False)),
        (Mood, (Mood.GOOD, Mood.BAD)),
        (str, None),
        (list[bool], None),
        (int | None, None),
    ],
)
def test_closed_values(annotation: Any, values: Any):
    assert closed_values(annotation) == values


def test_label_texts():
    assert [label_text(value) for value in (Mood.BAD, False, 3, "x y")] == ["low", "False", "3", "x y"]


@pytest.mark.parametrize(
    ("text", "values", "value"),
    [
        ("Card Lost", ("card lost", "card"), "card lost"),
        ("`card`.", ("card lost", "card"), "card"),
        ("card\n\nBecause it says so.", ("card lost", "card"), "card"),
        ("It says so, hence\n**card**", ("card lost", "card"), "card"),
        ("yes", (True, False), True),
        ("FALSE", (True, False), False),
        ("Low", tuple(Mood), Mood.BAD),
        ("good", tuple(Mood), Mood.GOOD),
        ("2", (1, 2), 2),
        ("a", ("A", "a"), "a"),
    ],
)
def test_a_text_names_a_label(text: str, values: Any, value: Any):
    assert match_label(text, values) == value


@pytest.mark.parametrize("text", ["not spam", "", "spam or ham", "spammy"])
def test_a_text_that_names_none_is_refused(text: str):
    with pytest.raises(ValueError, match="is not one of spam; ham"):
        match_label(text, ("spam", "ham"))


@given(st.text())
def test_plain_changes_nothing_the_second_time(text: str):
    assert plain(plain(text)) == plain(text)


def test_sharpening_keeps_the_order_and_sums_to_one():
    assert sharpen({"a": 0.2, "b": 0.8}, 1.0) == pytest.approx({"a": 0.2, "b": 0.8})
    cold = sharpen({"a": 0.2, "b": 0.8}, 0.1)
    assert cold["b"] > 0.999
    assert sum(cold.values()) == pytest.approx(1)
