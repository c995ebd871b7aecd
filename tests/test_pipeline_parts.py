"""Pieces of the pipeline that need no model: choices, stored stages, answers without probabilities."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.comparison import SystemResult
from limbeck.errors import BudgetExceeded, LimbeckError
from limbeck.ledger import Ledger
from limbeck.models import Budget
from limbeck.pipeline.config import RunConfig
from limbeck.pipeline.judge import choose
from limbeck.pipeline.learn import Tuned, _ended  # pyright: ignore[reportPrivateUsage]
from limbeck.pipeline.runfolder import Silent, open_run
from limbeck.pipeline.students import Recipe, label_matrix


def _tuned(scores: list[float]) -> Tuned:
    return Tuned(Recipe(1e-3, 1), tuple(scores), tuple(scores), np.empty((0, 0)), ())


def test_the_best_of_all_is_chosen_where_the_base_beats_the_distilled_student() -> None:
    student, gold = _tuned([1.0] * 7 + [0.0] * 3), _tuned([1.0] * 6 + [0.0, 1.0, 1.0, 0.0])
    assert choose(gold, student, [1.0] * 5 + [0.0] * 5).system == "student"
    chosen = choose(gold, student, [1.0] * 15 + [0.0] * 5)
    assert chosen.system == "student_gold_only"
    assert choose(gold, student, [1.0] * 9 + [0.0]).system == "student_base"


def test_a_fit_ends_early_only_where_that_is_clearly_better() -> None:
    late = _tuned([0.5, 0.5, 0.5, 0.5])
    assert _ended([_tuned([0.9, 0.2, 0.6, 0.5]), late]) is late
    early = _tuned([0.9, 0.6, 0.6, 0.5])
    assert _ended([early, late]) is early


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
