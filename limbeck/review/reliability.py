"""How far reviewers agree with each other, and how often they accept what the machine's labels say.

Two reviewers: Cohen's kappa (1960). More: Krippendorff's alpha for nominal values (2004), which bears rows that some
have not judged. Both are 1 less the observed disagreement over the one expected by chance: 1 all agree, 0 as by
chance. Intervals are 95% percentile bootstraps over rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from limbeck.records import Record
from limbeck.review.decisions import answer_key, decide, latest, review_key
from limbeck.review.store import Review
from limbeck.stats import mean_ci

RESAMPLES = 2000
_TAIL = 0.025
_CELLS = 4_000_000  # counts held at once: 32 MB
_NOTHING = 1e-12  # what rounding leaves of a disagreement of 0

Floats = NDArray[np.float64]
# What is compared: the answers that reviewers end with, or whether they accepted, corrected or rejected the row.
Over = Literal["answers", "verdicts"]
_OVER: tuple[Over, ...] = ("answers", "verdicts")


@dataclass(frozen=True)
class Rate:
    """A share with its 95% interval and the rows that it is of."""

    value: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True)
class Coefficient:
    """Agreement beyond chance on rows that two or more judged; None where all gave one and the same answer."""

    name: Literal["cohen_kappa", "krippendorff_alpha"]
    over: Over
    value: float | None
    low: float | None
    high: float | None
    same: float
    rows: int


@dataclass(frozen=True)
class Agreement:
    """What reviews say about the labels and about themselves; `dataclasses.asdict` gives plain JSON values.

    `precision` is the share of the random part whose answer a majority of its reviewers gives as well (a tie counts
    half): an unbiased estimate for all kept rows, None before any of them is judged. `claimed` is the mean
    probability that the labels themselves give to these answers: equal to `precision` where they are calibrated.
    `open_random` rows of the random part wait for a verdict. `reviewers` counts each one's last verdicts by name.
    """

    reviewers: Mapping[str, Mapping[str, int]]
    judged: int
    shared: int
    tied: int
    precision: Rate | None
    claimed: float | None
    open_random: int
    coefficients: tuple[Coefficient, ...]


def agreement(
    records: Iterable[Record],
    verdicts: Sequence[Review],
    *,
    random_part: Collection[str] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Agreement:
    """Return agreement among reviewers, and with the records' own answers on the rows of the random part.

    `records` are the kept rows as the machine labelled them, `random_part` the ids that were drawn at random.

    >>> said = [Review(row, who, "accept", {"y": "a"}, {"y": "a"}) for row in ("r", "s") for who in ("ada", "ben")]
    >>> agreement([], said).shared
    2
    """
    last = {record: dict(said) for record, said in latest(verdicts).items()}
    known = {record.id: record for record in records}
    drawn = [known[one] for one in dict.fromkeys(random_part) if one in known]
    judged = [record for record in drawn if record.id in last]
    shared = [said for said in last.values() if len(said) > 1]
    counts: dict[str, Counter[str]] = {}
    for said in last.values():
        for who, review in said.items():
            counts.setdefault(who, Counter())[review.verdict] += 1
    return Agreement(
        reviewers={who: dict(sorted(counts[who].items())) for who in sorted(counts)},
        judged=len(last),
        shared=len(shared),
        tied=sum(decision.tied for decision in decide(verdicts).values()),
        precision=_precision(judged, last, seed),
        claimed=_claimed(judged),
        open_random=len(drawn) - len(judged),
        coefficients=tuple(_coefficient(shared, over, seed, resamples) for over in _OVER) if shared else (),
    )


def _precision(judged: Sequence[Record], last: Mapping[str, Mapping[str, Review]], seed: int) -> Rate | None:
    if not judged:
        return None
    scores: list[float] = []
    for record in judged:
        said = [review_key(review) for review in last[record.id].values()]
        share = said.count(answer_key(record.outputs)) / len(said)
        scores.append(0.5 if share == 0.5 else float(share > 0.5))
    return Rate(*mean_ci(scores, seed), len(scores))


def _claimed(judged: Sequence[Record]) -> float | None:
    if not judged or any(record.soft is None or len(record.outputs) != 1 for record in judged):
        return None
    return float(np.mean([(r.soft or {}).get(str(next(iter(r.outputs.values()))), 0.0) for r in judged]))


def _coefficient(shared: Sequence[Mapping[str, Review]], over: Over, seed: int, resamples: int) -> Coefficient:
    rows = [{who: review_key(r) if over == "answers" else r.verdict for who, r in said.items()} for said in shared]
    reviewers = sorted({who for row in rows for who in row})
    # Cohen's chance is that of two people with habits of their own, Krippendorff's that of all judgements together.
    terms = _cohen_terms(rows, reviewers) if len(reviewers) == 2 else _krippendorff_terms(rows)
    every = np.ones((1, len(rows)))
    observed, expected = (float(value[0]) for value in terms.of(every))
    name = "cohen_kappa" if len(reviewers) == 2 else "krippendorff_alpha"
    if expected <= _NOTHING:
        return Coefficient(name, over, None, None, None, 1.0, len(rows))
    low, high = _interval(terms, len(rows), observed, expected, seed, resamples)
    return Coefficient(name, over, 1 - observed / expected, low, high, 1 - observed, len(rows))


def _interval(
    terms: _Terms, rows: int, observed: float, expected: float, seed: int, resamples: int
) -> tuple[float, float]:
    if observed <= 0:
        # Rows that all agree cannot vary: the exact binomial bound on agreement, as for a mean of ones.
        return max(-1.0, 1 - (1 - _TAIL ** (1 / rows)) / expected), 1.0
    rng, found, step = np.random.default_rng(seed), list[Floats](), max(1, _CELLS // rows)
    for start in range(0, resamples, step):
        weights = rng.multinomial(rows, np.full(rows, 1 / rows), size=min(step, resamples - start)).astype(np.float64)
        seen, by_chance = terms.of(weights)
        # A resample of one answer alone has no coefficient.
        usable = by_chance > _NOTHING
        found.append(1 - seen[usable] / by_chance[usable])
    low, high = np.quantile(np.concatenate(found), [_TAIL, 1 - _TAIL])
    return float(low), float(high)


@dataclass(frozen=True)
class _Terms:
    """What disagreement is made of, row by row, for any weights W_B_N of the rows.

    `differ_N` is a row's own disagreement and `size_N` what it counts; `marginals` are counts N_C of each answer, one
    by reviewer for kappa, one of all for alpha.
    """

    differ_N: Floats
    size_N: Floats
    marginals: tuple[Floats, ...]

    def of(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return the observed and the expected disagreement, each of shape [B]."""
        total = weights @ self.size_N
        observed = (weights @ self.differ_N) / total
        counts = [weights @ marginal for marginal in self.marginals]
        if len(counts) == 2:
            return observed, 1 - (counts[0] * counts[1]).sum(axis=1) / total**2
        same = (counts[0] * (counts[0] - 1)).sum(axis=1)
        return observed, 1 - same / (total * (total - 1))


def _cohen_terms(rows: Sequence[Mapping[str, str]], reviewers: Sequence[str]) -> _Terms:
    one, two = ([row[who] for row in rows] for who in reviewers)
    names = sorted({*one, *two})
    differ = np.array([float(a != b) for a, b in zip(one, two, strict=True)])
    return _Terms(differ, np.ones(len(rows)), (_one_hot(one, names), _one_hot(two, names)))


def _krippendorff_terms(rows: Sequence[Mapping[str, str]]) -> _Terms:
    names = sorted({said for row in rows for said in row.values()})
    counts = np.array([[list(row.values()).count(name) for name in names] for row in rows], dtype=np.float64)
    size: Floats = counts.sum(axis=1)
    # Pairs of judgements of a row that differ, so weighed that each judgement counts once.
    differ: Floats = (size * (size - 1) - (counts * (counts - 1)).sum(axis=1)) / (size - 1)
    return _Terms(differ, size, (counts,))


def _one_hot(said: Sequence[str], names: Sequence[str]) -> Floats:
    index = {name: i for i, name in enumerate(names)}
    out: Any = np.zeros((len(said), len(names)))
    out[np.arange(len(said)), [index[one] for one in said]] = 1.0
    return out
