"""Further rounds: what the student gets wrong out of fold is written next, until its score stops rising.

A round is kept only where the student is better on the gold rows, out of fold, by more than a standard error of the
paired difference; the round before it stays otherwise, and no further one is begun. The score of a round that was
chosen so flatters: it says which round to keep, and the report's scores are on test rows alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from limbeck.compile.focus import Focus, focus_of
from limbeck.compile.label import gold_records
from limbeck.pipeline.context import Context
from limbeck.pipeline.curation import Learnable
from limbeck.pipeline.learn import Tuned
from limbeck.stats import mean_ci, mean_gap


@dataclass(frozen=True)
class Round:
    """A tuned student with the rows it learns from; the first round is number 1."""

    number: int
    tuned: Tuned
    rows: Learnable


def weaknesses(context: Context, tuned: Tuned) -> Focus:
    """Return what the student gets wrong on the gold rows out of fold."""
    gold = gold_records(context.split.gold, label_field=context.task.label_field)
    said = [context.task.labels[int(best)] for best in np.argmax(tuned.matrix, axis=1)] if context.closed else []
    return focus_of(gold, tuned.scores, said, label_field=context.task.label_field)


def told(context: Context, new: Round, old: Round) -> bool:
    """Return whether a round is better than the one before it; say so on the screen and in the report."""
    gap, error = mean_gap(new.tuned.useful, old.tuned.useful)
    score, better = mean_ci(new.tuned.scores), gap > error
    context.run.reporter.note(
        f"round {new.number}: out of fold {score.mean:.3f} [{score.low:.3f}, {score.high:.3f}] after "
        f"{old.tuned.score:.3f}; gain {gap:+.3f}, standard error {error:.3f}: "
        + ("kept" if better else "not kept, and no further round")
    )
    context.run.stage_log.append(
        {
            "name": f"round {new.number}",
            "records_in": len(new.rows.kept),
            "kept": len(new.rows.kept) if better else 0,
            "out_of_fold": score.mean,
            "ci95": [score.low, score.high],
            "gain": gap,
            "standard_error": error,
        }
    )
    return better
