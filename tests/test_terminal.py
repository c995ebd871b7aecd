"""What a person sees and what a command leaves behind: texts as they are, files whole, work not lost."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from limbeck.cli import app, main
from limbeck.errors import InputError
from limbeck.pipeline import deploy, terminal
from limbeck.pipeline.config import RunConfig, write_config

BRACKETS = "two rows of '[INST] x [/INST]' and [a]"


def test_brackets_of_rows_and_answers_are_shown_as_they_are() -> None:
    screen = Console(file=io.StringIO(), width=100)
    live = terminal.Live(screen)
    live.stage(BRACKETS, cached=True)
    live.warn(BRACKETS)
    live.note(BRACKETS)
    live.step(BRACKETS, 1, 1, BRACKETS)
    shown = str(screen.file.getvalue())  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]
    assert shown.count(BRACKETS) == 5
    assert "(done before)" in shown


class _Deployed:
    """Stands for a finished run: every third row has no answer."""

    system = "student"

    def __init__(self, failing: bool = False) -> None:
        self.failing = failing

    def predict(self, rows: list[dict[str, Any]], **_: Any) -> list[dict[str, Any]]:
        return [
            {"label": None, "error": "no answer"} if self.failing or n % 3 == 2 else {"label": f"l{n}"}
            for n, _ in enumerate(rows)
        ]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "new.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(4)), encoding="utf-8")
    return path


def _deploy(monkeypatch: pytest.MonkeyPatch, *, failing: bool = False) -> None:
    def load(folder: Path, system: str) -> _Deployed:
        return _Deployed(failing)

    monkeypatch.setattr(deploy, "load_run", load)


def test_predictions_are_written_whole_and_failures_counted(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _deploy(monkeypatch)
    out = tmp_path / "out.csv"
    terminal.predict(tmp_path, rows, out, "", False)
    with out.open(encoding="utf-8", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["l0", "l1", "", "l3"]
    assert "1 of 4 rows have no answer; the first: no answer" in capsys.readouterr().err
    terminal.predict(tmp_path, rows, None, "", False)
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in shown] == [f"row {n}" for n in range(4)]
    assert {p.name for p in tmp_path.iterdir()} == {"new.jsonl", "out.csv"}


def test_predictions_that_all_fail_are_a_failure(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _deploy(monkeypatch, failing=True)
    with pytest.raises(SystemExit) as ended:
        terminal.predict(tmp_path, rows, None, "", False)
    assert ended.value.code == 1


@pytest.mark.parametrize("name", ["missing/out.csv", "out.xlsx", "out"])
def test_a_place_that_cannot_be_written_is_named_before_anything_is_predicted(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def load(folder: Path, system: str) -> _Deployed:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(deploy, "load_run", load)
    with pytest.raises(InputError, match=r"no folder|cannot write"):
        terminal.predict(tmp_path, rows, tmp_path / name, "", False)


def _planned(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> RunConfig:
    """Return the configuration that a command line makes, without running it."""
    seen: list[RunConfig] = []
    monkeypatch.setattr(terminal, "forecast", seen.append)
    app([*arguments, "--dry-run"], standalone_mode=False)
    return seen[0]


def test_runs_of_one_name_get_folders_of_their_own(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["run", "--labels", str(rows), "--output", "label"]
    first = _planned(monkeypatch, *command)
    assert first.out == "runs/new"
    Path(first.out).mkdir(parents=True)
    write_config(first, Path(first.out) / "run.toml")
    assert _planned(monkeypatch, *command, "--max-usd", "3").out == "runs/new"
    other = _planned(monkeypatch, *command, "--seed", "1")
    assert other.out == "runs/new-2"
    assert _planned(monkeypatch, *command, "--seed", "1", "--out", "runs/new").out == "runs/new"
    assert Path(other.labels).is_absolute()


def test_a_file_of_rows_is_no_task(
    rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["limbeck", "run", str(rows)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"limbeck run --labels {rows} --output COLUMN" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["run", "compile", "synthesize", "curate", "finetune", "evaluate", "predict", "doctor"]
)
def test_every_command_shows_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    app([command, "--help"], standalone_mode=False)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert f"limbeck {command} " in plain.split("Examples", 1)[1]


def test_what_predicts_by_default_was_chosen_out_of_fold() -> None:
    config = RunConfig(out="runs/my task", labels="x", output=("y",))
    say = terminal._next_command  # pyright: ignore[reportPrivateUsage]
    agreed = {"verdict": {"use": "student"}, "chosen": "student"}
    assert say(config, agreed) == "predict with student: limbeck predict 'runs/my task' ROWS.jsonl"
    objected = {"verdict": {"use": "teacher_compiled"}, "chosen": "student"}
    assert "--system teacher_compiled (without --system: student" in say(config, objected)
    assert "with student:" in say(config, {"verdict": {"use": "encoder_probe"}, "chosen": "student"})
