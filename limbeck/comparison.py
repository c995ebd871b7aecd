"""From the scores of several systems on the same test rows to `report.json` and a verdict in one sentence.

Nothing here runs a model or imports dspy: `limbeck.evaluate` makes the results, this module compares them.
Differences are paired on rows; the student is judged against its untouched base, against every cheaper or
simpler alternative, and against the best teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

from limbeck.errors import InputError
from limbeck.stats import Paired, ece, mean_ci, paired_bootstrap, smallest_detectable

SIGNIFICANT = 0.05
ENCODER = "encoder_probe"
DESCRIPTIONS: Mapping[str, str] = {
    "teacher": "the teacher without examples",
    "teacher_compiled": "the compiled teacher",
    "student_base": "the untouched student",
    "student_gold_only": "the student trained on the labels alone",
    "student": "the distilled student",
    "student_gguf": "the exported student",
    "linear_probe": "the linear probe on the untouched student's embeddings",
    ENCODER: "logistic regression on sentence embeddings",
}


@dataclass(frozen=True)
class SystemResult:
    """One system on the test rows; every tuple has one entry per row, in the rows' order.

    `probabilities` maps each closed field to its value's probabilities (None where the system gave none) and
    `probability_source` says where they come from: "exact", "logprobs", "votes:K" or "". `errors` holds the
    message of a row that gave no usable answer and scored 0, else "". `p50_ms` is the median time of one row
    alone, `usd_per_1k` the list price of 1,000 rows (None: not known); tokens are totals over all rows.
    """

    name: str
    scores: tuple[float, ...]
    predictions: tuple[Mapping[str, Any], ...]
    probabilities: tuple[Mapping[str, Mapping[str, float]] | None, ...]
    probability_source: str = ""
    p50_ms: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    usd_per_1k: float | None = 0.0
    errors: tuple[str, ...] = ()

    @property
    def failures(self) -> int:
        """The number of rows without a usable answer."""
        return sum(1 for error in self.errors if error)

    @property
    def score(self) -> float:
        """The mean score."""
        return sum(self.scores) / len(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a stage's payload."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SystemResult:
        """Return the result that `to_dict` wrote, also after a way through JSON."""
        known: dict[str, Any] = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        for name, value in known.items():
            if isinstance(value, list):
                known[name] = tuple(cast("list[Any]", value))
        return cls(**known)


def calibration(result: SystemResult) -> float | None:
    """Return the expected calibration error of a classifier, None where it is not defined.

    Defined where every answer is right or wrong and the program has exactly one closed field; a row without
    probabilities (an unparsable answer) counts as a confidence of 0.
    """
    tops: list[float] = []
    for row in result.probabilities:
        if row is not None and len(row) != 1:
            return None
        tops.append(max(next(iter(row.values())).values(), default=0.0) if row else 0.0)
    if not any(tops) or any(s not in (0.0, 1.0) for s in result.scores):
        return None
    return ece([min(1.0, top) for top in tops], result.scores)


def compare(
    results: Mapping[str, SystemResult],
    *,
    task: str,
    metric: str,
    seed: int,
    candidate: str = "student",
    chosen: str = "",
    chosen_because: str = "",
    tolerance: float = 0.02,
) -> dict[str, Any]:
    """Return the systems, pairs and verdict of `report.json`.

    `candidate` is the trained student to judge; `chosen` is the system that the run returns (decided out of
    fold, never on test rows; default: the candidate), `chosen_because` says why in a clause. `tolerance` is
    the loss against the best teacher that still counts as keeping up. Raises InputError where systems have
    different rows.
    """
    sizes = {name: len(r.scores) for name, r in results.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise InputError(f"the systems were not measured on the same test rows: {sizes}")
    pairs = _pairs(results, candidate, seed)
    verdict = _verdict(results, pairs, candidate, chosen or candidate, chosen_because, tolerance)
    return {
        "task": task,
        "metric": metric,
        "n_test": next(iter(sizes.values())),
        "seed": seed,
        "systems": {name: _system(result, seed) for name, result in results.items()},
        "paired": [
            {"a": a, "b": b, "difference": p.difference, "ci95": list(p.ci95), "p": p.p, "test": p.test}
            for (a, b), p in pairs.items()
        ],
        "verdict": verdict,
    }


def _system(result: SystemResult, seed: int) -> dict[str, Any]:
    estimate = mean_ci(result.scores, seed)
    entry: dict[str, Any] = {
        "score": estimate.mean,
        "ci95": [estimate.low, estimate.high],
        "usd_per_1k": result.usd_per_1k,
        "p50_ms": result.p50_ms,
        "tokens_in": result.tokens_in,
        "tokens_out": result.tokens_out,
        "failures": result.failures,
    }
    error = calibration(result)
    if error is not None:
        entry |= {"ece": error, "probability_source": result.probability_source}
    if result.failures:
        entry["failure_example"] = next(e for e in result.errors if e)
    return entry


def _pairs(results: Mapping[str, SystemResult], candidate: str, seed: int) -> dict[tuple[str, str], Paired]:
    wanted = [(candidate, name) for name in results if name != candidate]
    wanted += [("student_gold_only", "student_base"), ("teacher_compiled", "teacher")]
    return {
        (a, b): paired_bootstrap(results[a].scores, results[b].scores, seed)
        for a, b in wanted
        if a in results and b in results
    }


def named(system: str) -> str:
    """Return what a system is called in a sentence."""
    return DESCRIPTIONS.get(system, system)


def _points(paired: Paired) -> str:
    low, high = paired.ci95
    return f"{100 * paired.difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"


def _verdict(
    results: Mapping[str, SystemResult],
    pairs: Mapping[tuple[str, str], Paired],
    candidate: str,
    chosen: str,
    because: str,
    tolerance: float,
) -> dict[str, Any]:
    rows = len(next(iter(results.values())).scores)
    detectable = _detectable(results, candidate)
    base: dict[str, Any] = {"ship": False, "use": chosen, "n_test": rows, "smallest_detectable": detectable}
    if chosen not in results:
        reason = f"Nothing to ship: {named(chosen)} was not measured."
        return {**base, "use": "", "reason": reason}
    if chosen != candidate:
        reason = f"Do not ship {named(candidate)}: use {named(chosen)}"
        return {**base, "reason": f"{reason}, {because}." if because else f"{reason}."}
    against = {b: p for (a, b), p in pairs.items() if a == candidate}
    objection = _objection(results, against, candidate, tolerance, detectable)
    if objection is not None:
        use, reason = objection
        if use == ENCODER and _cheaper(results, candidate):
            reason += f" An encoder is enough: {_times(results, candidate)}."
        return {**base, "use": use, "reason": f"Do not ship {named(candidate)}: {reason}"}
    shown = [f"{_points(p)} against {named(b)}" for b, p in against.items() if b in _SHOWN]
    reason = f"Ship {named(candidate)}: it scores {results[candidate].score:.3f} on {rows} test rows"
    reason = f"{reason}, {', '.join(shown)}." if shown else f"{reason}."
    unsure = [b for b, p in against.items() if b in _SIMPLER and p.ci95[0] <= 0 <= p.ci95[1]]
    if unsure:
        reason += f" These rows do not tell it from {' or '.join(map(named, unsure))}."
    if ENCODER in unsure and _cheaper(results, candidate):
        reason += f" An encoder may be enough: {_times(results, candidate)}."
    if because:
        reason += f" Chosen: {because}."
    return {**base, "ship": True, "reason": reason}


def _cheaper(results: Mapping[str, SystemResult], candidate: str) -> bool:
    """Whether the encoder takes half the candidate's time or less: a student may be an encoder itself."""
    return 2 * results[ENCODER].p50_ms <= results[candidate].p50_ms


