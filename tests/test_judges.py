"""Calibration: exact intervals, honest thresholds, judges that are refused, verifiers that keep their word."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import scripted

from limbeck.compile.judges import (
    CalibrateConfig,
    CalibratedJudge,
    Labelled,
    Rate,
    area_under_curve,
    calibrate,
    calibrate_preferences,
    calibrated_judge,
    choose_threshold,
)
from limbeck.engine.requests import GenerateRequest
from limbeck.errors import BudgetExceeded, InputError
from limbeck.models import CompactAdapter
from limbeck.programs.judge import Approver, Comparer, ProgramJudge
from limbeck.verifiers import Verdict, votes


@dataclass(frozen=True)
class ByField:
    """A judge that reads its score off the row."""

    name: str = "reader"

    def __call__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> float | None:
        return outputs["score"]


def drawn(rows: int, apart: float, seed: int = 0, share: float = 0.6) -> tuple[list[float | None], list[bool]]:
    """Scores of good and bad rows from two normal distributions that far apart."""
    draw = random.Random(seed)
    good = [draw.random() < share for _ in range(rows)]
    return [draw.gauss(apart if is_good else 0.0, 1.0) for is_good in good], good


# -- shares and areas ----------------------------------------------------------------------------------------


def test_intervals_are_those_of_clopper_and_pearson():
    # 4 of 10 and 0 of 10 from the exact binomial tails.
    assert (round(Rate(4, 10).low, 4), round(Rate(4, 10).high, 4)) == (0.1216, 0.7376)
    assert (Rate(0, 10).low, round(Rate(0, 10).high, 4)) == (0.0, 0.3085)
    assert (round(Rate(10, 10).low, 4), Rate(10, 10).high) == (0.6915, 1.0)
    assert Rate(0, 0).report() == {"share": None, "ci95": [0.0, 1.0], "hits": 0, "rows": 0}


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_the_area_is_the_share_of_pairs_in_the_right_order(pairs: list[tuple[int, bool]]):
    above, below = [s for s, good in pairs if good], [s for s, good in pairs if not good]
    if not (above and below):
        return
    area, p = area_under_curve([float(s) for s, _ in pairs], [good for _, good in pairs])
    expected = sum((a > b) + (a == b) / 2 for a in above for b in below) / (len(above) * len(below))
    assert area.mean == pytest.approx(expected)
    assert area.low <= area.mean <= area.high
    assert 0 <= p <= 1


def test_a_perfect_area_keeps_an_interval_of_some_width():
    area, p = area_under_curve([3.0, 4.0, 5.0, 6.0, 0.0, 1.0, 2.0, -1.0], [True] * 4 + [False] * 4)
    assert (area.mean, area.high) == (1.0, 1.0)
    assert 0.3 < area.low < 0.5
    assert p < 0.05


# -- thresholds ----------------------------------------------------------------------------------------------


def test_the_threshold_lets_as_many_pass_as_the_precision_allows():
    scores, good = [0.9, 0.8, 0.7, 0.7, 0.6, 0.5], [True, True, True, False, True, False]
    assert choose_threshold(scores, good, CalibrateConfig(precision=0.6)) == 0.5  # (4 + 1) of (6 + 2)
    assert choose_threshold(scores, good, CalibrateConfig(precision=0.7)) == 0.6
    assert choose_threshold(scores, good, CalibrateConfig(precision=0.75)) == 0.8
    assert choose_threshold(scores, good, CalibrateConfig(precision=0.9)) is None
    assert choose_threshold([0.7, 0.7], [True, False], CalibrateConfig(precision=0.6)) is None  # never within a tie
    assert choose_threshold([float("-inf")] * 20, [True] * 20, CalibrateConfig(precision=0.6)) is None


def test_the_lower_bound_asks_for_36_rows_without_an_error():
    strict = CalibrateConfig(precision=0.9, bound="lower")
    assert choose_threshold([1.0] * 35, [True] * 35, strict) is None
    assert choose_threshold([1.0] * 36, [True] * 36, strict) == 1.0


def test_rates_are_measured_with_the_thresholds_of_the_other_folds():
    scores, good = drawn(200, 2.0)
    found = calibrate(scores, good, CalibrateConfig(precision=0.9, folds=4, seed=3))
    assert len(found.thresholds) == 4
    assert found.true_accept.rows == sum(good)
    assert found.false_accept.rows == 200 - sum(good)
    assert found.coverage.rows == 200
    assert found.precision.rows == found.coverage.hits == found.true_accept.hits + found.false_accept.hits
    assert found.precision.hits == found.true_accept.hits


def test_rates_of_other_folds_do_not_flatter_as_the_rows_of_the_choice_do():
    fresh, good_fresh = drawn(20_000, 1.2, seed=99)

    def precision_at(threshold: float, scores: list[float | None], good: list[bool]) -> float:
        passed = [is_good for s, is_good in zip(scores, good, strict=True) if s is not None and s >= threshold]
        return sum(passed) / len(passed)

    chosen_on: list[float] = []
    crossed: list[float] = []
    true: list[float] = []
    for seed in range(60):
        scores, good = drawn(60, 1.2, seed)
        try:
            found = calibrate(scores, good, CalibrateConfig(precision=0.8, seed=seed))
        except InputError:
            continue
        if found.precision.share is not None:
            chosen_on.append(precision_at(found.threshold, scores, good))
            crossed.append(found.precision.share)
            true.append(precision_at(found.threshold, fresh, good_fresh))
    flattery, honest = sum(chosen_on) - sum(true), sum(crossed) - sum(true)
    assert len(true) > 30
    assert flattery / len(true) > 0.02
    assert honest < flattery / 4


@pytest.mark.parametrize("bound", ["mean", "lower"])
def test_a_wanted_precision_is_kept_on_fresh_rows(bound: Any):
    fresh, good_fresh = drawn(20_000, 2.0, seed=99)
    kept: list[float] = []
    for seed in range(12):
        found = calibrate(*drawn(300, 2.0, seed), CalibrateConfig(precision=0.85, bound=bound, seed=seed))
        passed = [good for s, good in zip(fresh, good_fresh, strict=True) if s is not None and s >= found.threshold]
        kept.append(sum(passed) / len(passed))
    assert sum(kept) / len(kept) > (0.85 if bound == "lower" else 0.83)


def test_a_judge_no_better_than_chance_is_refused_with_its_numbers():
    scores, good = drawn(60, 0.0, seed=1)
    with pytest.raises(InputError, match=r"no better than chance on 60 labelled rows: area under the curve 0\.\d\d"):
        calibrate(scores, good)
    with pytest.raises(InputError, match=r"p = .*, 60 unreadable answers"):
        calibrate([None] * 60, good)
    backwards = [-s if s is not None else s for s in drawn(60, 2.0)[0]]
    with pytest.raises(InputError, match="no better than chance"):
        calibrate(backwards, drawn(60, 2.0)[1])


def test_too_few_rows_and_precisions_out_of_reach_are_named():
    with pytest.raises(InputError, match="3 accepted and 5 rejected rows"):
        calibrate([1.0] * 8, [True] * 3 + [False] * 5)
    with pytest.raises(InputError, match="2 scores for 1 labels"):
        calibrate([1.0, 2.0], [True])
    scores, good = drawn(60, 1.0)
    with pytest.raises(InputError, match=r"no threshold reaches a precision of 0\.99: the best is 0\.\d\d"):
        calibrate(scores, good, CalibrateConfig(precision=0.99))
    with pytest.raises(InputError, match=r"precision 1\.5"):
        CalibrateConfig(precision=1.5)
    with pytest.raises(InputError, match="1 folds"):
        CalibrateConfig(folds=1)


def test_unparsable_rows_never_pass_and_are_counted():
    scores, good = drawn(200, 2.0)
    with_gaps = [None if i % 10 == 0 else s for i, s in enumerate(scores)]
    found = calibrate([*with_gaps, float("nan")], [*good, True])
    assert found.unparsable == 21
    assert found.true_accept.share is not None
    assert found.true_accept.share < (calibrate(scores, good).true_accept.share or 0)


# -- preferences ---------------------------------------------------------------------------------------------


def test_preferences_are_judged_by_the_judges_choice():
    draw = random.Random(0)
    first = [draw.random() < 0.5 for _ in range(200)]
    sure = [draw.uniform(0.5, 1.0) for _ in range(200)]
    right = [draw.random() < c for c in sure]
    scores = [c if f == r else 1 - c for c, f, r in zip(sure, first, right, strict=True)]
    found = calibrate_preferences(scores, first, CalibrateConfig(precision=0.85))
    assert found.kind == "prefer"
    assert found.skill.mean == pytest.approx(sum(right) / 200)
    assert 0.6 < found.threshold < 1.0
    mirrored = calibrate_preferences([1 - s for s in scores], [not f for f in first], CalibrateConfig(precision=0.85))
    assert mirrored.threshold == pytest.approx(found.threshold)


def test_a_tie_is_no_right_choice_and_a_coin_is_refused():
    with pytest.raises(InputError, match="right on 0 of the 0 pairs"):
        calibrate_preferences([0.5] * 20, [True] * 20)
    with pytest.raises(InputError, match="right on 10 of the 20 pairs"):
        calibrate_preferences([0.9] * 20, [True, False] * 10)
    unsure = calibrate_preferences([0.5] * 40 + [0.9] * 30 + [0.1] * 30, [True] * 70 + [False] * 30)
    assert (unsure.skill.mean, unsure.threshold, unsure.coverage.hits) == (1.0, 0.9, 60)
    with pytest.raises(InputError, match="4 rows with a preference"):
        calibrate_preferences([0.9] * 4, [True] * 4)


# -- verifiers -----------------------------------------------------------------------------------------------


def rows_of(scores: list[float | None], good: list[bool]) -> list[Labelled]:
    return [Labelled({"q": str(i)}, {"score": s}, g) for i, (s, g) in enumerate(zip(scores, good, strict=True))]


def test_a_calibrated_judge_is_a_verifier_at_its_threshold():
    seen: list[tuple[int, int]] = []
    scores, good = drawn(120, 2.0)
    judge = calibrated_judge(ByField(), rows_of(scores, good), progress=lambda *at: seen.append(at))
    threshold = judge.calibration.threshold
    assert seen[-1] == (120, 120)
    assert judge({}, {"score": threshold}) == Verdict(True)
    assert judge({}, {"score": threshold - 0.01}).reason.startswith("reader ")
    assert judge({}, {"score": None}) == Verdict(False, "reader gave no rating")
    assert judge.name == f"reader at {threshold:.2f}"
    assert votes([judge], {}, {})[judge.name].reason == "KeyError: 'score'"
    report = json.loads(json.dumps(judge.report()))
    assert report["judge"] == "reader"
    assert report["precision"]["ci95"][0] <= report["precision"]["share"]
    assert report["wanted_precision"] == 0.9
    assert report["position_bias"] is None


def test_a_row_that_the_judge_stumbles_over_is_unparsable_but_an_empty_budget_ends_it():
    scores, good = drawn(80, 3.0)
    rows = rows_of(scores, good)
    broken = [Labelled(row.inputs, {}, row.accepted) if i < 5 else row for i, row in enumerate(rows)]
    assert calibrated_judge(ByField(), broken).calibration.unparsable == 5

    class Spent(ByField):
        def __call__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> float | None:
            raise BudgetExceeded("spent")

    with pytest.raises(BudgetExceeded):
        calibrated_judge(Spent(), rows)


def test_a_judge_program_is_calibrated_with_its_votes_and_its_bias():
    def approve(request: GenerateRequest) -> str:
        return "yes" if "right" in request.messages[-1][1] else "no"

    rows = [Labelled({"q": str(i)}, {"a": "right" if i % 2 else "wrong"}, i % 2 == 1) for i in range(24)]
    judge = ProgramJudge(Approver(), scripted(approve)[0], ("a",), CompactAdapter())
    found = calibrated_judge(judge, rows, CalibrateConfig(precision=0.8))
    assert isinstance(found, CalibratedJudge)
    assert (found.calibration.true_accept.share, found.calibration.false_accept.share) == (1.0, 0.0)
    assert found({"q": "7"}, {"a": "right"}).ok
    assert not found({"q": "7"}, {"a": "wrong"}).ok

    def compare(request: GenerateRequest) -> str:
        first = request.messages[-1][1].split("answer_a: ")[1].split("\n")[0]
        return "unclear" if "odd" in first else "A" if "good" in first else "B"

    pairs = [
        Labelled({"q": str(i)}, {"one": "good" if i % 2 else "bad", "two": "bad" if i % 2 else "good"}, i % 2 == 1)
        for i in range(24)
    ]
    odd = Labelled({"q": "x"}, {"one": "odd", "two": "good"}, True)
    comparer = ProgramJudge(Comparer(), scripted(compare)[0], ("one", "two"), CompactAdapter(), "pairs")
    found = calibrated_judge(comparer, [*pairs, odd], CalibrateConfig(precision=0.8), preferences=True)
    bias = found.calibration.bias
    assert bias is not None
    assert (bias.first.mean, bias.flipped, bias.rows, bias.unparsable) == (0.5, 0.0, 24, 1)
    assert (found.calibration.unparsable, found.calibration.skill.mean) == (1, 1.0)
    assert found({}, {"one": "good", "two": "bad"}).ok
    assert not found({}, {"one": "bad", "two": "good"}).ok
    assert found.report()["position_bias"]["rows"] == 24
