"""Recipes chosen out of fold, then one fit on every label that is not a test row.

A gold row's value is predicted by a student that saw neither the row nor, where records carry blocks, anything
written or labelled by a prompt that showed it: fold f's student trains on block f's records alone. Its score is
therefore that of a student with a third of the data, and understates the final one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from limbeck.comparison import SystemResult
from limbeck.finetune.loop import Progress
from limbeck.pipeline.context import Context
from limbeck.pipeline.fitting import fit, lm_of, load_student, looks, save
from limbeck.pipeline.pairs import align
from limbeck.pipeline.students import Matrix, Recipe, StudentPlan, label_matrix, predict, usefulness
from limbeck.preferences import Preference
from limbeck.records import Record, stable_hash
from limbeck.stats import mean_gap

# The folder of each trained student's adapter, and of the fits that only label new rows.
FITS = "data/fits"
ADAPTERS = {"student": "adapter", "student_gold_only": "adapter_gold_only", "weak": f"{FITS}/weak"}


@dataclass(frozen=True)
class Tuned:
    """The chosen recipe with each gold row's out-of-fold value, score and label probabilities."""

    recipe: Recipe
    useful: tuple[float, ...]
    scores: tuple[float, ...]
    matrix: Matrix
    tried: tuple[Mapping[str, Any], ...]

    @property
    def score(self) -> float:
        """Mean out-of-fold score; NaN where there are no folds."""
        return float(np.mean(self.scores)) if self.scores else float("nan")


def watch(context: Context, what: str) -> Callable[[Progress], None]:
    """Return what shows a fit's progress and ends it where the time is spent."""

    def show(p: Progress) -> None:
        detail = f"loss {p.loss:.2f}, {p.rows_per_second:.1f} rows/s, {p.seconds_left:.0f} s left"
        context.run.reporter.step(what, p.step, p.total, detail)
        context.run.budget.check_time(context.run.ledger)

    return show


def _records_hash(records: Sequence[Record]) -> str:
    return stable_hash([[r.id, dict(r.outputs), r.soft, round(r.weight, 6), r.rationale] for r in records])


def fold_plan(context: Context, fold: int) -> StudentPlan:
    """Return the plan of a student that is judged on a fold: its demonstrations may not show those rows."""
    held = {id(context.split.gold[i]) for i in context.split.held_out(fold)}
    return replace(context.plan, demos=tuple(demo for demo in context.plan.demos if id(demo) not in held))


def look_of(context: Context, result: SystemResult, rows: Sequence[int]) -> dict[str, Any]:
    """Return what a student said of these gold rows as JSON holds it: value, score and label probabilities of each."""
    labels = context.task.labels if context.closed else ()
    answers = [context.task.label_of(context.split.gold[i]) for i in rows]
    look: dict[str, Any] = {
        "useful": usefulness(result, context.output, labels, answers),
        "scores": list(result.scores),
    }
    if labels:
        matrix = label_matrix(result, context.output, labels)
        look["matrix"] = np.nan_to_num(matrix, nan=1.0 / len(labels)).tolist()
    return look


@dataclass(frozen=True)
class FoldFit:
    """One fit on what a fold's gold rows may not be part of; `folder` keeps its adapter, None: nothing is kept."""

    context: Context
    name: str
    recipe: Recipe
    fold: int
    records: Sequence[Record]
    folder: Path | None

    def run(self) -> dict[str, Any]:
        """Train on the records and predict the fold's gold rows."""
        context, rows = self.context, self.context.split.held_out(self.fold)
        what = f"{self.name}: lr {self.recipe.lr:g}, fold {self.fold + 1}/{context.split.n_folds}"
        done = fit(
            fold_plan(context, self.fold),
            self.recipe,
            self.records,
            held_out=[context.split.gold[i] for i in rows],
            progress=watch(context, what),
        )
        if self.folder:
            save(done.result, self.folder)
        return {"looks": [look_of(context, result, rows) for result in done.looks]}

    def stored(self) -> dict[str, Any]:
        """Return what `run` gave, from the ledger where it ran before."""
        parts = [self.recipe.values(), self.fold, _records_hash(self.records)]
        key = self.context.key(self.name, *parts, dict(self.context.task.label_descriptions))
        return self.context.run.stage(f"fit {self.name}", key, self.run, show=False)

    def adapter(self) -> Path:
        """Return the folder of the adapter; one that was cleared away is trained again."""
        assert self.folder is not None
        if not self.folder.exists():
            self.run()
        return self.folder


