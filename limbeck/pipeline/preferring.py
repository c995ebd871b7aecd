"""DPO after the supervised fit of a run: kept only where the student is no worse for it, out of fold.

Pairs follow their rows: one whose row curation, people or the run's levels refused is left out, unless only because
its sampled answers differ, and what holds for rows out of fold holds for them. Every fold's supervised student goes on
with its fold's pairs and answers its held-out rows again; the final student goes on with all pairs only where the mean
did not fall.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from limbeck.engine.loading import load_model
from limbeck.levels import parse_levels, restrict
from limbeck.pipeline.context import Context
from limbeck.pipeline.curation import REJECTED
from limbeck.pipeline.data import PREFERENCES, Turn
from limbeck.pipeline.fitting import lm_of
from limbeck.pipeline.learn import FoldFit, Tuned, fold_fits, fold_plan, gathered, look_of, watch
from limbeck.pipeline.pairs import align, pair_rows
from limbeck.pipeline.rounds import Round
from limbeck.pipeline.students import Recipe, predict
from limbeck.preferences import Preference, read_preferences
from limbeck.records import Record, read_records, stable_hash
from limbeck.stats import mean_gap

NO_ROW = "no_kept_row"
# The rule of curation about sampled answers that differ.
LOW_AGREEMENT = "low_agreement"


@dataclass(frozen=True)
class Preferred:
    """A tuned student that goes on with these pairs."""

    tuned: Tuned
    pairs: tuple[Preference, ...]


def read_pairs(folder: Path, rounds: int) -> list[Preference]:
    """Return the run's preference pairs of its first rounds, each once."""
    files = [folder / Turn(number).file(PREFERENCES) for number in range(1, rounds + 1)]
    found = [pair for file in files if file.is_file() for pair in read_preferences(file)]
    return list({pair.id: pair for pair in found}.values())


def pairs_hash(pairs: Sequence[Preference]) -> str:
    """Return a hash of all that pairs teach."""
    return stable_hash([[dict(pair.inputs), dict(pair.chosen), dict(pair.rejected), pair.p] for pair in pairs])


def of_rows(pairs: Sequence[Preference], rows: Sequence[Record]) -> list[Preference]:
    """Return the pairs whose inputs are those of one of the rows."""
    known = {stable_hash(dict(row.inputs)) for row in rows}
    return [pair for pair in pairs if stable_hash(dict(pair.inputs)) in known]


def prefer_stage(context: Context, best: Round, beta: float, name: str) -> Preferred | None:
    """Return the student of a round after DPO, None where the supervised one stays; say why in the report."""
    started = time.monotonic()
    recipe = replace(best.tuned.recipe, beta=beta)
    read = read_pairs(context.run.path, best.number)
    pairs = of_rows(read, [*best.rows.kept, *_differing(context, best.number)])
    rows, left_out = _counted(context, recipe, pairs) if pairs else (0, {})
    left_out = {NO_ROW: len(read) - len(pairs), **left_out}
    log: dict[str, Any] = {"records_in": len(read), "kept": 0, "rejected": {why: n for why, n in left_out.items() if n}}
    found = _tuned(context, best, recipe, pairs, name) if rows and best.tuned.scores else None
    if found is None:
        why = "no fold has a pair to measure DPO by" if rows else _none(len(read), left_out)
        context.run.warn(f"no-preferences: the supervised student stays: {why}")
    else:
        log |= _judged(context, found, best.tuned, rows)
    context.run.stage_log.append({"name": "preferences", "seconds": round(time.monotonic() - started, 2), **log})
    return Preferred(found, tuple(pairs)) if found and log["kept"] else None


def _differing(context: Context, number: int) -> list[Record]:
    """Return the rows that curation refused for nothing but sampled answers that differ: which is what pairs teach.

    None where a judge has a say, for it has not seen them.
    """
    if context.config.judge:
        return []
    rejected = read_records(context.run.path / Turn(number).file(REJECTED))
    rows = [replace(row, kept=True, reason="") for row in rejected if row.reason == LOW_AGREEMENT]
    return [row for row in restrict(rows, parse_levels(context.config.level)) if row.kept]


