"""Recipes chosen out of fold, then one fit on every label that is not a test row.

A gold row's value is predicted by a student that saw neither the row nor, where records carry blocks, anything
written or labelled by a prompt that showed it: fold f's student trains on block f's records alone. Its score is
therefore that of a student with a third of the data, and understates the final one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from limbeck.engine.loading import load_model
from limbeck.finetune.loop import Progress
from limbeck.pipeline.context import Context
from limbeck.pipeline.students import Matrix, Recipe, fit, label_matrix, lm_of, predict, save, usefulness
from limbeck.records import Record, stable_hash


@dataclass(frozen=True)
class Tuned:
    """The chosen recipe with each gold row's out-of-fold value, score and label probabilities."""

    recipe: Recipe
    useful: tuple[float, ...]
    scores: tuple[float, ...]
    matrix: Matrix
    adapters: tuple[str, ...]
    tried: tuple[Mapping[str, Any], ...]

    @property
    def score(self) -> float:
        """Mean out-of-fold score; NaN where there are no folds."""
        return float(np.mean(self.scores)) if self.scores else float("nan")


def _watch(context: Context, what: str) -> Callable[[Progress], None]:
    def show(p: Progress) -> None:
        detail = f"loss {p.loss:.2f}, {p.rows_per_second:.1f} rows/s, {p.seconds_left:.0f} s left"
        context.run.reporter.step(what, p.step, p.total, detail)

    return show


def _records_hash(records: Sequence[Record]) -> str:
    return stable_hash([[r.id, dict(r.outputs), r.soft, round(r.weight, 6), r.rationale] for r in records])


def _fit_fold(
    context: Context, name: str, recipe: Recipe, fold: int, records: Sequence[Record], keep: bool
) -> dict[str, Any]:
    """Train on the records, predict the fold's gold rows; one resumable piece of work."""
    gold = context.split.gold
    rows = context.split.held_out(fold)
    key = context.key(
        name, recipe.values(), fold, _records_hash(records), dict(context.task.label_descriptions)
    )

    def work() -> dict[str, Any]:
        what = f"{name}: lr {recipe.lr:g}, fold {fold + 1}/{context.split.n_folds}"
        done = fit(
            context.plan,
            recipe,
            records,
            held_out=[gold[i] for i in rows],
            progress=_watch(context, what),
        )
        result = done.looks[-1][1]
        answers = [cast(Any, gold[i])[context.output] for i in rows]
        payload: dict[str, Any] = {
            "useful": usefulness(
                result, context.output, context.task.labels if context.closed else (), answers
            ),
            "scores": list(result.scores),
            "files": [],
        }
        if context.closed:
            payload["matrix"] = np.nan_to_num(
                label_matrix(result, context.output, context.task.labels), nan=1.0 / len(context.task.labels)
            ).tolist()
        if keep:
            folder = context.run.path / "data" / "fits" / stable_hash(key)
            save(done.result, folder)
            payload["files"] = [str(folder.relative_to(context.run.path))]
        return payload

    return context.run.stage(f"fit {name}", key, work, show=False)


def tune(
    context: Context,
    name: str,
    recipes: Sequence[Recipe],
    records_for: Callable[[int], Sequence[Record]],
    *,
    keep: bool = False,
) -> Tuned:
    """Return the recipe with the highest mean out-of-fold value; the first of equals.

    Without folds the first recipe is the fixed default and nothing is measured. `keep` keeps every fold's
    adapter of the winner, for labelling new rows.
    """
    n, k = len(context.split.gold), len(context.task.labels)
    if not context.split.n_folds:
        return Tuned(recipes[0], (), (), np.full((n, k), np.nan), (), ())
    tried: list[tuple[Recipe, list[float], list[float], Matrix, list[str]]] = []
    for recipe in recipes:
        useful, scores, adapters = [0.0] * n, [0.0] * n, list[str]()
        matrix: Matrix = np.full((n, max(k, 1)), np.nan)
        for fold in range(context.split.n_folds):
            payload = _fit_fold(context, name, recipe, fold, records_for(fold), keep)
            rows = context.split.held_out(fold)
            for place, row in enumerate(rows):
                useful[row], scores[row] = payload["useful"][place], payload["scores"][place]
            if "matrix" in payload:
                matrix[list(rows)] = payload["matrix"]
            adapters += payload["files"]
        tried.append((recipe, useful, scores, matrix, adapters))
    best = max(range(len(tried)), key=lambda i: (round(float(np.mean(tried[i][1])), 6), -i))
    for i, (*_, adapters) in enumerate(tried):
        if i != best:
            for adapter in adapters:
                shutil.rmtree(context.run.path / adapter, ignore_errors=True)
    recipe, useful, scores, matrix, adapters = tried[best]
    log = [{**r.values(), "useful": float(np.mean(u)), "score": float(np.mean(s))} for r, u, s, _, _ in tried]
    return Tuned(recipe, tuple(useful), tuple(scores), matrix, tuple(adapters), tuple(log))


def fit_final(context: Context, name: str, recipe: Recipe, records: Sequence[Record]) -> dict[str, Any]:
    """Train the final student on all records and write its adapter into the run folder; return the payload."""
    done = fit(context.plan, recipe, records, progress=_watch(context, f"{name}: final fit"))
    save(done.result, context.run.path / name)
    result = done.result
    return {
        "files": [name],
        "recipe": recipe.values(),
        "adapter_hash": result.adapter_hash,
        "steps": len(result.losses),
        "loss": float(np.mean(result.losses[-10:])),
        "peak_mb": round(result.peak_mb),
        "rows_per_second": round(result.rows / max(result.seconds, 1e-9), 2),
    }


def fold_predictions(
    context: Context, tuned: Tuned, inputs: Sequence[Mapping[str, Any]], whole: str
) -> list[Matrix]:
    """Return the label probabilities of new rows by every fold's gold-only student, or by the whole one's.

    `whole` is the adapter of the student on all gold rows, used where there are no folds.
    """
    import dspy

    rows: list[Any] = [
        cast(Any, dspy.Example(**row, **{context.output: context.task.labels[0]})).with_inputs(*row)
        for row in inputs
    ]
    out: list[Matrix] = []
    for number, adapter in enumerate(tuned.adapters or (whole,)):
        loaded = load_model(context.plan.base, adapter=context.run.path / adapter)
        program = context.plan.program(tuned.recipe)
        result = predict(context.plan, program, lm_of(loaded), rows)
        out.append(label_matrix(result, context.output, context.task.labels))
        context.run.reporter.step("student labels new rows", number + 1, len(tuned.adapters or (whole,)))
    return out