def tune(
    context: Context,
    name: str,
    recipes: Sequence[Recipe],
    records_for: Callable[[int], Sequence[Record]],
    *,
    keep: bool = False,
) -> Tuned:
    """Return the recipe of the highest mean out-of-fold value, the first of equals, ended where `_ended` says.

    Without folds the first recipe is the fixed default and nothing is measured. `keep` keeps the folds' adapters of
    all recipes, of which those of the winner label new rows.
    """
    if not context.split.n_folds:
        empty = np.full((len(context.split.gold), len(context.task.labels)), np.nan)
        return Tuned(recipes[0], (), (), empty, ())
    tried: list[Tuned] = []
    ended: list[Tuned] = []
    for recipe in recipes:
        fits = [
            (context.split.held_out(one.fold), one.stored())
            for one in fold_fits(context, name, recipe, records_for, keep)
        ]
        seen: list[Tuned] = []
        points = looks(context.plan)
        for at in range(points):
            # A fit of very few steps has fewer looks; its last one stands for the rest.
            found = [(rows, payload["looks"][min(at, len(payload["looks"]) - 1)]) for rows, payload in fits]
            seen.append(gathered(context, replace(recipe, stop=(at + 1) / points), found))
        tried += seen
        ended.append(_ended(seen))
    best = max(ended, key=lambda one: round(float(np.mean(one.useful)), 6))
    log = [{**one.recipe.values(), "useful": float(np.mean(one.useful)), "score": one.score} for one in tried]
    return replace(best, tried=tuple(log))


def _ended(looks: Sequence[Tuned]) -> Tuned:
    """Return the last look, or an earlier one that is better by more than a standard error.

    Tens of rows say little about the best moment, and the final fit has more and better labelled rows than a
    fold's: on clinc150 a half-way look that was 3 points better out of fold, with a standard error of 4, was 7
    points worse on test rows.
    """
    best = max(looks, key=lambda one: float(np.mean(one.useful)))
    gap, error = mean_gap(best.useful, looks[-1].useful)
    return best if gap > error else looks[-1]


def gathered(context: Context, recipe: Recipe, looks: Sequence[tuple[Sequence[int], Mapping[str, Any]]]) -> Tuned:
    """Return every gold row's out-of-fold value at one look of all folds; the recipe ends at that look."""
    n, k = len(context.split.gold), len(context.task.labels)
    useful, scores = [0.0] * n, [0.0] * n
    matrix: Matrix = np.full((n, max(k, 1)), np.nan)
    for rows, look in looks:
        for place, row in enumerate(rows):
            useful[row], scores[row] = look["useful"][place], look["scores"][place]
        if "matrix" in look:
            matrix[list(rows)] = look["matrix"]
    return Tuned(recipe, tuple(useful), tuple(scores), matrix, ())


def fold_fits(
    context: Context, name: str, recipe: Recipe, records_for: Callable[[int], Sequence[Record]], keep: bool
) -> list[FoldFit]:
    """Return every fold's fit of a recipe, not yet run; `keep` keeps their adapters."""
    fits = context.run.path / FITS
    return [
        FoldFit(
            context,
            name,
            recipe,
            fold,
            records,
            fits / stable_hash([context.key(name), recipe.values(), fold, _records_hash(records)]) if keep else None,
        )
        for fold in range(context.split.n_folds)
        for records in (records_for(fold),)
    ]


def fold_adapters(
    context: Context, name: str, tuned: Tuned, records_for: Callable[[int], Sequence[Record]]
) -> list[Path]:
    """Return every fold's adapter of a tuned student."""
    return [one.adapter() for one in fold_fits(context, name, tuned.recipe, records_for, True)]


def fit_final(
    context: Context, name: str, recipe: Recipe, records: Sequence[Record], pairs: Sequence[Preference] = ()
) -> dict[str, Any]:
    """Train the final student on all records, and on pairs after them, and write its adapter; return the payload."""
    done = fit(context.plan, recipe, records, progress=watch(context, f"{name}: final fit"))
    result = done.result
    if pairs:
        result = align(
            context.plan, recipe, result.loaded, pairs, progress=watch(context, f"{name}: preferences, final fit")
        )
    save(result, context.run.path / ADAPTERS[name])
    if done.too_long:
        context.run.warn(f"too-long: {name} learned without {done.too_long} rows, longer than its context")
    return {
        "files": [ADAPTERS[name]],
        "recipe": recipe.values(),
        "adapter_hash": result.adapter_hash,
        "steps": len(result.losses),
        "loss": float(np.mean(result.losses[-10:])),
        "peak_mb": round(result.peak_mb),
        "rows_per_second": round(result.rows / max(result.seconds, 1e-9), 2),
    }


def fold_predictions(
    context: Context,
    recipe: Recipe,
    inputs: Sequence[Mapping[str, Any]],
    students: Sequence[tuple[Path, Sequence[int]]],
) -> list[Matrix]:
    """Return the label probabilities of new rows by each of these students, each of shape [rows, labels].

    A student is its adapter with the numbers of the rows that it is asked about; the others are NaN.
    """
    import dspy

    rows: list[Any] = [
        cast(Any, dspy.Example(**row, **{context.output: context.task.labels[0]})).with_inputs(*row) for row in inputs
    ]
    out: list[Matrix] = []
    for number, (adapter, asked) in enumerate(students):
        said: Matrix = np.full((len(rows), len(context.task.labels)), np.nan)
        if asked:
            loaded = load_student(context.plan.base, adapter)
            result = predict(context.plan, context.plan.program(recipe), lm_of(loaded), [rows[i] for i in asked])
            said[list(asked)] = label_matrix(result, context.output, context.task.labels)
        out.append(said)
        context.run.reporter.step("student labels new rows", number + 1, len(students))
        context.run.budget.check_time(context.run.ledger)
    return out
