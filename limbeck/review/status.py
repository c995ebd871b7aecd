"""How far a run's review has got: rows, reviewers, what was decided, and how well people agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limbeck.levels import count_levels
from limbeck.review.batches import reviewable
from limbeck.review.decisions import REVIEWED, TIED, answer_key, apply_reviews, decide
from limbeck.review.reliability import Agreement, Coefficient, Rate, agreement
from limbeck.review.store import kept_records, open_reviews


@dataclass(frozen=True)
class Status:
    """A run's review at one moment; `to_dict` gives plain JSON values.

    `kept` rows may be reviewed. `decided` counts rows by what follows for them: accepted, corrected, reviewed (that
    is, rejected), review_tie (left out until another reviewer decides). `waiting` counts each reviewer's rows without
    a verdict, `levels` the rows that stay, by level of human involvement. `gone` verdicts are of rows that the run no
    longer keeps.
    """

    kept: int
    decided: Mapping[str, int]
    waiting: Mapping[str, int]
    levels: Mapping[int, int]
    gone: int
    agreement: Agreement

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def review_status(run_folder: Path | str, *, seed: int = 0) -> Status:
    """Return how far a run's review has got; InputError for a folder without curated rows."""
    records = kept_records(run_folder)
    with open_reviews(run_folder) as store:
        takes, reviews = store.takes(), store.reviews()
    decisions, known = decide(reviews), {record.id: record for record in records}
    after = apply_reviews(records, reviews)
    decided: Counter[str] = Counter()
    for record in after:
        if record.id in decisions:
            changed = answer_key(record.outputs) != answer_key(known[record.id].outputs)
            decided[record.reason or ("corrected" if changed else "accepted")] += 1
    judged = {(review.record, review.reviewer) for review in reviews}
    shown = {(take.record, take.reviewer) for take in takes if take.shown and take.record in known}
    waiting = Counter(who for _, who in shown - judged)
    return Status(
        kept=len(reviewable(records)),
        decided={name: decided[name] for name in ("accepted", "corrected", REVIEWED, TIED) if decided[name]},
        waiting=dict(sorted(waiting.items())),
        levels=count_levels(after),
        gone=sum(record not in known for record in decisions),
        agreement=agreement(
            records, reviews, random_part=[take.record for take in takes if take.part == "random"], seed=seed
        ),
    )


def describe(status: Status) -> list[str]:
    """Return a status as lines for people."""
    found = status.agreement
    decided = ", ".join(f"{n} {name}" for name, n in status.decided.items()) or "none judged yet"
    lines = [f"{status.kept} rows to review: {decided}"]
    if status.gone:
        lines.append(f"{status.gone} judged rows are no longer among the run's rows")
    for who in sorted({*found.reviewers, *status.waiting}):
        said = ", ".join(f"{n} {name}" for name, n in found.reviewers.get(who, {}).items()) or "nothing yet"
        lines.append(f"{who}: {said}" + (f"; {status.waiting[who]} waiting" if who in status.waiting else ""))
    lines.append(_precision(found.precision, found.claimed))
    if found.open_random:
        lines.append(f"{found.open_random} rows of the random part wait for a verdict")
    lines += [_coefficient(one) for one in found.coefficients]
    lines.append("levels: " + ", ".join(f"{n} of level {level}" for level, n in status.levels.items()))
    return lines


def _precision(rate: Rate | None, claimed: float | None) -> str:
    if rate is None:
        return "share of right labels: not known, no row of the random part is judged"
    said = "" if claimed is None else f"; the labels claim {claimed:.3f}"
    return f"share of right labels: {rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}] of {rate.rows} random rows{said}"


def _coefficient(one: Coefficient) -> str:
    name = {"cohen_kappa": "Cohen's kappa", "krippendorff_alpha": "Krippendorff's alpha"}[one.name]
    if one.value is None:
        return f"{name} of {one.over}: not defined, all {one.rows} shared rows got the same"
    return (
        f"{name} of {one.over}: {one.value:.3f} [{one.low:.3f}, {one.high:.3f}] on {one.rows} shared rows, "
        f"{one.same:.0%} the same"
    )
