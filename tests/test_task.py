"""Tasks: from labels, from a user's program, from a file; and rows too long for a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import dspy
import pytest

from limbeck.errors import InputError
from limbeck.introspect import predictors_of
from limbeck.task import Task, check_context, task_from_labels
from limbeck.verifiers import NonEmpty

TEXTS = [
    "where is my card",
    "my card is lost",
    "send money home",
    "pay my rent",
    "card not here",
    "wire cash",
]
ROWS = [{"Customer text": t, "label": "card" if "card" in t else "pay"} for t in TEXTS]


def signature(task: Task) -> Any:
    return predictors_of(task.program)[-1].signature


def output(task: Task, name: str) -> Any:
    return signature(task).output_fields[name]


def desc(task: Task) -> str:
    return output(task, "label").json_schema_extra["desc"]


def test_a_labels_file_alone_makes_a_task(tmp_path: Path):
    path = tmp_path / "bank.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in ROWS))
    task = task_from_labels(str(path), output="label")
    assert (task.name, task.kind, task.metric_name) == ("bank", "classification", "accuracy")
    assert (task.input_fields, task.output_fields) == (("Customer_text",), ("label",))
    assert (task.labels, task.label_field) == (("card", "pay"), "label")
    assert output(task, "label").annotation == Literal["card", "pay"]
    assert task.instructions == "Choose the label that fits the Customer text."
    assert task.examples[0].toDict() == {"Customer_text": TEXTS[0], "label": "card"}
    assert task.test is None
    assert task.metric(task.examples[0], dspy.Prediction(label="Card")) == 1.0
    assert task.label_of(task.examples[0]) == "card"
    assert [v.name for v in task.verifiers] == ["label has its type"]


def test_numbers_reason_first():
    rows = [{"q": f"{i} and {i}?", "a": i * 2.5} for i in range(8)]
    task = task_from_labels(rows, output="a", instructions="Add them.")
    assert task.kind == "number"
    assert list(signature(task).output_fields) == ["reasoning", "a"]
    assert output(task, "a").annotation is float
    assert task.instructions == "Add them."
    plain = task_from_labels(rows, output="a", reasoning=False)
    assert list(signature(plain).output_fields) == ["a"]


def test_json_becomes_typed_fields():
    rows = [{"text": f"table at {h}", "slots": json.dumps([{"slot": "time", "value": str(h)}])} for h in range(5)]
    task = task_from_labels(rows, output="slots")
    assert (task.kind, task.metric_name) == ("extraction", "slot F1")
    assert set(get_args(output(task, "slots").annotation)[0].__annotations__) == {"slot", "value"}
    assert task.examples[3]["slots"] == [{"slot": "time", "value": "3"}]
    assert [v.name for v in task.verifiers] == ["slots has its type", "slots is in the input"]


def test_lists_and_objects_do_not_mix():
    rows: list[dict[str, Any]] = [{"t": "a", "y": ["x"]}, {"t": "b", "y": {"x": 1}}]
    with pytest.raises(InputError, match="'y' mixes lists and objects"):
        task_from_labels(rows, output="y")


def test_short_answers_and_text():
    rows = [{"q": f"question {i}", "a": f"answer number {i}", "b": "many words " * 9 + str(i)} for i in range(6)]
    assert task_from_labels(rows, output="a", inputs=["q"]).metric_name == "token F1"
    task = task_from_labels(rows, output="b", inputs=["q"], name="essay")
    assert (task.kind, task.metric_name, task.name) == ("text", "chrF", "essay")
    assert task.verifiers == (NonEmpty("b"),)


def test_several_outputs_are_a_program():
    rows = [{"text": t, "label": "ab"[i % 2], "n": i * 1.5} for i, t in enumerate(TEXTS)]
    task = task_from_labels(rows, output=["label", "n"], label_descriptions={"a": "first", "b": "second"})
    assert (task.kind, task.label_field, task.labels) == ("program", "label", ("a", "b"))
    assert task.metric(task.examples[1], dspy.Prediction(label="b", n="9")) == 0.5
    assert desc(task) == "a: first\nb: second"
    with_two = task_from_labels([{**r, "more": r["label"]} for r in rows], output=["label", "more"], inputs=["text"])
    assert (with_two.label_field, with_two.labels) == ("", ())
    assert with_two.label_of(with_two.examples[0]) == ""


def test_list_inputs_keep_their_type():
    rows = [{"q": f"q{i}", "options": ["A) x", "B) y"], "label": "AB"[i % 2]} for i in range(6)]
    task = task_from_labels(rows, output="label")
    fields: Any = signature(task).input_fields
    assert (fields["q"].annotation, fields["options"].annotation) == (str, list[str])


def test_descriptions_are_in_the_prompt_and_replace_each_other():
    task = task_from_labels(ROWS, output="label", label_descriptions={"card": "about cards"})
    assert task.warnings == ("missing-descriptions: 1 of 2 labels: pay",)
    assert desc(task) == "card: about cards"
    later = task.with_descriptions({"pay": "about  money", "card": "plastic"})
    assert desc(later) == "card: plastic\npay: about money"
    assert later.label_descriptions == {"card": "plastic", "pay": "about money"}
    assert desc(task) == "card: about cards", "the first task is unchanged"
    assert desc(later.with_descriptions({})) == "${label}"
    with pytest.raises(InputError, match="no labelled row has"):
        task.with_descriptions({"crad": "x"})


def test_descriptions_survive_saving_as_json(tmp_path: Path):
    task = task_from_labels(ROWS, output="label").with_descriptions({"card": "plastic", "pay": "money"})
    task.program.save(tmp_path / "program.json")
    fresh = task_from_labels(ROWS, output="label")
    fresh.program.load(tmp_path / "program.json")
    assert desc(fresh) == "card: plastic\npay: money"


def test_rows_go_in_and_out_under_the_users_names():
    rows = [{"My text": t, "ok?": i % 2 == 0} for i, t in enumerate(TEXTS)]
    task = task_from_labels(rows, output="ok?")
    assert task.labels == ("false", "true")
    assert task.inputs_of({"My text": "hello", "more": 1}) == {"My_text": "hello"}
    assert task.outputs_of(dspy.Prediction(ok="true")) == {"ok?": True}
    assert task.outputs_of({}) == {}
    with pytest.raises(InputError, match="no column 'My text'"):
        task.inputs_of({"text": "hello"})
    numbers = task_from_labels([{"q": str(i), "a": i * 7} for i in range(9)], output="a")
    assert numbers.outputs_of({"a": 14.0}) == {"a": 14}


def test_the_fingerprint_changes_with_what_matters_alone():
    first = task_from_labels(ROWS, output="label")
    assert task_from_labels(ROWS, output="label", name="other").fingerprint == first.fingerprint
    others = [
        task_from_labels(ROWS[:-1], output="label"),
        task_from_labels(ROWS, output="label", instructions="Choose."),
        task_from_labels(ROWS, output="label", unlabeled=[{"Customer text": "new"}]),
        task_from_labels(ROWS, output="label", test=[{"Customer text": "new", "label": "pay"}]),
        task_from_labels(ROWS, output="label", reasoning=True),
        task_from_labels(ROWS, output="label", kind="short_answer"),
        first.with_descriptions({"card": "x"}),
    ]
    assert len({first.fingerprint, *(t.fingerprint for t in others)}) == len(others) + 1
    assert first.with_descriptions({"card": "x"}).with_descriptions({}).fingerprint == first.fingerprint


class Sort(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.think = dspy.Predict("text -> note")
        self.sort = dspy.Predict("text, note -> label: bool")


def examples(n: int = 4) -> list[dspy.Example]:
    return [dspy.Example(text=t, label="card" in t).with_inputs("text") for t in TEXTS[:n]]


def test_any_program_makes_a_task():
    test = [*examples(1), dspy.Example(text="new", label=True).with_inputs("text")]
    pool = [{"text": "NEW"}, {"text": "other", "id": 3}]
    task = Task.from_program(Sort(), examples(), test=test, unlabeled=pool, label_descriptions={"True": "cards"})
    assert (task.kind, task.labels, task.metric_name) == ("classification", ("True", "False"), "accuracy")
    assert task.test == (test[1],)
    assert task.unlabeled == ({"text": "other"},)
    assert [w.split(":")[0] for w in task.warnings] == ["test-overlap", "unlabeled-overlap"]
    assert task.label_of(task.examples[0]) == "True"
    assert desc(task) == "True: cards"
    assert task.metric(task.examples[0], dspy.Prediction(label=True)) == 1.0
    assert task.outputs_of(dspy.Prediction(label=False)) == {"label": False}


def test_a_users_metric_and_verifiers_are_kept():
    def half(example: Any, prediction: Any, trace: Any = None) -> float:
        return 0.5

    rows = [dspy.Example(text=t, answer=t).with_inputs("text") for t in TEXTS]
    program = dspy.Predict("text -> answer")
    task = Task.from_program(program, rows, half, verifiers=[NonEmpty("answer")], name="mine")
    assert (task.metric, task.metric_name, task.kind, task.name) == (half, "half", "program", "mine")
    assert task.verifiers == (NonEmpty("answer"),)


def test_a_users_examples_are_checked():
    with pytest.raises(InputError, match="example 1 has label = 'maybe'"):
        Task.from_program(Sort(), [dspy.Example(text="a", label="maybe").with_inputs("text")] * 2)
    with pytest.raises(InputError, match="all 2 test examples are also labelled"):
        Task.from_program(Sort(), examples(), test=examples(2))


def words(text: str) -> int:
    return len(text.split())


def long_task(**extra: Any) -> Task:
    rows = [{"text": f"message {i}", "label": "ab"[i % 2]} for i in range(10)]
    return task_from_labels([*rows, {"text": "long " * 50, "label": "a"}], output="label", **extra)


def test_rows_that_fit_change_nothing():
    task = long_task()

    def never(text: str) -> int:
        raise AssertionError("a row of few bytes needs no tokenizer")

    assert check_context(task, never, 1000) == task


def test_long_rows_are_left_out_and_named():
    task = check_context(long_task(unlabeled=[{"text": "far too long " * 30}, {"text": "short"}]), words, 40, reserve=5)
    assert len(task.examples) == 10
    assert task.unlabeled == ({"text": "short"},)
    assert task.warnings == (
        "too-long: 1 of 11 labelled rows, left out: longer than 35 tokens",
        "too-long: 1 of 2 unlabelled rows, left out: longer than 35 tokens",
    )


def test_long_test_rows_stay():
    test: list[Mapping[str, Any]] = [{"text": f"new {i}", "label": "a"} for i in range(9)]
    task = check_context(long_task(test=[*test, {"text": "endless " * 60, "label": "b"}]), words, 55)
    assert task.test is not None
    assert len(task.test) == 10
    assert task.warnings == ("too-long: 1 of 10 test rows, which count as wrong: longer than 55 tokens",)


def test_mostly_long_rows_are_an_error():
    with pytest.raises(InputError, match="11 of 11 labelled rows") as caught:
        check_context(long_task(), words, 40, reserve=40)
    assert "longer context" in caught.value.hint
