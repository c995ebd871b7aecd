"""Pieces of the pipeline that need no model: choices, stored stages, answers without probabilities."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from tiny_run import write_rows

from limbeck.comparison import SystemResult
from limbeck.errors import BudgetExceeded, InputError, LimbeckError, ModelError
from limbeck.ledger import Ledger
from limbeck.models import Budget
from limbeck.pipeline import runfolder
from limbeck.pipeline.config import RunConfig, check, read_config, write_config
from limbeck.pipeline.consent import with_consent
from limbeck.pipeline.forecast import forecast
from limbeck.pipeline.judge import choose
from limbeck.pipeline.learn import Tuned, _ended  # pyright: ignore[reportPrivateUsage]
from limbeck.pipeline.prepare import check_task
from limbeck.pipeline.run import run as run_stages
from limbeck.pipeline.runfolder import RunFolder, Silent, open_run
from limbeck.pipeline.students import Recipe, label_matrix, steps_of, with_steps
from limbeck.sandbox import Isolation, Level
from limbeck.task import task_from_labels
from limbeck.taskfile import load_task


def _tuned(scores: list[float]) -> Tuned:
    return Tuned(Recipe(1e-3, 1), tuple(scores), tuple(scores), np.empty((0, 0)), ())


def test_the_best_of_all_is_chosen_where_the_base_beats_the_distilled_student() -> None:
    student, gold = _tuned([1.0] * 7 + [0.0] * 3), _tuned([1.0] * 6 + [0.0, 1.0, 1.0, 0.0])
    assert choose(gold, student, [1.0] * 5 + [0.0] * 5).system == "student"
    chosen = choose(gold, student, [1.0] * 15 + [0.0] * 5)
    assert chosen.system == "student_gold_only"
    base = choose(gold, student, [1.0] * 9 + [0.0])
    assert base.system == "student_base"
    assert "0.90, the trained one 0.70" in base.because


def test_a_fit_ends_early_only_where_that_is_clearly_better() -> None:
    late = _tuned([0.5, 0.5, 0.5, 0.5])
    assert _ended([_tuned([0.9, 0.2, 0.6, 0.5]), late]) is late
    early = _tuned([0.9, 0.6, 0.6, 0.5])
    assert _ended([early, late]) is early


def test_many_classes_get_smaller_steps_and_then_more_passes() -> None:
    few = Recipe(1e-3, 3.0)
    assert with_steps(few, 400, 10) == few
    many = with_steps(few, 427, 77)
    assert (many.batch_size, many.epochs) == (8, 3.0)
    most = with_steps(few, 427, 150)
    assert most.batch_size == 8
    assert 427 * most.epochs / 8 == pytest.approx(300, rel=0.02)
    assert with_steps(few, 77, 77).epochs == 16
    alone = Recipe(1e-3, 6.0, batch_size=8)
    added = with_steps(few, 48 + 40, 10, steps_of(alone, 48))
    assert steps_of(added, 48 + 40) >= steps_of(alone, 48) > steps_of(few, 48 + 40)
    assert with_steps(few, 48 + 240, 10, steps_of(alone, 48)) == few
    assert with_steps(Recipe(1e-3, 6.0, batch_size=8), 50, 0).epochs == 6.0


def test_a_score_that_is_not_blind_says_so() -> None:
    student, gold = _tuned([1.0, 1.0, 0.0]), _tuned([1.0, 0.0, 0.0])
    assert "flatters" in choose(gold, student, [0.0] * 3, blind=False).because
    assert "flatters" not in choose(gold, student, [0.0] * 3).because


def test_an_answer_without_probabilities_puts_all_mass_on_its_label() -> None:
    result = SystemResult("t", (1.0, 0.0, 0.0), ({"label": "a"}, {"label": "b"}, {}), (None, None, None))
    matrix = label_matrix(result, "label", ["a", "b"])
    assert matrix[:2].tolist() == [pytest.approx([1, 0], abs=1e-6), pytest.approx([0, 1], abs=1e-6)]
    assert np.isnan(matrix[2]).all()


def test_a_stage_is_done_again_where_its_file_is_another_stages_by_now(tmp_path: Path) -> None:
    made: list[str] = []

    def work(folder: Path, text: str) -> Callable[[], dict[str, Any]]:
        def write() -> dict[str, Any]:
            made.append(text)
            (folder / "program.json").write_text(text)
            return {"files": ["program.json"]}

        return write

    with open_run(RunConfig(out=str(tmp_path / "run"), labels="x", output=("y",)), Silent()) as run:
        for text in ("seed 0", "seed 0", "seed 1", "seed 0"):
            run.stage("compile", [text], work(run.path, text))
            assert (run.path / "program.json").read_text() == text
    assert made == ["seed 0", "seed 1", "seed 0"]


def test_a_finished_stage_repeats_its_warnings(tmp_path: Path) -> None:
    config = RunConfig(out=str(tmp_path / "run"), labels="x", output=("y",))
    for _ in range(2):
        with open_run(config, Silent()) as run:

            def work(run: RunFolder = run) -> dict[str, Any]:
                run.warn("curation kept no row")
                return {}

            run.stage("curate", 1, work)
            assert run.warnings == ["curation kept no row"]


def test_a_run_that_cannot_begin_leaves_an_earlier_configuration_alone(tmp_path: Path) -> None:
    rows = [{"text": f"{word} {n}", "label": word} for word in ("plum", "fig") for n in range(4)]
    config = RunConfig(
        out=str(tmp_path / "run"), labels=write_rows(tmp_path / "l.jsonl", rows), output=("label",), teacher="nosuch"
    )
    config.folder.mkdir()
    write_config(replace(config, teacher="embedded"), config.folder / "run.toml")
    with pytest.raises(ModelError, match="nosuch"):
        run_stages(config)
    assert read_config(config.folder).teacher == "embedded"


def test_other_labels_end_what_predicts(tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    config = RunConfig(out=str(tmp_path / "run"), labels=str(labels), output=("y",))
    students = config.folder / "students.json"
    for text, stays in (("x,y\n1,a\n", False), ("x,y\n1,a\n", True), ("x,y\n1,b\n", False)):
        labels.write_text(text, encoding="utf-8")
        with open_run(config, Silent()) as folder:
            folder.keep_config(labels=True)
        assert (config.folder / "data" / "labels.csv").read_text(encoding="utf-8") == text
        assert students.exists() == stays
        students.write_text("{}", encoding="utf-8")
    with open_run(replace(config, labels=str(config.folder / "data" / "labels.csv")), Silent()) as folder:
        folder.keep_config(labels=True)
    assert students.exists()


def test_a_configuration_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("teacher = ", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read"):
        read_config(tmp_path)


def test_files_count_by_what_they_hold(tmp_path: Path) -> None:
    config = RunConfig(out="a", labels="here/labels.csv", output=("y",), test="here/test.csv", seed=1)
    moved = replace(config, out="b", labels="there/labels.csv", test="there/test.csv", test_rows=7, max_usd=1.0)
    assert moved.identity() == config.identity()
    assert not moved.same_run(config)
    assert replace(config, seed=2).identity() != config.identity()
    cut = replace(config, test="")
    assert replace(cut, test_rows=7).identity() != cut.identity()


@pytest.mark.parametrize("address", ["http://me:word@host/v1", "http://host/v1?key=1"])
def test_an_address_with_a_secret_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="api-base"):
        check(RunConfig(out="a", labels="x", output=("y",), api_base=address))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": "nosuch"}, "unknown optimizer"),
        ({"optimizer": "bootstrap"}, "demonstrations alone"),
        ({"label_distribution": '{"pear": 1.0}'}, "pear"),
    ],
)
def test_options_that_do_not_fit_the_task_cost_nothing(changes: dict[str, Any], said: str) -> None:
    rows = [{"text": f"{word} {n}", "label": word} for word in ("plum", "fig") for n in range(4)]
    task = task_from_labels(rows, output="label")
    with pytest.raises(InputError, match=said):
        check_task(RunConfig(out="a", labels="x", output=("label",), **changes), task)


def test_rationales_as_a_second_task_need_a_student_that_has_some() -> None:
    rows = [{"question": f"What is {n} and {n}?", "answer": str(2 * n)} for n in range(3, 12)]
    task = task_from_labels(rows, output="answer")
    config = RunConfig(out="a", labels="x", output=("answer",), objective="step-by-step")
    check_task(config, task)
    with pytest.raises(InputError, match="answers by chains"):
        check_task(replace(config, method=("chain_of_abstraction",)), task)


def test_a_full_disk_is_known_by_any_librarys_words() -> None:
    full = runfolder._is_full  # pyright: ignore[reportPrivateUsage]
    assert full(RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"))
    assert full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert not full(ValueError("no room"))


def test_minutes_hold_for_work_without_calls(tmp_path: Path) -> None:
    now = [0.0]
    budget = Budget(max_minutes=2.0, clock=lambda: now[0])
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        budget.check_time(ledger)
        now[0] = 121.0
        with pytest.raises(BudgetExceeded, match="--max-minutes 2"):
            budget.check_time(ledger)


def test_threads_that_wait_do_not_spin_for_long() -> None:
    code = "import os, limbeck; print(os.environ['GOMP_SPINCOUNT'])"
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    for given, expected in ({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"):
        shown = subprocess.run(
            [sys.executable, "-c", code], env={**environment, **given}, capture_output=True, text=True
        )
        assert shown.stdout.strip() == expected, shown.stderr


def test_a_disk_that_fills_up_during_a_run_says_so_and_keeps_what_there_is(tmp_path: Path) -> None:
    config = RunConfig(out=str(tmp_path / "run"), labels="x", output=("y",))

    def full() -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device")

    def stages() -> None:
        with open_run(config, Silent()) as run:
            run.stage("first", 1, lambda: {"rows": 3})
            run.stage("second", 1, full)

    with pytest.raises(LimbeckError, match="disk is full") as caught:
        stages()
    assert f"limbeck run {config.out}" in caught.value.hint
    with open_run(config, Silent()) as run:
        assert run.stage("first", 1, full)["rows"] == 3


# -- consent -------------------------------------------------------------------------------------------------

CODE_TASK = """
import dspy
import limbeck
from limbeck.codecheck import UnitTests

