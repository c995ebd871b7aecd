"""The statistics against scipy's, and the properties that any score must meet."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from limbeck.stats import ece, mcnemar, mean_ci, paired_bootstrap, smallest_detectable

unit = st.floats(0, 1, allow_subnormal=False)
scores = st.lists(unit, min_size=1, max_size=60)
pairs = st.lists(st.tuples(unit, unit), min_size=1, max_size=60)
answers = st.lists(st.tuples(st.sampled_from([0, 1]), st.sampled_from([0, 1])), min_size=1, max_size=60)


def test_rows_that_all_agree_leave_room_for_others() -> None:
    assert paired_bootstrap([1.0] * 10, [0.0] * 10).ci95 == pytest.approx((0.7, 1.0))
    assert paired_bootstrap([1.0] * 300, [1.0] * 300).ci95 == pytest.approx((-0.01, 0.01))


def test_the_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(3).beta(2, 1, size=150)
    found = mean_ci(values.tolist(), seed=1)
    theirs = reference.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(theirs.low, abs=0.003)
    assert found.high == pytest.approx(theirs.high, abs=0.003)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = [mean_ci(rng.binomial(1, 0.7, size=200).tolist(), seed=i, resamples=500) for i in range(300)]
    assert 0.91 <= np.mean([d.low <= 0.7 <= d.high for d in draws]) <= 0.98


def test_resampling_in_chunks_does_not_change_the_interval(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(5).random(40).tolist()
    whole = mean_ci(values, seed=2)
    monkeypatch.setattr("limbeck.stats._CELLS", 1_000)
    assert mean_ci(values, seed=2) == whole


@pytest.mark.parametrize(("score", "low", "high"), [(1.0, 0.831566, 1.0), (0.0, 0.0, 0.168434)])
def test_twenty_of_twenty_is_not_a_proof(score: float, low: float, high: float):
    exact = reference.binomtest(int(20 * score), 20).proportion_ci(0.95)
    found = mean_ci([score] * 20)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-5)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9)


@given(scores, st.integers(0, 5))
@settings(max_examples=40)
def test_an_interval_is_ordered_and_drawn_by_its_seed(values: list[float], seed: int):
    found = mean_ci(values, seed, resamples=400)
    assert min(values) - 1e-9 <= found.mean <= max(values) + 1e-9
    assert 0.0 <= found.low <= found.high <= 1.0 + 1e-12
    assert found == mean_ci(values, seed, resamples=400)


@given(pairs)
@settings(max_examples=40)
def test_swapping_the_systems_negates_the_difference(rows: list[tuple[float, float]]):
    a, b = [r[0] for r in rows], [r[1] for r in rows]
    one, other = paired_bootstrap(a, b, resamples=300), paired_bootstrap(b, a, resamples=300)
    assert one.difference == pytest.approx(-other.difference)
    assert one.p == pytest.approx(other.p, abs=0.15)
    assert 0.0 < one.p <= 1.0
    assert one.ci95[0] - 1e-9 <= one.ci95[1]


def test_the_sign_flip_test_is_scipys_permutation_test():
    rng = np.random.default_rng(7)
    a, b = rng.random(12), rng.random(12) * 0.7
    exact = reference.permutation_test(
        (a - b,), np.mean, permutation_type="samples", n_resamples=2**12, vectorized=False
    ).pvalue
    found = paired_bootstrap(a.tolist(), b.tolist())
    assert found.test == "sign-flip"
    assert found.p == pytest.approx(exact, abs=0.02)


def test_two_rows_never_look_significant():
    assert paired_bootstrap([0.9, 0.8], [0.1, 0.0]).p > 0.4


@given(answers)
@settings(max_examples=80)
def test_mcnemar_is_the_exact_binomial_test(rows: list[tuple[int, int]]):
    a, b = [r[0] for r in rows], [r[1] for r in rows]
    wins, losses = sum(x > y for x, y in rows), sum(x < y for x, y in rows)
    expected = reference.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar(a, b) == pytest.approx(expected)
    assert paired_bootstrap(a, b, resamples=50).test == "mcnemar"
    assert paired_bootstrap(a, b, resamples=50).p == mcnemar(a, b)


def test_mcnemar_stands_thousands_of_rows():
    assert mcnemar([1, 0] * 4000, [0, 1] * 4000) == 1.0


def test_mcnemar_refuses_scores_between_right_and_wrong():
    with pytest.raises(ValueError, match="0 or 1"):
        mcnemar([0.5], [1.0])


@given(st.lists(st.tuples(unit, st.sampled_from([0, 1])), min_size=1, max_size=60), st.integers(1, 20))
@settings(max_examples=60)
def test_the_calibration_error_is_the_weighted_gap_of_the_bins(rows: list[tuple[float, int]], bins: int):
    expected = 0.0
    for k in range(bins):
        inside = [r for r in rows if min(int(r[0] * bins), bins - 1) == k]
        if inside:
            confidence, accuracy = np.mean(inside, axis=0)
            expected += len(inside) / len(rows) * abs(confidence - accuracy)
    found = ece([r[0] for r in rows], [r[1] for r in rows], bins)
    assert found == pytest.approx(expected, abs=1e-9)
    assert 0.0 <= found <= 1.0


def test_a_sure_and_wrong_model_has_the_largest_error():
    assert ece([1.0] * 5, [0] * 5) == 1.0
    assert ece([1.0] * 5, [1] * 5) == 0.0


def test_a_difference_of_the_smallest_detectable_size_is_found_in_four_of_five():
    rng = np.random.default_rng(1)
    size = smallest_detectable([0.3, -0.3] * 50, [0.0] * 100)
    found = [paired_bootstrap(rng.normal(size, 0.3, 100).tolist(), [0.0] * 100, i, resamples=400).p for i in range(200)]
    assert 0.7 <= np.mean([p < 0.05 for p in found]) <= 0.9


def test_systems_that_never_disagree_have_a_smallest_detectable_difference_above_zero():
    assert smallest_detectable([1.0] * 100, [1.0] * 100) == pytest.approx(2.8016 / 100, abs=1e-3)


@pytest.mark.parametrize("bad", [[], [float("nan")], [float("inf"), 1.0]])
@pytest.mark.parametrize("measure", [lambda x: mean_ci(x), lambda x: paired_bootstrap(x, x), lambda x: ece(x, x)])
def test_no_scores_and_no_numbers_are_refused(bad: list[float], measure):
    with pytest.raises(ValueError, match="score"):
        measure(bad)


@pytest.mark.parametrize(("compare", "sizes"), list(product([paired_bootstrap, mcnemar, ece], [(1, 2), (3, 2)])))
def test_unequal_lengths_are_refused(compare, sizes: tuple[int, int]):
    with pytest.raises(ValueError, match=r"same rows|one answer"):
        compare([1.0] * sizes[0], [1.0] * sizes[1])


def test_a_confidence_above_one_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        ece([1.5], [1])
