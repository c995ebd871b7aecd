"""Judges calibrated on the user's own labels: error rates with intervals, and a threshold for a wanted precision.

A threshold is chosen on some folds of the rows and measured on the others, in turn, so that no number is reported
on rows it was chosen on. Intervals of shares are exact (Clopper and Pearson 1934), a judge's skill is the area
under its curve (Hanley and McNeil 1982) or, for preferences, how often it is right. A judge that is no better than
chance on the labels is refused.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, cast

import dspy

from limbeck.compile.concurrent import concurrently
from limbeck.errors import BudgetExceeded, InputError, ModelError
from limbeck.programs.judge import EVEN, Comparer, PositionBias, ProgramJudge, position_bias
from limbeck.stats import Estimate
from limbeck.verifiers import Verdict

Progress = Callable[[int, int], None]
_TAIL = 0.025  # each side of a 95% interval
_CHANCE = 0.05  # a judge whose skill luck explains more often than this is refused
_FEWEST = 4  # rows of either kind, without which no rate says anything


class Judge(Protocol):
    """Anything that scores a row: higher is better, None where it cannot say."""

    @property
    def name(self) -> str:
        """The judge's name in records and reports."""
        ...

    def __call__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> float | None:
        """Return the row's score."""
        ...


@dataclass(frozen=True)
class Labelled:
    """A row that a person judged: accepted or not; for preferences, whether the first answer is the better one."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    accepted: bool


@dataclass(frozen=True)
class CalibrateConfig:
    """How a threshold is chosen.

    `bound` says what must reach the wanted `precision` on the rows the threshold is chosen on: "mean", the share
    right with one row of either kind added (Laplace), for tens of labels; "lower", the lower end of its 95%
    interval, which takes 36 rows without an error for 0.9. With `folds=2` each half is measured with the other's
    threshold.
    """

    precision: float = 0.9
    bound: Literal["mean", "lower"] = "mean"
    folds: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.precision < 1 or self.folds < 2:
            raise InputError(
                f"precision {self.precision} with {self.folds} folds", valid="0 < precision < 1, folds >= 2"
            )


@dataclass(frozen=True)
class Rate:
    """A share of rows with its exact 95% interval; without rows it may be anything.

    >>> Rate(9, 10).share, round(Rate(9, 10).low, 3), Rate(0, 0).share
    (0.9, 0.555, None)
    """

    hits: int
    rows: int

    @property
    def share(self) -> float | None:
        """The share, None without rows."""
        return self.hits / self.rows if self.rows else None

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return _beta_quantile(_TAIL, self.hits, self.rows - self.hits + 1) if self.hits else 0.0

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return _beta_quantile(1 - _TAIL, self.hits + 1, self.rows - self.hits) if self.hits < self.rows else 1.0

    def report(self) -> dict[str, Any]:
        """Return the numbers for report.json."""
        return {"share": self.share, "ci95": [self.low, self.high], "hits": self.hits, "rows": self.rows}


def _beta_quantile(q: float, a: int, b: int) -> float:
    from scipy.special import betaincinv

    return float(betaincinv(a, b, q))


@dataclass(frozen=True)
class Calibration:
    """A judge's threshold and what it is worth; every rate is measured on rows the threshold was not chosen on.

    The rates are the choice's own, over the folds; `threshold`, chosen on all rows in the same way, has more rows
    behind it. In draws from known judges the interval of `precision` held that of `threshold` nine times of ten.

    `skill` is the area under the curve ("accept") or the share right of the choices made ("prefer") with its 95%
    interval, `p` the probability of as much by chance. `true_accept` is the share of good rows that pass,
    `false_accept` that of bad ones, `precision` the share of passing rows that are good, `coverage` the share that
    passes. `thresholds` are the folds' own, None where a fold found none and passed nothing. For preferences a row
    is the judge's choice, good where people chose the same.
    """

    kind: Literal["accept", "prefer"]
    threshold: float
    config: CalibrateConfig
    rows: int
    unparsable: int
    skill: Estimate
    p: float
    thresholds: tuple[float | None, ...]
    true_accept: Rate
    false_accept: Rate
    precision: Rate
    coverage: Rate
    bias: PositionBias | None = None

    def report(self) -> dict[str, Any]:
        """Return the numbers for report.json."""
        names = ("true_accept", "false_accept", "precision", "coverage")
        return {
            "kind": self.kind,
            "threshold": self.threshold,
            "wanted_precision": self.config.precision,
            "bound": self.config.bound,
            "folds": self.config.folds,
            "fold_thresholds": list(self.thresholds),
            "rows": self.rows,
            "unparsable": self.unparsable,
            "skill": {"value": self.skill.mean, "ci95": [self.skill.low, self.skill.high], "p": self.p},
            **{name: getattr(self, name).report() for name in names},
            "position_bias": self.bias.report() if self.bias else None,
        }


# -- calibration ---------------------------------------------------------------------------------------------


def calibrate(
    scores: Sequence[float | None], accepted: Sequence[bool], config: CalibrateConfig | None = None
) -> Calibration:
    """Return the calibration of a judge's scores on rows that people accepted or rejected; None passes never.

    Raises InputError for a judge no better than chance, for too few rows of a kind, and where no threshold
    reaches the wanted precision.
    """
    config = config or CalibrateConfig()
    values, good = _checked(scores, accepted)
    few = min(sum(good), len(good) - sum(good))
    if few < _FEWEST:
        raise InputError(f"{sum(good)} accepted and {len(good) - sum(good)} rejected rows", valid=f"{_FEWEST} of each")
    skill, p = area_under_curve(values, good)
    if p >= _CHANCE:
        raise _no_skill(f"area under the curve {skill.mean:.2f}", skill, p, values)
    return _calibration("accept", values, good, config, skill, p)


def calibrate_preferences(
    scores: Sequence[float | None], first_better: Sequence[bool], config: CalibrateConfig | None = None
) -> Calibration:
    """Return the calibration of a judge of pairs; a score is the probability that the first answer is better.

    The threshold holds for the judge's choice, whichever it is, and is above 0.5; leave rows out that people call
    a tie. Raises as `calibrate` does.
    """
    from scipy.stats import binomtest

    config = config or CalibrateConfig()
    values, first = _checked(scores, first_better)
    confidence = [max(s, 1 - s) if s >= 0 else s for s in values]
    chose = [s >= 0 and abs(s - 0.5) > EVEN for s in values]
    right = [c and (s > 0.5) == is_first for c, s, is_first in zip(chose, values, first, strict=True)]
    if len(right) < 2 * _FEWEST:
        raise InputError(f"{len(right)} rows with a preference", valid=f"at least {2 * _FEWEST}")
    told = Rate(sum(right), sum(chose))
    p = float(cast(Any, binomtest(told.hits, told.rows, alternative="greater")).pvalue) if told.rows else 1.0
    skill = Estimate(told.share or 0.0, told.low, told.high)
    if p >= _CHANCE:
        raise _no_skill(f"right on {told.hits} of the {told.rows} pairs it chose from", skill, p, values)
    return _calibration("prefer", confidence, right, config, skill, p)


def _checked(scores: Sequence[float | None], labels: Sequence[bool]) -> tuple[list[float], list[bool]]:
    """Return the scores, -inf for one that is missing or no number."""
    if len(scores) != len(labels):
        raise InputError(f"{len(scores)} scores for {len(labels)} labels")
    return [s if s is not None and math.isfinite(s) else -math.inf for s in scores], [bool(label) for label in labels]


def _no_skill(told: str, skill: Estimate, p: float, values: Sequence[float]) -> InputError:
    lost = sum(value == -math.inf for value in values)
    return InputError(
        f"the judge is no better than chance on {len(values)} labelled rows: {told}, 95% interval "
        f"{skill.low:.2f} to {skill.high:.2f}, p = {p:.2g}, {lost} unreadable answers",
        valid=f"more than 0.5 with p < {_CHANCE}",
        hint="label more rows, state the criteria, or take a larger model as the judge",
    )


def area_under_curve(scores: Sequence[float], good: Sequence[bool]) -> tuple[Estimate, float]:
    """Return the probability that a good row scores above a bad one, and the one-sided p of as much by chance.

    Ties count half. The interval is Hanley and McNeil's, the p value Mann and Whitney's.

    >>> estimate, p = area_under_curve([0.9, 0.8, 0.7, 0.3, 0.2], [True, True, True, False, False])
    >>> estimate.mean, p
    (1.0, 0.1)
    """
    from scipy.stats import mannwhitneyu

    pairs = list(zip(scores, good, strict=True))
    above, below = [s for s, is_good in pairs if is_good], [s for s, is_good in pairs if not is_good]
    test: Any = mannwhitneyu(above, below, alternative="greater")
    m, n, area = len(above), len(below), float(test.statistic) / (len(above) * len(below))
    if area in (0.0, 1.0):  # no error to estimate the interval's width from: as for so many rows without an exception
        low = _TAIL ** (1 / min(m, n))
        return Estimate(area, low if area else 0.0, 1.0 if area else 1 - low), float(test.pvalue)
    q1, q2 = area / (2 - area), 2 * area * area / (1 + area)
    variance = (area * (1 - area) + (m - 1) * (q1 - area**2) + (n - 1) * (q2 - area**2)) / (m * n)
    reach = 1.959964 * math.sqrt(variance)
    return Estimate(area, max(0.0, area - reach), min(1.0, area + reach)), float(test.pvalue)


def choose_threshold(scores: Sequence[float], good: Sequence[bool], config: CalibrateConfig) -> float | None:
    """Return the lowest score from which on enough rows are good, None where there is none.

    >>> choose_threshold([0.9, 0.8, 0.7, 0.2], [True, True, True, False], CalibrateConfig(precision=0.75))
    0.7
    """
    passing, right, chosen = 0, 0, None
    ordered = sorted(zip(scores, good, strict=True), key=lambda pair: -pair[0])
    for at, (score, is_good) in enumerate(ordered):
        passing, right = passing + 1, right + is_good
        last_of_its_score = at + 1 == len(ordered) or ordered[at + 1][0] < score
        if score > -math.inf and last_of_its_score and _estimate(right, passing, config) >= config.precision:
            chosen = score
    return chosen


def _estimate(right: int, passing: int, config: CalibrateConfig) -> float:
    return (right + 1) / (passing + 2) if config.bound == "mean" else Rate(right, passing).low


def _calibration(
    kind: Literal["accept", "prefer"],
    scores: Sequence[float],
    good: Sequence[bool],
    config: CalibrateConfig,
    skill: Estimate,
    p: float,
) -> Calibration:
    threshold = choose_threshold(scores, good, config)
    if threshold is None:
        raise _unreachable(scores, good, config)
    folds = _folds(good, config)
    thresholds: list[float | None] = []
    passed = [False] * len(scores)
    for fold in range(config.folds):
        rest = [i for i, own in enumerate(folds) if own != fold]
        found = choose_threshold([scores[i] for i in rest], [good[i] for i in rest], config)
        thresholds.append(found)
        for i in set(range(len(folds))) - set(rest):
            passed[i] = found is not None and scores[i] >= found
    hits = sum(a and b for a, b in zip(passed, good, strict=True))
    return Calibration(
        kind=kind,
        threshold=threshold,
        config=config,
        rows=len(scores),
        unparsable=sum(score == -math.inf for score in scores),
        skill=skill,
        p=p,
        thresholds=tuple(thresholds),
        true_accept=Rate(hits, sum(good)),
        false_accept=Rate(sum(passed) - hits, len(good) - sum(good)),
        precision=Rate(hits, sum(passed)),
        coverage=Rate(sum(passed), len(passed)),
    )


def _folds(good: Sequence[bool], config: CalibrateConfig) -> list[int]:
    """Return each row's fold, drawn by seed with the same share of good rows in every fold."""
    folds, draw = [0] * len(good), random.Random(config.seed)
    for kind in (True, False):
        rows = [i for i, is_good in enumerate(good) if is_good == kind]
        draw.shuffle(rows)
        for at, i in enumerate(rows):
            folds[i] = at % config.folds
    return folds


