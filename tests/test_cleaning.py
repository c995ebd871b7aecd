"""Cleaning: what is left out is named, and too much of it is an error."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.cleaning import Row, drop_duplicates, drop_seen, input_key, input_value, rare_classes, take_rows
from limbeck.errors import InputError
from limbeck.inputs import read_table

GOOD = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(10)]


def row(text: str, label: Any, line: int = 1) -> Row:
    return Row({"text": text}, {"label": label}, f"line {line}")


def test_rows_come_under_field_names():
    rows, warnings = take_rows(read_table([{"My text": 3, "y": True}]), {"My text": "My_text"}, {"y": "y"})
    assert rows == [Row({"My_text": "3"}, {"y": True}, "list, row 1")]
    assert warnings == []


@pytest.mark.parametrize(
    ("bad", "warning"),
    [
        ({"text": " ", "label": "a"}, "empty-inputs: left out 1 of 11 rows that have nothing in 'text'"),
        ({"text": "x", "label": None}, "missing-output: left out 1 of 11 rows that have no value in 'label'"),
    ],
)
def test_blank_rows_are_left_out_and_named(bad: dict[str, Any], warning: str):
    rows, warnings = take_rows(read_table([*GOOD, bad]), {"text": "text"}, {"label": "label"})
    assert len(rows) == 10
    assert warnings == [f"{warning}: list, row 11"]


def test_too_many_blank_rows_are_an_error():
    with pytest.raises(InputError, match="3 of 13 rows have no value in 'label'"):
        take_rows(read_table([*GOOD, *[{"text": "x"}] * 3]), {"text": "text"}, {"label": "label"})


def test_one_blank_input_of_two_is_empty_text():
    rows, _ = take_rows(read_table([{"a": None, "b": "x"}]), {"a": "a", "b": "b"}, {})
    assert rows[0].inputs == {"a": "", "b": "x"}


def test_inputs_become_text_or_lists_of_text():
    assert input_value({"a": 1}) == '{"a": 1}'
    assert input_value([1, 2]) == "[1, 2]"
    assert input_value(["a"]) == ["a"]
    assert input_value(True) == "true"


def test_the_same_text_is_the_same_row():
    assert input_key({"a": "X  y", "b": ["Z"]}) == input_key({"b": ["z"], "a": " x Y "})
    assert input_key({"a": "x"}) != input_key({"b": "x"})


def test_repeated_rows_are_kept_once():
    kept, warnings = drop_duplicates([row("Hi", "a"), row("ho", "b", 2), row(" hi ", "a", 3)], open_ended=False)
    assert [r.where for r in kept] == ["line 1", "line 2"]
    assert warnings == ["duplicate-rows: left out 1 row whose input comes earlier: line 3"]


def test_contradictory_rows_are_all_set_aside():
    rows = [row(f"text {i}", "ab"[i % 2], i) for i in range(10)]
    kept, warnings = drop_duplicates([*rows, row("text 0", "b", 11)], open_ended=False)
    assert len(kept) == 9
    assert warnings == [
        "contradictory-rows: left out 2 of 11 rows that have the same input and different outputs: "
        "line 0 (a), line 11 (b)"
    ]


def test_many_contradictions_are_an_error():
    with pytest.raises(InputError, match=r"2 of 4 rows have the same input and different outputs: line 1 \(a\)"):
        drop_duplicates([row("x", "a"), row("x", "b", 2), row("y", "a"), row("z", "b")], open_ended=False)


def test_open_outputs_can_have_several_answers():
    kept, warnings = drop_duplicates([row("x", "an answer"), row("x", "another", 2)], open_ended=True)
    assert [r.outputs["label"] for r in kept] == ["an answer"]
    assert warnings[0].startswith("duplicate-rows")


def test_seen_rows_are_dropped():
    kept, warnings = drop_seen([row("x", "a"), row("y", "a")], [input_key({"text": "X"})], name="n", what="rows")
    assert [r.inputs["text"] for r in kept] == ["y"]
    assert warnings == ["n: left out 1 of 2 rows"]
    assert drop_seen(kept, [], name="n", what="rows") == (kept, [])


def test_rare_classes_are_named():
    assert rare_classes(["a", "a", "b"]) == ["rare-classes: 1 of 2 classes with one row only: b"]
    assert rare_classes(["a", "a"]) == []
