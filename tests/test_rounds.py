"""Rounds: when one is kept, and what it says of itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from limbeck.pipeline.curation import Learnable
from limbeck.pipeline.data import FIRST, Turn
from limbeck.pipeline.learn import Tuned
from limbeck.pipeline.rounds import Round, told
from limbeck.pipeline.students import Recipe


def one(number: int, scores: list[float]) -> Round:
    values = tuple(scores)
    return Round(number, Tuned(Recipe(1e-3, 3.0), values, values, np.zeros((0, 0)), ()), Learnable([], [], []))


@pytest.mark.parametrize(
    ("scores", "kept"),
    [([1.0] * 8, True), ([0.0] * 8, False), ([1.0, *[0.0] * 7], False), ([1.0, 1.0, 1.0, *[0.0] * 5], True)],
)
def test_a_round_is_kept_where_it_gains_more_than_a_standard_error(scores: list[float], kept: bool):
    said: list[str] = []
    log: list[dict[str, Any]] = []
    run = SimpleNamespace(reporter=SimpleNamespace(note=said.append), stage_log=log)
    context = cast(Any, SimpleNamespace(run=run))
    assert told(context, one(2, scores), one(1, [0.0] * 8)) is kept
    assert ("not kept" in said[0]) is not kept
    assert log[0]["name"] == "round 2"
    assert log[0]["kept"] == 0  # of the rows, of which this round has none
    assert log[0]["gain"] == pytest.approx(sum(scores) / 8)


def test_later_rounds_have_files_and_keys_of_their_own():
    assert FIRST.file("data/kept.parquet") == "data/kept.parquet"
    assert FIRST.key() == []
    assert Turn(3).file("data/kept_blind.parquet") == "data/kept_blind-3.parquet"
    assert Turn(3).key() != Turn(2).key()
