"""The whole way for programs that write more than their labels hold, with a teacher on a local server."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from chat_server import Body, Reply, answer, serve
from tiny_run import write_rows

from limbeck.pipeline import students
from limbeck.pipeline.config import EFFORTS, RunConfig
from limbeck.pipeline.deploy import load_run
from limbeck.pipeline.forecast import forecast
from limbeck.pipeline.run import run
from limbeck.records import read_records

SMALL = replace(
    tiny_run.SMALL, pool_rows=6, synthetic_rows=4, gold_epochs=2, student_epochs=1, samples=2, demos=(False,)
)
FRUIT = ["apples", "pears", "plums", "figs", "dates", "limes", "nuts"]

SUMS = [
    "Ann has {a} {x} and buys {b} more. How many {x} has she now?",
    "A crate holds {a} {x}, the barrow beside it {b}. What do they hold together?",
    "After {a} {x} the cook peels another {b}: how many went into the pot?",
    "{a} {x} fell on Monday and {b} on Tuesday; count what lies below the tree.",
    "The stall sold {a} {x} before noon, then {b} until closing. Its sales that day?",
    "Bo packs {a} {x}, his sister adds {b}. Say how many travel.",
]
BUSES = [
    "Bus {i} waits in {place} today",
    "we are stranded at the depot in {place}, line {i}",
    "no driver for the {i} this morning in {place}",
    "is there still a connection {i} from anywhere in {place}",
    "ticket machine {i} ate my coins in {place}",
    "lost my umbrella on route {i} somewhere in {place}",
]

TWO_PREDICTORS = f"""
import dspy
import limbeck

class Route(dspy.Module):
    def __init__(self):
        super().__init__()
        self.find = dspy.Predict("message -> place")
        self.say = dspy.Predict("message, place -> reply")

    def forward(self, message):
        place = self.find(message=message).place
        return self.say(message=message, place=place)

def right(example, prediction, trace=None):
    return float(example.reply == prediction.reply)

PLACES = ["Leeds", "York", "Hull", "Ripon", "Selby", "Bury", "Thirsk"]
BUSES = {BUSES!r}

def message(i):
    return BUSES[i % 6].format(i=i, place=PLACES[i % 7])

def row(i):
    return dspy.Example(message=message(i), reply=f"Go to {{PLACES[i % 7]}}").with_inputs("message")

