"""Intervals, paired tests and calibration error for scores measured on the same test rows.

Everything here needs numpy alone. A score is a number in [0, 1], one per test row; two systems are compared
row by row. References: percentile bootstrap (Efron and Tibshirani 1993), exact McNemar test (1947), sign-flip
randomisation test (Fisher 1935), expected calibration error (Guo et al. 2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_CELLS = 4_000_000  # counts held at once: 32 MB
_TAIL = 0.025  # each side of a 95% interval
_POWER = 1.959964 + 0.841621  # two-sided 5% and 80% power, in standard errors

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean with its 95% interval; unpacks as `mean, low, high`."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """The mean of `a - b` over rows, its 95% bootstrap interval and the two-sided p value of `test`."""

    difference: float
    ci95: tuple[float, float]
    p: float
    test: str


def mean_ci(scores: Sequence[float], seed: int = 0, *, resamples: int = RESAMPLES) -> Estimate:
    """Return the mean and its 95% percentile bootstrap interval.

    Where every score is 0 or every score is 1 a resample cannot vary, so the exact binomial bound stands in:
    20 right answers out of 20 do not prove a perfect system. Raises ValueError on an empty sequence.

    >>> mean_ci([1.0] * 20)
    Estimate(mean=1.0, low=0.8315..., high=1.0)
    """
    values = _checked(scores)
    mean = float(values.mean())
    bound: float = _TAIL ** (1 / len(values))
    if np.all(values == 1.0):
        return Estimate(1.0, bound, 1.0)
    if np.all(values == 0.0):
        return Estimate(0.0, 0.0, 1.0 - bound)
    low, high = np.quantile(_resampled_means(values, seed, resamples), [_TAIL, 1 - _TAIL])
    return Estimate(mean, float(low), float(high))


def paired_bootstrap(a: Sequence[float], b: Sequence[float], seed: int = 0, *, resamples: int = RESAMPLES) -> Paired:
    """Compare two systems on the same rows.

    The interval is the percentile bootstrap of the mean difference, 3/n to either side where all rows differ
    alike. The p value is McNemar's where all scores
    are 0 or 1, else that of the sign-flip test, its generalisation: both hold at any number of rows, while a
    bootstrap p value is far too small on few. Raises ValueError on unequal or empty sequences.

    >>> paired_bootstrap([1, 1, 0, 1], [1, 0, 0, 1]).difference
    0.25
    """
    left, right = _checked(a), _checked(b)
    if len(left) != len(right):
        raise ValueError(f"paired scores need the same rows, got {len(left)} and {len(right)}")
    differences = left - right
    if np.ptp(differences) == 0.0:
        # Rows that all agree would give an interval of no width: the rule of three (Hanley and Lippman-Hand 1983).
        half = 3.0 / len(differences)
        low, high = max(-1.0, differences[0] - half), min(1.0, differences[0] + half)
    else:
        low, high = np.quantile(_resampled_means(differences, seed, resamples), [_TAIL, 1 - _TAIL])
    binary = bool(np.isin(left, (0.0, 1.0)).all() and np.isin(right, (0.0, 1.0)).all())
    p = mcnemar(a, b) if binary else _sign_flip(differences, seed, resamples)
    return Paired(float(differences.mean()), (float(low), float(high)), p, "mcnemar" if binary else "sign-flip")


def mcnemar(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the two-sided p value of the exact McNemar test of 0/1 scores on the same rows.

    Only the rows where the two disagree count: under the null each falls either way with probability 1/2.
    Raises ValueError where a score is neither 0 nor 1.

    >>> mcnemar([1, 1, 1, 1, 1], [0, 0, 0, 0, 0])
    0.0625
    """
    left, right = _checked(a), _checked(b)
    if len(left) != len(right):
        raise ValueError(f"paired scores need the same rows, got {len(left)} and {len(right)}")
    if not (np.isin(left, (0.0, 1.0)).all() and np.isin(right, (0.0, 1.0)).all()):
        raise ValueError("the McNemar test needs scores of 0 or 1")
    wins, losses = int(np.sum(left > right)), int(np.sum(left < right))
    discordant, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(discordant, k) for k in range(fewer + 1))
    return float(min(1.0, 2 * tail / 2**discordant))


def ece(confidences: Sequence[float], correct: Sequence[float], bins: int = 10) -> float:
    """Return the expected calibration error over equal-width bins of confidence.

    The mean gap between a bin's confidence and its accuracy, weighted by the bin's rows; 0 is calibrated.
    Raises ValueError on unequal or empty sequences and on a confidence outside [0, 1].

    >>> round(ece([0.9, 0.9, 0.6, 0.6], [1, 1, 1, 0]), 3)
    0.1
    """
    confidence, right = _checked(confidences), _checked(correct)
    if len(confidence) != len(right):
        raise ValueError(f"calibration needs one answer per confidence, got {len(right)} of {len(confidence)}")
    if confidence.min() < 0 or confidence.max() > 1:
        raise ValueError("a confidence lies between 0 and 1")
    where = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(where, weights=confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def mean_gap(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Return the mean of a - b over the same rows and its standard error, 0 for a single row.

    >>> mean_gap([1.0, 1.0, 0.0], [0.0, 1.0, 0.0])
    (0.333..., 0.333...)
    """
    gap = _checked(a) - _checked(b)
    return float(gap.mean()), float(gap.std(ddof=1) / np.sqrt(len(gap))) if len(gap) > 1 else 0.0


def smallest_detectable(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the true difference that these rows would show at p < 0.05 in four of five draws.

    Taken from the spread of the paired differences; a plan for the next test set, not a test of this one.
    Where the rows do not differ at all, one discordant row stands in for the unknown spread.

    >>> round(smallest_detectable([1, 0] * 100, [0, 1] * 100), 3)
    0.199
    """
    differences = _checked(a) - _checked(b)
    rows = len(differences)
    spread = float(differences.std(ddof=1)) if rows > 1 else 1.0
    return _POWER * max(spread, math.sqrt(1 / rows)) / math.sqrt(rows)


def _checked(scores: Sequence[float]) -> Floats:
    values: Floats = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError("at least one score is needed")
    if not np.isfinite(values).all():
        raise ValueError("a score is not a finite number")
    return values


def _resampled_means(values: Floats, seed: int, resamples: int) -> Floats:
    """Means [resamples] of draws with replacement, drawn as counts of the distinct values."""
    distinct, counts = np.unique(values, return_counts=True)
    rng, rows = np.random.default_rng(seed), len(values)
    step = max(1, _CELLS // len(distinct))
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    return np.concatenate([rng.multinomial(rows, counts / rows, size=size) @ distinct / rows for size in sizes])


def _sign_flip(differences: Floats, seed: int, resamples: int) -> float:
    moved = differences[differences != 0.0]
    if not len(moved):
        return 1.0
    rng, observed = np.random.default_rng(seed), abs(float(moved.sum())) - 1e-9
    step = max(1, _CELLS // len(moved))
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    as_far = sum(
        int(np.sum(np.abs(rng.choice((-1.0, 1.0), size=(size, len(moved))) @ moved) >= observed)) for size in sizes
    )
    return (as_far + 1) / (resamples + 1)  # the observed signs are one of the draws
