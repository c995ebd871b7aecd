"""A judge in a run: tried on labels first, refused where it does not prove itself, asked before curation."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from chat_server import Body, Reply, answer, serve
from scripted import Scripted
from tiny_run import SMALL, write_rows

from limbeck.compile.split import make_split
from limbeck.engine.requests import GenerateRequest
from limbeck.errors import BudgetExceeded, InputError, ModelError
from limbeck.models import LM, CompactAdapter, Transient, connect
from limbeck.pipeline.config import EFFORTS, RunConfig, check
from limbeck.pipeline.context import Context
from limbeck.pipeline.curation import KEPT, REJECTED, curate_stage
from limbeck.pipeline.data import CANDIDATES
from limbeck.pipeline.forecast import forecast
from limbeck.pipeline.judging import judge_stage, labelled_rows
from limbeck.pipeline.prepare import read_task
from limbeck.pipeline.run import run
from limbeck.pipeline.runfolder import Silent, open_run
from limbeck.pipeline.students import StudentPlan
from limbeck.records import Provenance, Record, read_records, write_records

TOWNS = ["Leeds", "York", "Hull", "Ripon", "Selby", "Bury", "Thirsk", "Malton"]
WHO = ["My uncle", "The mayor", "A baker", "Some tourist", "Our teacher", "That sailor", "Her cousin"]
DID = ["lost", "bought", "painted", "mended", "hid", "sold", "drew", "broke", "cleaned", "found", "weighed"]
WHAT = ["boots", "clocks", "kites", "ladders", "lamps", "pots", "drums", "gates", "coats", "maps", "ropes", "wheels"]
WHEN = ["at dawn", "last winter", "before lunch", "on the way home", "in a storm"]


def question(n: int) -> str:
    """No two alike: words from lists whose lengths have no common factor."""
    return f"{WHO[n % 7]} {DID[n % 11]} {WHAT[n % 12]} {WHEN[n % 5]}, {n} in all"


def town(text: str) -> str:
    """The right answer, which depends on the number in the question."""
    return TOWNS[int(re.findall(r"\d+", text)[-1]) % len(TOWNS)]


def teacher(request: GenerateRequest) -> str:
    """Answer rightly but for every third number, and with another town in every sample."""
    asked = request.messages[-1][1]
    number = int(re.findall(r"\d+", asked)[-1])
    return town(asked) if number % 3 else f"{TOWNS[(number + 1 + (request.seed or 0) % 5) % 8]} perhaps"


def good_judge(request: GenerateRequest) -> str:
    asked, said = request.messages[-1][1].rsplit("answer:", 1)
    return "yes" if town(asked) in said and "perhaps" not in said else "no"


class Told(Silent):
    """A reporter that keeps notes and warnings."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    small = replace(SMALL, samples=2)
    monkeypatch.setitem(EFFORTS, "quick", small)  # pyright: ignore[reportArgumentType, reportUnknownMemberType]
    rows = [{"question": question(n), "answer": town(question(n))} for n in range(40)]
    return RunConfig(
        out=str(tmp_path / "run"),
        labels=write_rows(tmp_path / "labels.jsonl", rows),
        output=("answer",),
        test=write_rows(tmp_path / "test.jsonl", [{"question": "Where is gate 99?", "answer": "Ripon"}]),
        kind="short_answer",
        judge="teacher",
    )


@contextmanager
def opened(
    config: RunConfig, judge: Callable[[GenerateRequest], str], told: Told | None = None
) -> Generator[tuple[Context, Scripted]]:
    """The context of a run whose teacher and judge answer by functions."""
    task = read_task(config)
    backend = Scripted(judge)
    with open_run(config, told or Told()) as folder:
        models = [
            LM(role, one, ledger=folder.ledger, budget=folder.budget, role=role, retries=0)
            for role, one in (("teacher", Scripted(teacher)), ("judge", backend))
        ]
        split = make_split(task, seed=0, n_folds=2)
        plan = StudentPlan("embedded", CompactAdapter(), task)
        yield Context(folder, task, split, models[0], plan, {}, ("t", "s"), models[1]), backend


def candidates(n: int = 60) -> list[Record]:
    """New rows, every fourth with a wrong answer."""
    origin = Provenance("self_instruct", teacher="scripted", prompt_hash="0", seed=1)
    rows = [(question(i), town(question(i)) if i % 4 else "Paris perhaps") for i in range(50, 50 + n)]
    return [Record({"question": q}, {"answer": a}, origin) for q, a in rows]


