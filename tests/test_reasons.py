"""A student that learns step by step: where rationales come from, what they cost, and that it answers without."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from chat_server import Body, Reply, answer, serve
from conftest import tiny_model, tiny_tokenizer
from tiny_run import write_rows

from limbeck.models import CompactAdapter
from limbeck.pipeline.config import EFFORTS, RunConfig
from limbeck.pipeline.deploy import load_run
from limbeck.pipeline.forecast import forecast
from limbeck.pipeline.run import run
from limbeck.pipeline.students import Recipe, StudentPlan, training_rows
from limbeck.pipeline.ways import DIRECT, OWN, direct_way
from limbeck.records import Provenance, Record
from limbeck.task import task_from_labels

SMALL = replace(
    tiny_run.SMALL, synthetic_rows=0, demo_tokens=40, gold_epochs=1, student_epochs=1, samples=1, demos=(False,)
)
FRUIT = ["apples", "pears", "plums", "figs"]


def _numbers(reasoning: bool) -> StudentPlan:
    rows = [{"question": f"What is {i} and {i}?", "answer": 2 * i} for i in range(4)]
    return StudentPlan("embedded", CompactAdapter(), task_from_labels(rows, output="answer", reasoning=reasoning))


def _record(i: int, rationale: str = "") -> Record:
    return Record({"question": f"What is {i} and {i}?"}, {"answer": 2 * i}, Provenance("pool"), rationale=rationale)


@pytest.mark.parametrize("reasoning", [False, True])
def test_a_record_with_a_rationale_is_two_rows_and_answers_stand_alone(reasoning: bool) -> None:
    plan, tokenizer = _numbers(reasoning), tiny_tokenizer()
    recipe = Recipe(1e-3, 1.0, way=direct_way(plan.task), rationales=1.0)
    assert recipe.way == (DIRECT if reasoning else OWN)
    rows = training_rows(plan, recipe, [_record(3, "3 + 3 = 6"), _record(4)], tokenizer)
    said = [tokenizer.decode(list(row.branches[0][0])) for row in rows]
    assert [re.sub(r"<.*", "", text) for text in said] == ["6", "8", "3 + 3 = 6"]
    asked = [tokenizer.decode(list(row.prompt)) for row in rows]
    assert "reasoning" not in asked[0]
    assert "Do not answer yet" in asked[2]
    assert rows[2].branches[0][1] == 1.0, "a rationale counts as much as its answer: the objective takes means"
    shares = training_rows(plan, replace(recipe, rationales=0.25), [_record(3, "3 + 3 = 6")], tokenizer)
    assert [row.branches[0][1] for row in shares] == [1.0, 0.25]


def test_without_the_objective_a_rationale_is_no_second_task() -> None:
    tokenizer = tiny_tokenizer()
    rows = training_rows(_numbers(False), Recipe(1e-3, 1.0), [_record(3, "3 + 3 = 6")], tokenizer)
    assert len(rows) == 1


def _text(i: int) -> str:
    kinds = f"Bus {i} is late again today", f"Count {i} and {i + 3} {FRUIT[i % 4]}, please"
    return kinds[i % 2]


def _row(i: int) -> dict[str, Any]:
    return {"text": _text(i), "label": ("transit", "sums")[i % 2]}


def _sorter(body: Body, n: int) -> Reply:
    """Sort by a word, with reasons where asked; one text has none that can be read."""
    system, text = str(body["messages"][0]["content"]), str(body["messages"][-1]["content"])
    label, word = ("transit", "Bus") if "Bus" in text else ("sums", "Count")
    if "reasoning" not in system:
        return answer(label)
    if " 80 " in text:
        return answer("I cannot say")
    return answer(f"[[ ## reasoning ## ]]\nIt says {word}.\n\n[[ ## label ## ]]\n{label}")


def test_the_teacher_is_asked_once_for_each_rationale_and_the_student_answers_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EFFORTS, "quick", SMALL)  # pyright: ignore[reportArgumentType, reportUnknownMemberType]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    student: Any = tiny_model()
    student.model.save_pretrained(tmp_path / "student")
    student.tokenizer.save_pretrained(tmp_path / "student")
    with serve(_sorter) as server:
        config = RunConfig(
            out=str(tmp_path / "run"),
            labels=write_rows(tmp_path / "labels.jsonl", [_row(i) for i in range(8)]),
            output=("label",),
            test=write_rows(tmp_path / "test.jsonl", [_row(i) for i in range(40, 44)]),
            unlabeled=write_rows(tmp_path / "pool.jsonl", [{"text": _text(i)} for i in range(80, 86)]),
            teacher="openai/gpt-5-mini",
            student=f"hf:{tmp_path / 'student'}",
            api_base=server.url,
            encoder=False,
            objective="step-by-step",
        )
        report = run(config).report
        assert report is not None
        (told,) = [stage for stage in report["stages"] if stage["name"] == "rationales"]
        reasoned = [b for b in server.bodies if "reasoning" in str(b["messages"][0]["content"])]
        kept = next(stage["kept"] for stage in report["stages"] if stage["name"] == "curate")
        assert told["records_in"] == 8 + kept == len(reasoned)
        assert told["kept"] + sum(told["rejected"].values()) == told["records_in"]
        assert told["kept"] >= 8
        (line,) = [line for line in forecast(config).lines if line.stage == "rationales"]
        assert kept + 8 <= line.calls <= 8 + 6
        assert not any(one.stage == "rationales" for one in forecast(replace(config, objective="sft")).lines)
        tuned = next(stage for stage in report["stages"] if stage["name"] == "finetune student")
        assert {one["rationales"] for one in tuned["tried"]} == {1.0}
        asked = len(server.bodies)
        run(config)
        assert len(server.bodies) == asked
    stored = json.loads((config.folder / "students.json").read_text(encoding="utf-8"))
    assert stored["systems"]["student"]["way"] == OWN
    assert set(load_run(config.folder, "student")({"text": "Bus 3 is late"})) == {"label"}