task = limbeck.Task.from_program(
    dspy.Predict("prompt, test_list: list[str] -> code"),
    [
        dspy.Example(prompt=f"Add {n}.", test_list=[f"assert f(1) == {n + 1}"], code=f"def f(x): return x + {n}")
        .with_inputs("prompt", "test_list")
        for n in range(8)
    ],
    lambda example, prediction, trace=None: float(example.code == prediction.code),
    verifiers=[UnitTests.mbpp()],
)
"""


def test_a_verifier_that_runs_code_needs_leave_in_a_weak_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "task.py"
    file.write_text(CODE_TASK, encoding="utf-8")
    config = RunConfig(out=str(tmp_path / "run"), task_file=str(file))
    monkeypatch.setattr("limbeck.sandbox.levels.isolation", lambda: Isolation(Level.LIMITS, filtered=True))
    for start in (forecast, run_stages):
        with pytest.raises(InputError, match=r"limits only[\s\S]*--allow-code"):
            start(config)
    assert not config.folder.exists()
    assert forecast(replace(config, allow_code=True)).total.calls > 0
    task = with_consent(load_task(str(file)), allow_code=True)
    assert [cast(Any, verifier).allow_weak for verifier in task.verifiers] == [True]
    monkeypatch.setattr("limbeck.sandbox.levels.isolation", lambda: Isolation(Level.NAMESPACES, filtered=True))
    assert forecast(config).total.calls > 0
    assert [cast(Any, v).allow_weak for v in with_consent(load_task(str(file)), allow_code=False).verifiers] == [False]