def curated(context: Context, records: list[Record]) -> tuple[Mapping[str, Any], list[Record], list[Record]]:
    """Curate these records with the run's judge: the stage's payload, kept and rejected rows."""
    write_records(records, context.run.path / CANDIDATES)
    judge = judge_stage(context)
    payload = curate_stage(context, {}, context.task.program, cast(Any, None), list, judge=judge)
    return payload, read_records(context.run.path / KEPT), read_records(context.run.path / REJECTED)


# -- the rows of the trial -----------------------------------------------------------------------------------


def rows_of(gold: list[str], answers: list[list[str]]) -> list[dict[str, Any]]:
    records = [Record({"q": str(i)}, {"a": a}, Provenance("gold", seed=i)) for i, a in enumerate(gold)]

    def score(row: int, outputs: Mapping[str, Any]) -> float:
        return float(outputs["a"].startswith(gold[row]))

    return labelled_rows(records, [[{"a": a} for a in found] for found in answers], score, seed=0)


def test_a_gold_row_is_on_one_side_only_and_wrong_answers_come_first() -> None:
    gold = [f"right {i}." for i in range(10)]
    answers = [[f"wrong {i}", f"wrong {i}", f"false {i}"] if i < 3 else [f"right {i}."] for i in range(10)]
    rows = rows_of(gold, answers)
    sides = {accepted: {r["row"] for r in rows if r["accepted"] is accepted} for accepted in (True, False)}
    assert not sides[True] & sides[False]
    assert sides[True] | sides[False] == set(range(10))
    assert {0, 1, 2} <= sides[False], "what the teacher really gets wrong is shown"
    assert Counter(r["from"] for r in rows) == {"gold": 7, "wrong": 6}
    for row in rows:
        own = row["outputs"]["a"] == gold[row["row"]]
        assert own == (row["from"] == "gold")


def test_where_the_teacher_is_right_another_rows_answer_is_the_wrong_one() -> None:
    gold = [f"right {i}." for i in range(10)]
    rows = rows_of(gold, [[text] for text in gold])
    assert Counter(r["from"] for r in rows) == {"gold": 5, "other": 5}
    for row in rows:
        assert (row["outputs"]["a"] == gold[row["row"]]) is row["accepted"]
        assert row["outputs"]["a"] in gold


def test_a_teacher_that_is_always_wrong_leaves_half_of_the_gold_rows_accepted() -> None:
    rows = rows_of([f"right {i}." for i in range(9)], [["wrong", "false"]] * 9)
    assert Counter(r["from"] for r in rows) == {"gold": 5, "wrong": 5}


def test_right_answers_in_other_words_are_accepted_rows_too() -> None:
    rows = rows_of(["a", "b", "c", "d"], [["a", "a, sure", "A. Sure"], ["b it is"], ["nothing"], ["none", "no"]])
    right = [(r["row"], r["outputs"]["a"]) for r in rows if r["from"] == "right"]
    assert sorted(right) == [(0, "a, sure"), (1, "b it is")], "copies and the gold answer itself count once"
    wrong = [r["outputs"]["a"] for r in rows if r["from"] == "wrong"]
    assert sorted(wrong) == ["no", "none", "nothing"]


def test_an_answer_that_is_right_for_another_row_is_not_shown_as_wrong() -> None:
    rows = rows_of(["same"] * 6, [[] for _ in range(6)])
    assert {r["from"] for r in rows} == {"gold"}


# -- a judge that proves itself ------------------------------------------------------------------------------


def test_a_judge_that_knows_leaves_out_wrong_rows_and_the_report_says_how_well(config: RunConfig) -> None:
    told = Told()
    with opened(config, good_judge, told) as (context, _):
        payload, kept, rejected = curated(context, candidates())
        assert [s["name"] for s in context.run.stage_log] == ["judge"]
    wrong = [r for r in (*kept, *rejected) if "perhaps" in r.outputs["answer"]]
    refused = [r for r in rejected if r.reason.startswith("verifier:judge at ")]
    assert len(wrong) == 15
    assert not any("perhaps" in r.outputs["answer"] for r in kept)
    assert refused
    assert all("perhaps" in r.outputs["answer"] for r in refused)
    found = payload["log"]["judge"]
    assert found["model"] == config.teacher
    assert found["rejected"] == len(refused) == payload["log"]["rejected"][refused[0].reason]
    assert found["true_accept"]["share"] == found["precision"]["share"] == 1.0
    assert found["false_accept"]["hits"] == 0
    assert found["wanted_precision"] == 0.9
    assert found["labelled"]["gold"] >= 20
    assert found["labelled"]["wrong"] >= 14, "every third of 40 rows"
    assert found["teacher_right"]["share"] == pytest.approx(26 / 40)
    assert found["expected_precision"] == 1.0
    json.dumps(payload)
    (line,) = [text for text in told.notes if text.startswith("judge ")]
    assert re.search(r"lets 100% \[8\d%, 100%\] of the right and 0% \[0%, 1\d%\] of the wrong ones pass", line)
    assert told.warnings == []