def _unreachable(scores: Sequence[float], good: Sequence[bool], config: CalibrateConfig) -> InputError:
    counts = [
        (sum(is_good and s >= t for s, is_good in zip(scores, good, strict=True)), sum(s >= t for s in scores))
        for t in set(scores)
        if t > -math.inf
    ]
    right, passing = max(counts, key=lambda pair: _estimate(*pair, config))
    best = _estimate(right, passing, config)
    return InputError(
        f"no threshold reaches a precision of {config.precision}: the best is {best:.2f} by its "
        f"{'lower bound' if config.bound == 'lower' else 'mean'}, {right} of {passing} rows right",
        valid=f"a precision up to {best:.2f}",
        hint="ask for less, or label more rows",
    )


# -- judges as verifiers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CalibratedJudge:
    """A verifier that passes rows whose score reaches the calibrated threshold; a row without a score fails."""

    judge: Judge
    calibration: Calibration

    @property
    def name(self) -> str:
        """The verifier's name."""
        return f"{self.judge.name} at {self.calibration.threshold:.2f}"

    def __call__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Verdict:
        """Return the verdict; for preferences, whether the first answer is surely the better one."""
        score, threshold = self.judge(inputs, outputs), self.calibration.threshold
        if score is None or not math.isfinite(score):
            return Verdict(False, f"{self.judge.name} gave no rating")
        return Verdict(
            score >= threshold, "" if score >= threshold else f"{self.judge.name} {score:.2f} < {threshold:.2f}"
        )

    def report(self) -> dict[str, Any]:
        """Return the numbers for report.json."""
        return {"judge": self.judge.name, **self.calibration.report()}


