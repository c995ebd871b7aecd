"""MIPROv2's comparison on a tiny random model: every program on the same rows, none of them compiled on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_reproduce_experiments import TEXTS, check_outcome

from limbeck.compile.optimize import UNCOMPILED
from limbeck.compile.optimizers import MIPROv2, RandomSearch
from limbeck.errors import InputError
from limbeck.reproduce import mipro
from limbeck.reproduce.setting import Setting
from limbeck.reproduce.weak_to_strong import read_labelled

SIZES = mipro.Sizes(train=8, dev=9, tested=10, trials=2, candidates=3, tokens=12)


@pytest.fixture
def labelled(setting: Setting, tmp_path: Path) -> Setting:
    """A setting whose data are 42 labelled rows."""
    rows = [{"text": f"{text} {n}", "label": label} for n in range(14) for label, text in TEXTS.items()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return replace(setting, folder=tmp_path / "out", data=str(tmp_path / "rows.jsonl"))


def test_four_programs_answer_the_same_rows(labelled: Setting) -> None:
    outcome = mipro.run(labelled, SIZES)
    check_outcome(outcome, (UNCOMPILED, mipro.BOOTSTRAP, mipro.SEARCH, mipro.MIPRO), 10, labelled.folder)
    assert outcome.settings["calls"] > 10
    assert len([note for note in outcome.notes if "on dev rows" in note]) == 3
    assert "MIPROv2 chose" in outcome.notes[-1]
    # What is not kept scores as the uncompiled program does.
    arms = {arm.name: arm.scores for arm in outcome.arms}
    for name in (mipro.BOOTSTRAP, mipro.SEARCH, mipro.MIPRO):
        (told,) = [note for note in outcome.notes if note.startswith(f"{name}: ")]
        assert not told.endswith("not kept.") or arms[name] == arms[UNCOMPILED]


def test_no_row_is_compiled_and_tested_on(labelled: Setting) -> None:
    task = read_labelled(labelled, "mipro")
    split = mipro.cut(task, SIZES, seed=0)
    texts = [{row["text"] for row in part} for part in (split.train, split.dev, split.test)]
    assert [len(part) for part in texts] == [8, 9, 10]
    assert len(set.union(*texts)) == 27
    assert mipro.cut(task, SIZES, seed=1).test != split.test
    few = mipro.cut(task, replace(SIZES, train=500, dev=500), seed=0)
    assert (len(few.train), len(few.dev)) == (10, 14)
    assert few.test


def test_both_searches_score_equally_many_programs_on_dev() -> None:
    by_name = dict(mipro.ways(replace(SIZES, trials=9)))
    search, mine = by_name[mipro.SEARCH], by_name[mipro.MIPRO]
    assert isinstance(search, RandomSearch)
    assert isinstance(mine, MIPROv2)
    # Random search: no demonstrations, labelled ones, one set in order, and its candidates; MIPRO: plain and trials.
    assert 3 + search.candidates == 1 + mine.trials == 10


def test_without_optuna_nothing_is_compiled(labelled: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.compile.optimizers.find_spec", lambda name: None)
    with pytest.raises(InputError, match="optuna is not installed"):
        mipro.run(labelled, SIZES)
    assert not labelled.folder.exists()