def test_calls_are_the_judges_own_and_are_asked_once(config: RunConfig) -> None:
    records = candidates(12)
    with opened(config, good_judge) as (context, first):
        curated(context, records)
    with sqlite3.connect(config.folder / "ledger.sqlite") as ledger:
        roles = Counter(role for (role,) in ledger.execute("select role from calls"))
    assert roles["judge"] == len(first.requests)
    assert roles["teacher"] == 80, "two answers to each of 40 labels"
    with opened(replace(config, judge_precision=0.8), good_judge) as (context, again):
        payload, _, _ = curated(context, [*records, candidates(13)[-1]])
    assert len(again.requests) == 2, "one new row, of which two votes are asked"
    assert payload["log"]["judge"]["wanted_precision"] == 0.8


def test_rows_are_judged_as_they_are_masked(config: RunConfig) -> None:
    row = replace(candidates(1)[0], inputs={"question": "Where does a@b.org live, in house 51?"})
    row = replace(row, outputs={"answer": TOWNS[51 % 8]})
    with opened(replace(config, pii="mask"), good_judge) as (context, backend):
        _, kept, rejected = curated(context, [row])
    assert [r.inputs["question"] for r in kept] == ["Where does <EMAIL_1> live, in house 51?"], rejected
    assert not any("a@b.org" in m for request in backend.requests for _, m in request.messages)


# -- a judge that does not -----------------------------------------------------------------------------------


def test_a_judge_no_better_than_chance_is_not_used_and_the_report_says_so(config: RunConfig) -> None:
    told = Told()
    with opened(config, lambda request: "yes", told) as (context, _):
        payload, kept, rejected = curated(context, candidates())
    assert any("perhaps" in r.outputs["answer"] for r in kept)
    assert not any(r.reason.startswith("verifier:judge") for r in rejected)
    assert "no better than chance" in payload["log"]["judge"]["refused"]
    (warning,) = told.warnings
    assert warning.startswith("judge: embedded is not used: the judge is no better than chance on ")


def test_a_precision_out_of_reach_is_not_used(config: RunConfig) -> None:
    def lenient(request: GenerateRequest) -> str:
        """Find half of the wrong answers good as well."""
        number = int(re.findall(r"\d+", request.messages[-1][1])[0])
        return "yes" if number % 2 else good_judge(request)

    told = Told()
    with opened(replace(config, judge_precision=0.97), lenient, told) as (context, _):
        judge = judge_stage(context)
    assert judge is not None
    assert judge.calibrated is None
    assert "no threshold reaches a precision of 0.97" in told.warnings[0]


def test_a_spent_budget_and_a_server_that_is_gone_end_the_stage(config: RunConfig) -> None:
    def spent(request: GenerateRequest) -> str:
        raise BudgetExceeded("spent")

    def gone(request: GenerateRequest) -> str:
        raise Transient("503")

    with opened(config, spent) as (context, _), pytest.raises(BudgetExceeded):
        judge_stage(context)
    with opened(config, gone) as (context, _), pytest.raises(ModelError, match="got no answer from the judge"):
        judge_stage(context)
    with opened(config, good_judge) as (context, _):
        judge = judge_stage(context)
        assert judge is not None
        assert judge.calibrated is not None, "nothing of the outage was kept"


# -- options -------------------------------------------------------------------------------------------------


def test_no_judge_no_stage(config: RunConfig) -> None:
    with opened(config, good_judge) as (context, _):
        assert judge_stage(replace(context, judge=None)) is None


def test_labels_are_not_judged_by_a_model(config: RunConfig, tmp_path: Path) -> None:
    rows = [{"text": f"{word} {n}", "label": word} for word in ("plum", "fig") for n in range(4)]
    closed = replace(config, labels=write_rows(tmp_path / "c.jsonl", rows), output=("label",), test="", kind="")
    for start in (run, forecast):
        with pytest.raises(InputError, match="one closed set of labels"):
            start(closed)
    assert not closed.folder.exists()


