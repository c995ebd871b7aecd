"""Labels of chosen against random solutions: on a tiny random model, and the factor on curves that are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_reproduce_experiments import check_outcome

from limbeck.errors import StageEmpty
from limbeck.reproduce import active, prm
from limbeck.reproduce.setting import Setting

SIZES = active.Sizes(2, (4,), (4, 6), prm.Sizes(worked=8, graded=4, tested=6, n=3, operations=2))


def test_both_kinds_of_labels_choose_among_the_same_solutions(setting: Setting) -> None:
    outcome = active.run(setting, SIZES)
    names = ("4 labels, chosen", "4 labels, random", "6 labels, random")
    bounds = ("one solution", "a right one is among them")
    check_outcome(outcome, (active.CHOSEN, active.RANDOM, "2 labels, the start", *names, *bounds), 6, setting.folder)
    assert [point[0] for point in outcome.curves["random"]] == [2, 4, 6]
    assert [point[0] for point in outcome.curves["chosen"]] == [2, 4]
    assert "4 chosen labels do what" in " ".join(outcome.notes)
    assert "labelled solutions" in (setting.folder / "figure.svg").read_text(encoding="utf-8")


def test_more_labels_than_there_are_solutions_are_refused(setting: Setting) -> None:
    with pytest.raises(StageEmpty, match="500 are to be labelled"):
        active.run(setting, replace(SIZES, random=(4, 500)))


def scores(right: int, of: int = 400) -> tuple[float, ...]:
    drawn = np.random.default_rng(right).permutation(of)
    return tuple(float(place < right) for place in drawn)


def test_the_factor_is_read_off_the_random_curve() -> None:
    curve = {40: scores(120), 80: scores(160), 160: scores(200), 320: scores(240)}
    found = active.factor(80, scores(220), curve)
    assert found.value == pytest.approx(160 * 2**0.5 / 80)
    assert found.ci95[0] < found.value < found.ci95[1] <= 4
    same = active.factor(80, curve[80], curve)
    assert same.value == pytest.approx(1)
    assert same.ci95[0] <= 1 <= same.ci95[1]


def test_beyond_the_sizes_the_factor_is_a_bound() -> None:
    curve = {40: scores(120), 160: scores(200)}
    assert "at least 2.0 times" in active.told(active.factor(80, scores(380), curve))
    assert "at most 0.5 times" in active.told(active.factor(80, scores(10), curve))


def test_a_random_curve_that_falls_counts_as_flat() -> None:
    assert active.labels_for(0.45, [40, 80, 160], [0.4, 0.3, 0.5]) == pytest.approx(80 * 2**0.5)