def _counted(context: Context, recipe: Recipe, pairs: Sequence[Preference]) -> tuple[int, dict[str, int]]:
    """Return how many pairs are rows of the student, and how many are not, by reason."""

    def work() -> dict[str, Any]:
        made = pair_rows(context.plan, recipe, pairs, load_model(context.plan.base))
        return {"rows": len(made.rows), "left_out": dict(made.left_out)}

    payload = context.run.stage("count pairs", _key(context, recipe, pairs), work, show=False)
    return int(payload["rows"]), dict(payload["left_out"])


def _key(context: Context, recipe: Recipe, pairs: Sequence[Preference], *parts: Any) -> list[Any]:
    return context.key("dpo", recipe.values(), pairs_hash(pairs), dict(context.task.label_descriptions), *parts)


def _none(read: int, left_out: Mapping[str, int]) -> str:
    reasons = ", ".join(f"{n} {reason}" for reason, n in left_out.items() if n)
    return f"none of {read} pairs of answers can be learned from ({reasons})" if read else "there is no pair of answers"


def _judged(context: Context, found: Tuned, before: Tuned, rows: int) -> dict[str, Any]:
    """Return what the report says of a student after DPO: how many pairs it goes on with, 0 where it got worse."""
    gap, error = mean_gap(found.useful, before.useful)
    kept = gap >= 0
    context.run.reporter.note(
        f"preferences: {rows} pairs, out of fold {found.score:.3f} after {before.score:.3f}; gain {gap:+.3f}, standard "
        f"error {error:.3f}: " + ("kept" if kept else "not kept, the supervised student stays")
    )
    measured = {"out_of_fold": found.score, "supervised": before.score, "gain": gap, "standard_error": error}
    return {"kept": rows if kept else 0, "pairs": rows, "beta": found.recipe.beta, **measured}


def _tuned(context: Context, best: Round, recipe: Recipe, pairs: Sequence[Preference], name: str) -> Tuned | None:
    """Return every gold row's out-of-fold value after DPO on what its fold may see; None where no fold sees a pair."""
    rows, differing = best.rows, _differing(context, best.number)
    folds = range(context.split.n_folds)
    seen = [of_rows(pairs, [*rows.told(fold), *rows.unseen(fold, differing)]) for fold in folds]
    if not any(seen):
        return None
    looks: list[tuple[Sequence[int], Mapping[str, Any]]] = []
    for fit, own in zip(fold_fits(context, name, best.tuned.recipe, rows.outside, True), seen, strict=True):
        assert fit.folder is not None
        held = context.split.held_out(fit.fold)
        work = partial(_after, context, recipe, fit, own)
        key = _key(context, recipe, own, fit.folder.name)
        looks.append((held, context.run.stage(f"prefer {name}", key, work, show=False)))
    return replace(gathered(context, recipe, looks), tried=best.tuned.tried)


def _after(context: Context, recipe: Recipe, fit: FoldFit, pairs: Sequence[Preference]) -> dict[str, Any]:
    """Train a fold's supervised student on pairs, if any is a row, and return what it says of the fold's gold rows."""
    plan, held = fold_plan(context, fit.fold), context.split.held_out(fit.fold)
    student = load_model(plan.base, adapter=fit.adapter())
    if pair_rows(plan, recipe, pairs, student).rows:
        show = watch(context, f"preferences: fold {fit.fold + 1}/{context.split.n_folds}")
        student = align(plan, recipe, student, pairs, progress=show).loaded
    lm = lm_of(student, max_tokens=plan.max_tokens)
    said = predict(plan, plan.program(recipe), lm, [context.split.gold[i] for i in held])
    return look_of(context, said, held)