@pytest.mark.parametrize("precision", [0.0, 1.0, float("nan")])
def test_a_precision_is_a_share(config: RunConfig, precision: float) -> None:
    with pytest.raises(InputError, match="--judge-precision"):
        check(replace(config, judge_precision=precision))


def test_keys_of_other_stages_know_of_no_judge(config: RunConfig) -> None:
    assert replace(config, judge="", judge_precision=0.5, allow_code=True).identity() == config.identity()
    assert not {"judge", "judge_precision", "allow_code"} & set(config.identity())
    assert config.judge_model == config.teacher
    other = replace(config, judge="openai/gpt-5-mini", teacher="embedded", api_base="http://localhost:1/v1")
    assert other.models_asked()["judge"] == "openai/gpt-5-mini"
    assert other.judge_base == "http://localhost:1/v1"
    assert "judge" not in config.models_asked()


def test_the_dry_run_counts_the_judge(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {line.stage: line for line in forecast(config).lines}
    assert lines["answers to judge"].calls == 80
    assert lines["judge"].calls == 40 + 6, "the labels and the rows to write"
    bare = {line.stage for line in forecast(replace(config, judge="")).lines}
    assert bare == set(lines) - {"answers to judge", "judge"}
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
    paid = forecast(replace(config, judge="openai/gpt-4.1-mini"))
    assert paid.usd is not None
    assert paid.usd > 0


# -- real models and the whole way ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_embedded_model_is_no_judge_of_its_own_answers(config: RunConfig, embedded: Any) -> None:
    told = Told()
    with opened(config, good_judge, told) as (context, _):
        shared: dict[str, Any] = {"ledger": context.run.ledger, "budget": context.run.budget}
        few = replace(context.split, train=context.split.gold[:12], dev=())
        models = [connect("embedded", role=role, **shared) for role in ("teacher", "judge")]
        brief = replace(context.plan, max_tokens=8)
        judge = judge_stage(replace(context, split=few, plan=brief, teacher=models[0], judge=models[1]))
    with sqlite3.connect(config.folder / "ledger.sqlite") as ledger:
        (asked,) = ledger.execute("select count(*) from calls where role = 'judge' and kind = 'score'").fetchone()
    assert judge is not None
    assert judge.refused
    assert any(text.startswith("judge: embedded is not used") for text in told.warnings)
    assert 0 < asked <= 12


def _plays(body: Body, n: int) -> Reply:
    """Play the judge and the teacher."""
    request = GenerateRequest((("user", str(body["messages"][-1]["content"])),), max_tokens=9, seed=n)
    judges = "acceptable" in str(body["messages"][0]["content"])
    return answer(good_judge(request) if judges else teacher(request))


@pytest.mark.slow
def test_a_run_with_a_judge_reports_it_and_goes_on_without_asking_again(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedded: Any
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setitem(EFFORTS, "quick", replace(SMALL, samples=2, demos=(False,), gold_epochs=1, student_epochs=1))  # pyright: ignore[reportArgumentType, reportUnknownMemberType]
    with serve(_plays) as server:
        rows = [{"question": question(n), "answer": town(question(n))} for n in range(24)]
        start = replace(
            config,
            labels=write_rows(tmp_path / "few.jsonl", rows),
            unlabeled=write_rows(tmp_path / "pool.jsonl", [{"question": question(n)} for n in range(60, 72)]),
            synthetic_rows=0,
            teacher="openai/gpt-5-mini",
            api_base=server.url,
        )
        report = run(start).report
        asked = len(server.bodies)
        again = run(start).report
        assert len(server.bodies) == asked
    assert report is not None
    assert again is not None
    (stage,) = [one for one in report["stages"] if one["name"] == "curate"]
    assert stage["judge"]["true_accept"]["share"] == 1.0
    assert "refused" not in stage["judge"]
    assert [one["judge"] for one in again["stages"] if one["name"] == "curate"] == [stage["judge"]]
    assert report["terms"]["by_role"].keys() == {"teacher"}, "the judge is the teacher"
    kept = read_records(config.folder / KEPT)
    assert kept
    assert all(r.scores[next(name for name in r.scores if "judge at" in name)] == 1.0 for r in kept)
    assert not any("perhaps" in str(r.outputs["answer"]) for r in kept)