task = limbeck.Task.from_program(
    Route(),
    [row(i) for i in range(8)],
    right,
    name="route",
    test=[row(i) for i in range(50, 53)],
    unlabeled=[{{"message": message(i)}} for i in range(80, 84)],
)
"""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EFFORTS, "quick", SMALL)  # pyright: ignore[reportArgumentType, reportUnknownMemberType]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    # A student that has hardly learned rambles to the limit.
    monkeypatch.setattr(students, "_RATIONALE_TOKENS", 24)


def _sum(i: int) -> dict[str, Any]:
    question = SUMS[i % len(SUMS)].format(a=i, b=i + 3, x=FRUIT[i % len(FRUIT)])
    return {"question": question, "answer": float(2 * i + 3)}


def _sums(folder: Path, url: str, *, labels: int, test: int, pool: int) -> RunConfig:
    """Return a run on so many sums of each use, with a teacher at `url`."""
    return RunConfig(
        out=str(folder / "run"),
        labels=write_rows(folder / "labels.jsonl", [_sum(i) for i in range(labels)]),
        output=("answer",),
        test=write_rows(folder / "test.jsonl", [_sum(i) for i in range(40, 40 + test)]),
        unlabeled=write_rows(folder / "pool.jsonl", [{"question": _sum(i)["question"]} for i in range(60, 60 + pool)]),
        teacher="openai/gpt-5-mini",
        api_base=url,
    )


def _adder(body: Body, n: int) -> Reply:
    """Add up the last question; get the steps of every third one wrong, whenever it is asked."""
    system, last = str(body["messages"][0]["content"]), str(body["messages"][-1]["content"])
    numbers = [int(x) for x in re.findall(r"\d+", last)]
    if "reasoning" not in system or len(numbers) < 2:
        return answer("\n".join(f"Bo has {n + k} kites and buys {n} more. How many has he?" for k in range(4)))
    total = numbers[-2] + numbers[-1] + (numbers[-2] % 3 == 0)
    return answer(f"[[ ## reasoning ## ]]\n{numbers[-2]} + {numbers[-1]} = {total}\n\n[[ ## answer ## ]]\n{total}")


@pytest.mark.slow
def test_a_task_with_a_rationale_learns_from_checked_steps(tmp_path: Path, embedded: Any) -> None:
    with serve(_adder) as server:
        config = _sums(tmp_path, server.url, labels=8, test=3, pool=4)
        report = run(config).report
    assert report is not None
    assert report["systems"]["teacher"]["score"] > 0
    assert "student" in report["systems"]
    kept = read_records(config.folder / "data" / "kept.parquet")
    assert kept
    for record in kept:
        first, second, total = map(int, re.findall(r"\d+", record.rationale))
        assert float(total) == record.outputs["answer"]
        # A teacher that is wrong each time it is asked cannot be found out; its steps belong to its answer.
        assert total == first + second + (first % 3 == 0)


def _rarely_right(body: Body, n: int) -> Reply:
    """Add up the last question, of the labelled ones rightly that of two alone."""
    numbers = [int(x) for x in re.findall(r"\d+", str(body["messages"][-1]["content"]))]
    if len(numbers) < 2:
        return answer("no sum")
    total = numbers[-2] + numbers[-1] + (numbers[-2] < 40 and numbers[-2] != 2)
    return answer(f"[[ ## reasoning ## ]]\n{numbers[-2]} + {numbers[-1]} = {total}\n\n[[ ## answer ## ]]\n{total}")


@pytest.mark.slow
def test_a_teacher_that_is_right_in_one_fold_alone_leaves_fixed_defaults(tmp_path: Path, embedded: Any) -> None:
    with serve(_rarely_right) as server:
        config = replace(_sums(tmp_path, server.url, labels=6, test=2, pool=3), synthetic_rows=0)
        report = run(config).report
    assert report is not None
    assert any("no-folds" in text for text in report["warnings"])
    assert "student_gold_only" in report["systems"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["self_instruct", "star", "evol_instruct"])
def test_the_dry_run_counts_the_calls_of_a_method(tmp_path: Path, embedded: Any, method: str) -> None:
    with serve(_adder) as server:
        config = RunConfig(
            out=str(tmp_path / "run"),
            labels=write_rows(tmp_path / "labels.jsonl", [_sum(i) for i in range(8)]),
            output=("answer",),
            test=write_rows(tmp_path / "test.jsonl", [_sum(i) for i in range(40, 43)]),
            teacher="openai/gpt-5-mini",
            api_base=server.url,
            method=(method,),
            synthetic_rows=8,
        )
        run(config, until="compile")
        before = len(server.bodies)
        run(config, until="synthesize")
        made = len(server.bodies) - before
    (line,) = [line for line in forecast(config).lines if line.stage == "synthesize"]
    print(f"\n{method}: {line.calls} counted, {made} made")
    assert 1 / 4 < line.calls / made < 4, (line.calls, made)


def _router(body: Body, n: int) -> Reply:
    """Play both predictors: find the place, then send the reader there."""
    last = str(body["messages"][-1]["content"])
    system = str(body["messages"][0]["content"])
    place = (re.findall(r" in (\w+)", last) or ["York"])[-1]
    if "place" in system and "reply" in system:
        return answer(f"Go to {place}")
    return answer(place)


@pytest.mark.slow
def test_a_program_of_two_predictors_trains_both(tmp_path: Path, embedded: Any) -> None:
    file = tmp_path / "task.py"
    file.write_text(TWO_PREDICTORS, encoding="utf-8")
    with serve(_router) as server:
        config = RunConfig(
            out=str(tmp_path / "run"),
            task_file=str(file),
            teacher="openai/gpt-5-mini",
            api_base=server.url,
            synthetic_rows=0,
        )
        report = run(config).report
        row = {"message": "Bus 7 waits in Leeds today"}
        first = load_run(config.folder, "teacher_compiled")(row)
        asked = len(server.bodies)
        assert load_run(config.folder, "teacher_compiled")(row) == first
        assert len(server.bodies) == asked, "what a server answered is not paid for twice"
    assert report is not None
    assert report["systems"]["teacher"]["score"] == 1.0
    kept = read_records(config.folder / "data" / "kept.parquet")
    assert len(kept) >= 2
    for record in kept:
        assert [call["predictor"] for call in record.calls] == ["find", "say"]
        find, say = record.calls
        assert say["inputs"]["place"] == find["outputs"]["place"]
        assert record.outputs["reply"] == say["outputs"]["reply"]
    deployed = load_run(config.folder, "student")
    (out,) = deployed.predict([row])
    assert "reply" in out


def _sorter(body: Body, n: int) -> Reply:
    """Sort by one word, as a server that gives no log-probabilities."""
    return answer("transit" if "Bus" in str(body["messages"][-1]["content"]) else "sums")


def test_labels_of_a_server_without_probabilities_are_written_and_kept(tmp_path: Path) -> None:
    rows = [{"text": _sum(i)["question"], "label": "sums"} for i in range(6)]
    rows += [{"text": f"Bus {i}: {BUSES[i]}", "label": "transit"} for i in range(6)]
    pool = [{"text": f"Bus {i} is full" if i % 2 else f"Count {i} and {i + 4} pears"} for i in range(4)]
    with serve(_sorter) as server:
        config = RunConfig(
            out=str(tmp_path / "run"),
            labels=write_rows(tmp_path / "labels.jsonl", rows),
            output=("label",),
            test=write_rows(
                tmp_path / "test.jsonl", [{"text": "Bus 9 again", "label": "transit"}, {**rows[0], "text": "1 and 1"}]
            ),
            unlabeled=write_rows(tmp_path / "pool.jsonl", pool),
            teacher="openai/gpt-5-mini",
            api_base=server.url,
            synthetic_rows=0,
        )
        run(config, until="synthesize")
    found = read_records(config.folder / "data" / "candidates.parquet")
    assert [r.outputs["label"] for r in found] == ["sums", "transit"] * 2
    assert all(r.kept for r in found)
    assert {r.soft_source for r in found} == {f"votes:{SMALL.samples}"}
