"""How students answer: by the task's program, without its rationale, by chains that a calculator fills."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import dspy
import pytest
import tiny_run
from chat_server import Body, Reply, answer, serve
from conftest import tiny_model, tiny_tokenizer
from scripted import scripted
from tiny_run import write_rows

from limbeck.models import CompactAdapter
from limbeck.pipeline import students
from limbeck.pipeline.config import EFFORTS, RunConfig
from limbeck.pipeline.curation import Learnable
from limbeck.pipeline.deploy import load_run
from limbeck.pipeline.run import run
from limbeck.pipeline.students import Recipe, StudentPlan, training_rows
from limbeck.pipeline.ways import CHAIN, DIRECT, OWN, by_chains, direct_way, student_program
from limbeck.records import Provenance, Record, read_records, stable_hash
from limbeck.task import Task, task_from_labels

SMALL = replace(tiny_run.SMALL, demo_tokens=40, gold_epochs=1, student_epochs=1, samples=1, demos=(False,))
FRUIT = ["apples", "pears", "plums", "figs", "dates", "limes", "nuts"]
SUMS = [
    "Ann has {a} {x}, buys {b}. How many?",
    "A crate holds {a} {x}, the barrow {b}. Together?",
    "After {a} {x} the cook peels {b}: how many?",
    "{a} {x} fell, then {b}. Count them.",
]


def _sum(i: int) -> dict[str, Any]:
    return {"question": SUMS[i % 4].format(a=i, b=i + 3, x=FRUIT[i % 7]), "answer": 2 * i + 3}


def _task(**more: Any) -> Task:
    return task_from_labels([_sum(i) for i in range(6)], output="answer", **more)


def _predict(task: Task, way: Any, said: str) -> Any:
    lm, _ = scripted(lambda _: said)
    with dspy.context(lm=lm, adapter=CompactAdapter()):
        return cast(Any, student_program(task, way))(question="How many?")


def test_one_task_is_answered_in_three_ways() -> None:
    task = _task()
    both = "[[ ## reasoning ## ]]\n2 + 3 = 5\n\n[[ ## answer ## ]]\n5"
    assert _predict(task, OWN, both).answer == 5
    assert _predict(task, DIRECT, "5").answer == 5
    made = _predict(task, CHAIN, "He has [2 + 3 = y1]. The answer is y1.")
    assert (made.answer, made.filled) == (5, "He has 2 + 3 = 5. The answer is 5.")


def test_each_way_survives_its_file(tmp_path: Path) -> None:
    task, plan = _task(), StudentPlan("embedded", CompactAdapter(), _task())
    for way in (OWN, DIRECT, CHAIN):
        cast(Any, plan.program(Recipe(1e-3, 1.0, way=way))).save(str(tmp_path / "program.json"))
        program: Any = student_program(task, way)
        program.load(str(tmp_path / "program.json"))
        assert [p.signature.instructions for p in program.predictors()]


def test_who_answers_by_chains_or_directly() -> None:
    chains = ("chain_of_abstraction",)
    assert by_chains(_task(), chains, False)
    assert by_chains(_task(), ("self_instruct>chain_of_abstraction",), False)
    assert not by_chains(_task(), (*chains, "star"), False), "other rows hold no chain"
    assert not by_chains(_task(), chains, True), "a label is scored"
    assert not by_chains(_task(), (), False)
    assert direct_way(_task()) == DIRECT
    assert direct_way(_task(reasoning=False)) == OWN


def test_a_student_of_chains_learns_them_and_no_other_row() -> None:
    plan, tokenizer = StudentPlan("embedded", CompactAdapter(), _task()), tiny_tokenizer()
    row = _sum(2)
    inputs, outputs = {"question": row["question"]}, {"answer": row["answer"]}
    records = [
        Record(inputs, outputs, Provenance("gold")),
        Record(inputs, outputs, Provenance("gold", seed=1), rationale="2 + 5 = 7"),
        Record(inputs, outputs, Provenance("chain_of_abstraction"), rationale="[2 + 5 = y1]"),
    ]
    rows = training_rows(plan, Recipe(1e-3, 1.0, way=CHAIN), records, tokenizer)
    assert [tokenizer.decode(list(r.branches[0][0])).partition("<")[0] for r in rows] == ["[2 + 5 = y1]"]
    prompt = tokenizer.decode(list(rows[0].prompt))
    assert "placeholder" in prompt
    assert row["question"] in prompt


def test_a_labelled_row_answered_anew_is_not_for_students_that_are_judged_on_it() -> None:
    rows = [Record({"question": f"{i}"}, {"answer": i}, Provenance("star", seed=i)) for i in range(4)]
    own = {stable_hash({"question": f"{i}"}): i % 2 for i in range(3)}
    learn = Learnable([], rows, rows, own=own)
    assert [[r.outputs["answer"] for r in learn.told(fold)] for fold in (0, 1)] == [[1, 3], [0, 2, 3]]


def _chainer(body: Body, n: int) -> Reply:
    """Write the chain where one is asked for, else the sum."""
    system, last = str(body["messages"][0]["content"]), str(body["messages"][-1]["content"])
    a, b = (re.findall(r"\d+", last) or ["1", "2"])[-2:]
    if "placeholder" in system:
        return answer(f"In all [{a} + {b} = y1]. The answer is y1.")
    return answer(f"[[ ## reasoning ## ]]\n{a} + {b} = {int(a) + int(b)}\n\n[[ ## answer ## ]]\n{int(a) + int(b)}")


@pytest.mark.slow
@pytest.mark.parametrize("few", [False, True])
def test_a_run_of_chains_has_a_student_that_answers_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: bool
) -> None:
    monkeypatch.setitem(EFFORTS, "quick", SMALL)  # pyright: ignore[reportArgumentType, reportUnknownMemberType]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setattr(students, "_RATIONALE_TOKENS", 8)  # a student that has hardly learned rambles to the limit
    student: Any = tiny_model()
    student.model.save_pretrained(tmp_path / "student")
    student.tokenizer.save_pretrained(tmp_path / "student")
    with serve(_chainer) as server:
        config = RunConfig(
            out=str(tmp_path / "run"),
            labels=write_rows(tmp_path / "labels.jsonl", [_sum(i) for i in range(20, 28)]),
            output=("answer",),
            kind="number",
            test=write_rows(tmp_path / "test.jsonl", [_sum(i) for i in range(40, 43)]),
            teacher="openai/gpt-5-mini",
            student=f"hf:{tmp_path / 'student'}",
            api_base=server.url,
            method=("chain_of_abstraction",),
            synthetic_rows=1 if few else 8,
        )
        report = run(config).report
    assert report is not None
    kept = read_records(config.folder / "data" / "kept.parquet")
    assert kept
    assert all(record.rationale.startswith("In all [") for record in kept)
    # A random student writes no chain: such rows score 0, and the run goes on to its verdict.
    assert report["systems"]["student"]["score"] == 0.0
    stored = json.loads((config.folder / "students.json").read_text(encoding="utf-8"))["systems"]
    assert stored["student_gold_only"]["way"] == OWN
    warned = any(text.startswith("no-chains") for text in report["warnings"])
    assert (stored["student"]["way"], warned) == ((OWN, True) if few else (CHAIN, False))
    deployed: Any = load_run(config.folder, "student")
    assert next(iter(deployed.program.predictors()[0].signature.output_fields)) == "reasoning"
    assert ("answer" in deployed.program.predictors()[0].signature.output_fields) == few