def calibrated_judge(
    judge: Judge,
    rows: Sequence[Labelled],
    config: CalibrateConfig | None = None,
    *,
    preferences: bool = False,
    threads: int = 16,
    progress: Progress | None = None,
) -> CalibratedJudge:
    """Return the judge with the threshold and error rates that the labelled rows give it.

    A row on which the judge raises has no score; BudgetExceeded and ModelError pass through, and so does what
    `calibrate` and `calibrate_preferences` (for `preferences`) raise. `progress` gets (rows done, rows).
    """
    made, done = list[Any](), 0

    def ask(row: Labelled) -> Any:
        try:
            if isinstance(judge, ProgramJudge):
                return judge.ask(row.inputs, row.outputs)
            return judge(row.inputs, row.outputs)
        except (BudgetExceeded, ModelError):
            raise
        except Exception:  # a judge's own stumble over one row
            return None

    def count(_: Any) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(rows))

    made = concurrently(ask, rows, threads=threads, done=count)
    scores = [one.score if isinstance(one, dspy.Prediction) else one for one in made]
    fit = calibrate_preferences if preferences else calibrate
    found = fit(scores, [row.accepted for row in rows], config)
    if isinstance(judge, ProgramJudge) and isinstance(judge.program, Comparer):
        found = replace(found, bias=position_bias([one for one in made if one is not None]))
    return CalibratedJudge(judge, found)