def _times(results: Mapping[str, SystemResult], candidate: str) -> str:
    """Say what a row takes by logistic regression on embeddings and by the candidate, each asked alone."""
    encoder, other = results[ENCODER].p50_ms, results[candidate].p50_ms
    return f"{encoder:.0f} ms a row by {named(ENCODER)}, {other:.0f} ms by {named(candidate)}"


_SHOWN = ("student_base", "student_gold_only", "teacher_compiled")
# What a user could run instead for less work than distilling.
_SIMPLER = ("student_gold_only", "linear_probe", ENCODER)


def _detectable(results: Mapping[str, SystemResult], candidate: str) -> float | None:
    rival = next((n for n in ("student_base", "student_gold_only") if n in results), None)
    if rival is None or candidate not in results:
        return None
    return smallest_detectable(results[candidate].scores, results[rival].scores)


def _objection(
    results: Mapping[str, SystemResult],
    against: Mapping[str, Paired],
    candidate: str,
    tolerance: float,
    detectable: float | None,
) -> tuple[str, str] | None:
    """The system to use and the reason not to ship the candidate, None where nothing speaks against it."""
    worse = {b: p for b, p in against.items() if p.difference < 0 and p.p < SIGNIFICANT}
    rivals = sorted((b for b in worse if not b.startswith("teacher")), key=lambda b: -results[b].score)
    teachers = [b for b in worse if b.startswith("teacher") and worse[b].ci95[1] < -tolerance]
    best = rivals[0] if rivals else max(teachers, key=lambda b: results[b].score, default="")
    better = f"use {named(best)}, against which it scores {_points(worse[best])}" if best else ""
    base = against.get("student_base")
    if base is not None and best != "student_base" and not (base.difference > 0 and base.p < SIGNIFICANT):
        small = "" if detectable is None else f" (these rows show differences from {100 * detectable:.0f} points)"
        rows = len(results[candidate].scores)
        how = "does not beat beyond chance" if base.difference > 0 else "does not beat"
        told = f"{_points(base)} on {rows} test rows, p = {base.p:.2g}{small}."
        if best:
            return best, f"{better}; the untouched student with its prompt it {how}: {told}"
        return "student_base", f"use the untouched student with its prompt, which it {how}: {told}"
    if best:
        unless = "" if rivals else ", unless its lower cost is worth that"
        return best, f"{better}{unless}."
    return None
