"""A student's errors choose what is written next: labels, contrasted labels, demonstrations."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.compile.focus import Focus, focus_of
from limbeck.compile.source import Source
from limbeck.compile.synthesize import SynthesisConfig, label_counts
from limbeck.records import Provenance, Record

GOLD = [Record({"text": f"row {i}"}, {"label": "abc"[i % 3]}, Provenance("gold", seed=i)) for i in range(9)]


def test_missed_labels_get_more_rows_and_confused_ones_stand_side_by_side():
    said = ["a", "a", "c"] * 3  # every b is taken for a
    focus = focus_of(GOLD, [1.0, 0.0, 1.0] * 3, said, label_field="label")
    assert focus.labels == {"b": 1.0}
    assert focus.confused == {"b": ("a",), "a": ("b",)}
    assert focus.others("b", ["c", "a", "b"]) == ["a", "c", "b"]
    assert focus.others("c", ["b", "a"]) == ["b", "a"]
    source = Source({"text": str}, "Name it.", tuple(GOLD), label_field="label", labels=("a", "b", "c"))
    assert label_counts(source, SynthesisConfig(total=60, focus=focus)) == {"a": 10, "b": 40, "c": 10}


def test_a_label_nobody_asked_for_gets_no_rows():
    focus = Focus(labels={"b": 1.0})
    source = Source({"text": str}, "Name it.", tuple(GOLD), label_field="label", labels=("a", "b"))
    counts = label_counts(source, SynthesisConfig(total=10, distribution={"a": 1.0}, focus=focus))
    assert counts == {"a": 10}


def test_weak_rows_are_drawn_more_often_and_strong_ones_still():
    focus = focus_of(GOLD, [0.0, *[1.0] * 8])
    seen = Counter(row.id for seed in range(600) for row in focus.draw(GOLD, 3, random.Random(seed)))
    others = [seen[row.id] for row in GOLD[1:]]
    assert seen[GOLD[0].id] > 2 * max(others)
    assert min(others) > 50
    assert focus.draw(GOLD, 0, random.Random(0)) == []


@given(st.lists(st.floats(0, 1), min_size=9, max_size=9), st.lists(st.sampled_from("abc"), min_size=9, max_size=9))
def test_shares_sum_to_one_and_every_asked_label_keeps_half_of_its_own(scores: list[float], said: list[str]):
    shares = focus_of(GOLD, scores, said, label_field="label").distribution({"a": 1.0, "b": 2.0, "c": 1.0})
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["b"] >= 0.25
    assert min(shares.values()) >= 0.125


def test_without_a_focus_nothing_changes():
    focus = Focus()
    assert focus.draw(GOLD, 4, random.Random(3)) == random.Random(3).sample(GOLD, 4)
    assert focus.distribution({"a": 3, "b": 1}) == {"a": 0.75, "b": 0.25}
    assert focus.others("a", ["c", "b"]) == ["c", "b"]
