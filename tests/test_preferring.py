"""A run with `--objective sft,dpo`, on a tiny random student and a teacher on a local server."""

from __future__ import annotations

import json
import re
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from chat_server import Body, Reply, answer, serve
from conftest import tiny_model

from limbeck.pipeline import preferring
from limbeck.pipeline.config import EFFORTS, RunConfig
from limbeck.pipeline.preferring import of_rows, pairs_hash, read_pairs
from limbeck.pipeline.run import run
from limbeck.preferences import Preference, read_preferences, write_preferences
from limbeck.records import Provenance, Record, read_records

SMALL = replace(
    tiny_run.SMALL, synthetic_rows=0, demo_tokens=40, gold_epochs=1, student_epochs=1, samples=4, demos=(False,)
)
PLACES = ["Leeds", "York", "Hull", "Ripon", "Selby", "Bury", "Thirsk", "Goole", "Malton", "Otley", "Ilkley", "Skipton"]
ASKED = [
    "Where is line {i} today?",
    "which town holds the {i}, please",
    "I lost my hat on bus {i}; whose depot is it",
    "Name the stop at which {i} turns round",
]
TASK = f"""
import dspy
import limbeck
from limbeck.verifiers import Verdict

class SaysIn:
    name = "says in"

    def __call__(self, inputs, outputs):
        return Verdict(outputs["answer"].startswith("In "))

def right(example, prediction, trace=None):
    return float(example.answer == prediction.answer)

PLACES = {PLACES!r}
ASKED = {ASKED!r}

def question(i):
    return ASKED[i % 4].format(i=i) + " " + PLACES[i % 12]

def row(i):
    return dspy.Example(question=question(i), answer=f"In {{PLACES[i % 12]}}").with_inputs("question")

task = limbeck.Task.from_program(
    dspy.Predict("question -> answer"),
    [row(i) for i in range(8)],
    right,
    name="where",
    test=[row(i) for i in range(50, 52)],
    unlabeled=[{{"question": question(i)}} for i in range(80, 86)],
    verifiers=[SaysIn()],
)
"""


class Guide:
    """Names the place, and leaves the "In" out the first time that it is asked about a row of the pool."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def __call__(self, body: Body, n: int) -> Reply:
        question = str(body["messages"][-1]["content"])
        place, first = re.findall(r"\w+", question)[-1], question not in self.asked
        self.asked.add(question)
        return answer(place if first and re.search(r" 8\d", question) else f"In {place}")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setitem(EFFORTS, "quick", SMALL)  # pyright: ignore[reportArgumentType, reportUnknownMemberType]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    student: Any = tiny_model()
    student.model.save_pretrained(tmp_path / "student")
    student.tokenizer.save_pretrained(tmp_path / "student")
    file = tmp_path / "task.py"
    file.write_text(TASK, encoding="utf-8")
    return RunConfig(
        out=str(tmp_path / "run"),
        task_file=str(file),
        teacher="openai/gpt-5-mini",
        student=f"hf:{tmp_path / 'student'}",
        objective="sft,dpo",
    )


def _recipe(folder: Path) -> dict[str, Any]:
    with sqlite3.connect(folder / "ledger.sqlite") as ledger:
        query = "select payload from stages where name = 'finetune student' order by created desc, rowid desc limit 1"
        return json.loads(ledger.execute(query).fetchone()[0])["recipe"]


def _stages(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "ledger.sqlite") as ledger:
        return [str(row[0]) for row in ledger.execute("select name from stages order by rowid")]


def test_a_run_goes_on_with_pairs_and_says_what_came_of_it(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(Guide()) as server:
        config = replace(config, api_base=server.url)
        report = run(config).report
        asked = len(server.bodies)
        assert report is not None
        pairs = read_preferences(config.folder / "data" / "preferences.parquet")
        assert pairs
        for pair in pairs:
            assert pair.chosen["answer"] == f"In {pair.rejected['answer']}"
            assert pair.principle == "verifier:says in"
        (told,) = [stage for stage in report["stages"] if stage["name"] == "preferences"]
        assert told["records_in"] == len(pairs) == told["pairs"] + told["rejected"]["no_kept_row"]
        kept = {record.inputs["question"] for record in read_records(config.folder / "data" / "kept.parquet")}
        assert told["pairs"] == sum(pair.inputs["question"] in kept for pair in pairs) > 0
        assert told["gain"] >= 0
        assert told["kept"] == told["pairs"], "a student that is no worse goes on"
        assert _recipe(config.folder)["beta"] == 0.1
        adapter = (config.folder / "adapter" / "adapter_model.safetensors").read_bytes()
        stages = _stages(config.folder)
        assert stages.count("prefer student") == SMALL.folds

        again = run(config).report
        assert again is not None
        assert _stages(config.folder) == stages, "a finished run trains nothing"
        assert next(s for s in again["stages"] if s["name"] == "preferences")["kept"] == told["kept"]

        # A student that gets worse by it stays what it was.
        monkeypatch.setattr(preferring, "mean_gap", lambda a, b: (-0.1, 0.2))
        worse = run(config, until="finetune")
        assert worse.stage == "finetune"
        assert "beta" not in _recipe(config.folder)
        assert (config.folder / "adapter" / "adapter_model.safetensors").read_bytes() != adapter
        assert len(server.bodies) == asked, "pairs cost no call"


def test_without_a_pair_the_supervised_student_stays_and_a_warning_says_so(config: RunConfig) -> None:
    with serve(lambda body, n: answer("In " + re.findall(r"\w+", str(body["messages"][-1]["content"]))[-1])) as server:
        report = run(replace(config, api_base=server.url)).report
    assert report is not None
    assert "student" in report["systems"]
    assert any(text.startswith("no-preferences: the supervised student stays") for text in report["warnings"])
    (told,) = [stage for stage in report["stages"] if stage["name"] == "preferences"]
    assert (told["records_in"], told["kept"]) == (0, 0)
    assert "beta" not in _recipe(config.folder)
    assert read_records(config.folder / "data" / "kept.parquet")


def _pair(question: str, chosen: str = "yes", p: float = 1.0) -> Preference:
    return Preference({"q": question}, {"a": chosen}, {"a": "no"}, p, "", Provenance("constitutional"))


def test_pairs_of_all_rounds_are_read_once_and_follow_their_rows(tmp_path: Path) -> None:
    one, two = _pair("one"), _pair("two")
    assert read_pairs(tmp_path, 2) == []
    write_preferences([one, two], tmp_path / "data" / "preferences.parquet")
    write_preferences([two, _pair("three")], tmp_path / "data" / "preferences-2.parquet")
    assert read_pairs(tmp_path, 1) == [one, two]
    found = read_pairs(tmp_path, 2)
    assert [pair.inputs["q"] for pair in found] == ["one", "two", "three"]
    assert of_rows(found, [Record({"q": "two"}, {"a": "maybe"}, Provenance("pool"))]) == [two]
    assert len({pairs_hash(given) for given in ([one], [two], [one, two], [_pair("one", p=0.8)])}) == 4
