"""Preparing: which columns are inputs, and how the three sources are kept apart."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.errors import InputError
from limbeck.prepare import Prepared, prepare

ROWS = [{"id": i, "text": f"message {i}", "label": "ab"[i % 2]} for i in range(12)]


def names(data: Prepared) -> list[str]:
    return [w.split(":")[0] for w in data.warnings]


def test_inputs_are_the_other_columns_but_ids():
    data = prepare(ROWS, output="label")
    assert data.inputs == {"text": "text"}
    assert names(data) == ["id-column"]
    assert prepare(ROWS, output="label", inputs=["id"]).inputs == {"id": "id"}


def test_columns_that_the_pool_lacks_are_not_inputs():
    rows = [{**r, "solution": f"s{i}"} for i, r in enumerate(ROWS)]
    data = prepare(rows, output="label", unlabeled=[{"text": "new"}])
    assert data.inputs == {"text": "text"}
    assert "columns-left-out: solution not in list, so not an input" in data.warnings
    with pytest.raises(InputError, match="no column 'solution'"):
        prepare(rows, output="label", inputs=["solution"], unlabeled=[{"text": "new"}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "lable"}, "no column 'lable'; did you mean 'label'"),
        ({"output": "label", "inputs": ["tekst"]}, "no column 'tekst'; did you mean 'text'"),
        ({"output": "label", "inputs": ["text", "label"]}, "'label' is both input and output"),
        ({"output": "label", "test": [{"txt": "x", "label": "a"}]}, "no column 'text'"),
        ({"output": "label", "unlabeled": [{"txt": "x"}]}, "no column 'text'"),
        ({"output": "label", "test": [{"text": "x"}]}, "no column 'label'"),
        ({"output": ["text", "label"]}, "no input column"),
        ({"output": "label", "kind": "tags"}, "no kind 'tags'"),
        ({"output": "label", "kind": "number"}, "is not a number: 'a'"),
        ({"output": "label", "test": [{"text": "x", "label": "c"}]}, "no labelled row has: c"),
        ({"output": "label", "test": ROWS[:2]}, "all 2 usable rows of list are also labelled"),
    ],
)
def test_wrong_columns_are_named(options: dict[str, Any], message: str):
    with pytest.raises(InputError) as caught:
        prepare(ROWS, **options)
    assert message in caught.value.message
    assert caught.value.valid
    assert caught.value.hint


def test_test_and_pool_rows_that_are_known_are_dropped():
    test = [{"text": "Message  1", "label": "b"}, {"text": "new", "label": "a"}]
    pool = [
        {"text": "message 2"},
        {"text": "NEW"},
        {"text": "fresh"},
        {"text": "fresh "},
        {"text": "f2"},
        {"text": "f3"},
    ]
    data = prepare(ROWS, output="label", test=test, unlabeled=pool)
    assert data.test is not None
    assert [r.inputs["text"] for r in data.test] == ["new"]
    assert [r.inputs["text"] for r in data.unlabeled] == ["fresh", "f2", "f3"]
    assert names(data) == ["id-column", "test-overlap", "unlabeled-overlap", "duplicate-rows"]


def test_test_rows_that_contradict_each_other_are_named_and_stay():
    test = [{"text": "new", "label": "a"}, {"text": "New ", "label": "b"}, {"text": "other", "label": "a"}]
    data = prepare(ROWS, output="label", test=test)
    assert data.test is not None
    assert len(data.test) == 3
    (warning,) = [w for w in data.warnings if w.startswith("contradictory-test-rows")]
    assert "2 of 3" in warning


def test_a_column_that_gives_the_output_away_is_named():
    rows = [{"text": f"m {i}", "intent": f"in_{i % 4}", "domain": "ab"[i % 2]} for i in range(12)]
    data = prepare(rows, output="domain")
    assert [w for w in data.warnings if w.startswith("gives-away: every value of 'intent'")]
    assert "leave it out with --input text" in " ".join(data.warnings)
    assert "gives-away" not in names(prepare(rows, output="domain", inputs=["text", "intent"]))


def test_labels_with_blanks_are_read_without_and_named():
    rows = [{"text": f"message {n}", "label": ("a", "b", "a ")[n % 3]} for n in range(12)]
    data = prepare(rows, output="label")
    assert data.outputs[0].labels == ("a", "b")
    (warning,) = [w for w in data.warnings if w.startswith("labels-trimmed")]
    assert "'a '" in warning


def test_whole_numbers_that_could_be_classes_are_named():
    rows = [{"text": f"message {n}", "label": n % 15} for n in range(60)]
    data = prepare(rows, output="label")
    assert data.outputs[0].kind == "number"
    assert any(w.startswith("whole-numbers: 'label' holds 15") for w in data.warnings)


def test_different_answers_that_could_be_classes_are_named():
    rows = [{"q": f"capital {i}", "a": a} for i, a in enumerate(["Paris", "Rome", "Oslo", "Bern"])]
    data = prepare(rows, output="a")
    assert data.outputs[0].kind == "short_answer"
    assert "add --kind classification" in data.warnings[-1]
    assert prepare(rows, output="a", kind="classification").outputs[0].labels == (
        "Bern",
        "Oslo",
        "Paris",
        "Rome",
    )


def test_offsets_are_left_out_of_every_source():
    rows = [{"text": f"at {h} pm", "slots": [{"v": f"{h} pm", "from": 3, "to": 7}]} for h in range(1, 6)]
    test = [{"text": "6 pm it is", "slots": [{"v": "6 pm", "from": 0, "to": 4}]}]
    data = prepare(rows, output="slots", test=test)
    assert data.rows[0].outputs == {"slots": [{"v": "1 pm"}]}
    assert data.test is not None
    assert data.test[0].outputs == {"slots": [{"v": "6 pm"}]}
    assert names(data) == ["offsets-left-out"]


def test_a_class_lost_to_contradictions_is_lost_to_the_task():
    rows = [*ROWS, {"text": "odd", "label": "c"}, {"text": "odd", "label": "a"}]
    assert prepare(rows, output="label", inputs=["text"]).outputs[0].labels == ("a", "b")


def test_contradictions_can_leave_one_class():
    rows = [
        *[{"text": f"m {i}", "label": "a"} for i in range(12)],
        {"text": "x", "label": "b"},
        {"text": "x", "label": "a"},
    ]
    with pytest.raises(InputError, match="fewer than two classes"):
        prepare(rows, output="label")
