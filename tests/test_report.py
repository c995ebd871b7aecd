"""`report.json` in a run folder: whole or not at all, shown, listed, compared."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from limbeck.comparison import SystemResult, compare
from limbeck.errors import InputError
from limbeck.report import compare_runs, list_runs, read_report, render_runs, render_terminal, write_report


def made(correct: int = 80, *, task: str = "tickets") -> dict[str, Any]:
    def system(name: str, right: int) -> SystemResult:
        scores = tuple(float(i < right) for i in range(100))
        return SystemResult(name, scores, ({},) * 100, (None,) * 100, errors=("",) * 100, p50_ms=12.0)

    results = {n: system(n, k) for n, k in (("student_base", 40), ("teacher", 70), ("student", correct))}
    report = compare(results, task=task, metric="accuracy", seed=3)
    stage = {
        "name": "curate",
        "seconds": 1.25,
        "records_in": 48,
        "kept": 40,
        "rejected": {"duplicate": 8, "long": 0},
    }
    cost = {"usd": 0.5, "calls": 1200, "cached_calls": 3, "tokens_in": 10, "tokens_out": 20}
    return {**report, "stages": [stage], "cost": cost, "hashes": {}, "warnings": ["few [labels]"]}


def shown(*what: Any, width: int = 160) -> str:
    screen = Console(file=io.StringIO(), width=width, force_terminal=False)
    for item in what:
        screen.print(item)
    return screen.file.getvalue()  # type: ignore[attr-defined]


def finished(folder: Path, name: str, **options: Any) -> Path:
    write_report(folder / name, made(**options))
    (folder / name / "run.toml").write_text('teacher = "embedded"\nstudent = "hf:small"\n')
    return folder / name


def test_what_is_written_is_read(tmp_path: Path):
    path = write_report(tmp_path / "run", made())
    assert path.name == "report.json"
    assert read_report(tmp_path / "run") == made()


def test_a_report_that_cannot_be_written_leaves_the_old_one_and_no_litter(tmp_path: Path):
    write_report(tmp_path, made(80))
    with pytest.raises(ValueError, match="JSON compliant"):
        write_report(tmp_path, {**made(), "score": float("nan")})
    assert read_report(tmp_path) == made(80)
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_lone_surrogate_in_a_users_label_does_not_stop_the_report(tmp_path: Path):
    write_report(tmp_path, {**made(), "task": "\udce9"})
    assert read_report(tmp_path)["task"] == "\udce9"


@pytest.mark.parametrize(("text", "message"), [(None, "not finished"), ("{", "not JSON"), ("[]", "no JSON object")])
def test_a_missing_or_broken_report_is_a_clear_error(tmp_path: Path, text: str | None, message: str):
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_report(tmp_path)


def test_a_stage_without_a_time_of_its_own_is_shown():
    report = made()
    report["stages"] = [*report["stages"], {"name": "round 2", "records_in": 90, "kept": 88, "gain": 0.1}]
    lines = [line.split() for line in shown(render_terminal(report)).splitlines()]
    assert ["curate", "1.2", "48", "40", "8", "duplicate"] in lines
    assert ["round", "2", "90", "88"] in lines


def test_the_terminal_shows_systems_verdict_stages_and_warnings():
    text = shown(render_terminal(made()))
    assert "tickets: accuracy on 100 test rows (seed 3)" in text
    row = next(line for line in text.splitlines() if line.startswith("student_base"))
    assert "0.400 [0.300, 0.500]" in row
    assert "+40.0 [+30.0, +50.0]" in row
    assert "Ship the distilled student" in text
    assert "8 duplicate" in text
    assert "0 long" not in text
    assert "warning: few [labels]" in text
    assert "1,200 calls" in text


def test_nothing_is_cut_in_a_terminal_of_eighty_columns():
    report = made()
    report["systems"]["student_gold_only"] = {
        **report["systems"]["teacher"],
        "tokens_in": 123_456_789,
        "ece": 0.1,
    }
    report["paired"].append({**report["paired"][0], "b": "student_gold_only"})
    assert "\u2026" not in shown(render_terminal(report), width=80)


def test_the_terminal_shows_a_report_of_one_system_and_an_unknown_price():
    report = made()
    report["systems"] = {"student_base": {**report["systems"]["student_base"], "usd_per_1k": None}}
    report |= {"paired": [], "stages": [], "warnings": []}
    assert "?" in shown(render_terminal(report))


def test_runs_are_listed_newest_first_whatever_their_state(tmp_path: Path):
    old, new = finished(tmp_path, "old", correct=60), finished(tmp_path, "new")
    for path in (old / "run.toml", old / "report.json"):
        os.utime(path, (1, 1))
    begun, broken = tmp_path / "begun", tmp_path / "broken"
    for run in (begun, broken):
        run.mkdir()
        (run / "run.toml").write_text("not toml")
        os.utime(run / "run.toml", (0, 0))
    (broken / "report.json").write_text("[]")
    os.utime(broken / "report.json", (0, 0))
    (tmp_path / "notes").mkdir()
    found = list_runs(tmp_path)
    assert [(r["name"], r["state"]) for r in found] == [
        ("new", "finished"),
        ("old", "finished"),
        ("begun", "unfinished"),
        ("broken", "unreadable report"),
    ]
    assert (found[0]["score"], found[0]["base"], found[0]["student"]) == (0.8, 0.4, "hf:small")
    assert json.loads(json.dumps(found)) == found
    assert new.is_dir()


def test_a_list_of_runs_is_printed_with_its_intervals(tmp_path: Path):
    finished(tmp_path, "tickets")
    screen = Console(file=io.StringIO(), width=160)
    render_runs(list_runs(tmp_path), screen)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "tickets" in text
    assert "[0.720, 0.880]" in text


def test_no_runs_are_no_error(tmp_path: Path):
    screen = Console(file=io.StringIO(), width=160)
    render_runs(list_runs(tmp_path), screen)
    assert "no runs yet" in screen.file.getvalue()  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="no folder"):
        list_runs(tmp_path / "absent")


def test_runs_are_compared_system_by_system(tmp_path: Path):
    finished(tmp_path, "a", correct=60)
    report = made(90)
    del report["systems"]["teacher"]
    write_report(tmp_path / "b", report)
    found = compare_runs(tmp_path, ["a", "b"])
    cells = {row["system"]: row["runs"] for row in found}
    assert (cells["student"]["a"]["score"], cells["student"]["b"]["score"]) == (0.6, 0.9)
    assert cells["teacher"]["b"] is None
    screen = Console(file=io.StringIO(), width=160)
    render_runs(found, screen)
    told = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "accuracy, 100 rows" in told
    assert cells["student"]["a"]["p50_ms"] == 12.0
    assert "] 12 ms" in told


def test_an_unknown_run_is_named_with_those_that_exist(tmp_path: Path):
    finished(tmp_path, "a")
    with pytest.raises(InputError, match="no run 'z'") as caught:
        compare_runs(tmp_path, ["a", "z"])
    assert caught.value.valid == "a"


def test_listing_runs_imports_neither_torch_nor_dspy():
    code = "import sys, limbeck.report; print({'torch', 'dspy', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
