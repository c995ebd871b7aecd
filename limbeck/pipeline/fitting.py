"""Fitting the student: a recipe and records become an adapter, an adapter becomes an LM."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import dspy

from limbeck.engine.encoder import EncoderClassifier, EncoderEngine, load_classifier, token_ids
from limbeck.engine.loading import LoadedModel, load_encoder, load_model
from limbeck.engine.seq2seq import engine_of
from limbeck.errors import StageEmpty
from limbeck.evaluate import SystemResult
from limbeck.finetune.encoder import ClassRow, train_encoder
from limbeck.finetune.loop import Progress, TrainResult, context_tokens, train
from limbeck.finetune.weak import Confidence, OnWeakRows
from limbeck.models import LM, EncoderBackend, TorchBackend
from limbeck.models.kinds import is_encoder
from limbeck.pipeline.students import Recipe, StudentPlan, predict, rendered_rows, training_rows
from limbeck.records import Record

# Evenly spaced points of a fit at which held-out rows are predicted: the dev metric chooses where to end.
_LOOKS = 2


class _Train(Protocol):
    """A training loop with its model, rows and configuration given."""

    def __call__(
        self,
        *,
        evaluate: Callable[[int, LoadedModel], float],
        eval_every: int,
        progress: Callable[[Progress], None] | None,
    ) -> TrainResult: ...


@dataclass(frozen=True)
class _Prepared:
    """Rows ready to train on: how many, how many were too long, and the loop that takes them."""

    rows: int
    too_long: int
    train: _Train


@dataclass(frozen=True)
class Fit:
    """One finished fit: the trained model, what it predicted at each look, and the rows left out as too long."""

    result: TrainResult
    looks: tuple[SystemResult, ...]
    too_long: int = 0


def looks(plan: StudentPlan) -> int:
    """Return at how many points of a fit held-out rows are predicted: rationales take as long as the training."""
    return 1 if plan.writes_more else _LOOKS


def fit(
    plan: StudentPlan,
    recipe: Recipe,
    records: Sequence[Record],
    *,
    held_out: Sequence[dspy.Example] = (),
    progress: Callable[[Progress], None] | None = None,
) -> Fit:
    """Train one student on the records; predict `held_out` at `looks(plan)` evenly spaced points of training."""
    ready = (_encoder if is_encoder(plan.base) else _language_model)(plan, recipe, records)
    total, seen = recipe.train_config(plan.closed).steps(ready.rows), list[SystemResult]()
    points = looks(plan)
    every = max(1, -(-total // points))
    last = max(every, round(points * recipe.stop) * every)

    def look(step: int, student: LoadedModel) -> float:
        if held_out:
            seen.append(predict(plan, plan.program(recipe), lm_of(student, max_tokens=plan.max_tokens), held_out))
        # The latest of equals is kept: the checkpoint at which the recipe ends.
        return float(step <= last)

    result = ready.train(evaluate=look, eval_every=every, progress=progress)
    return Fit(result, tuple(seen), ready.too_long)


def _language_model(plan: StudentPlan, recipe: Recipe, records: Sequence[Record]) -> _Prepared:
    loaded = load_model(plan.base)
    given = training_rows(plan, recipe, records, loaded.tokenizer)
    # Rows were measured before the prompt was compiled: descriptions and demonstrations have made it longer since.
    rows = [row for row in given if row.length <= context_tokens(loaded)]
    if given and not rows:
        raise StageEmpty(
            f"no training row fits the student's context of {context_tokens(loaded)} tokens",
            hint="shorter inputs, or a student with a longer context",
        )
    if not rows:
        raise StageEmpty(
            "no training row: no record holds the program's whole answer",
            hint="a stronger --teacher, or a program without a rationale",
        )
    config = recipe.train_config(plan.closed)
    weak = OnWeakRows(Confidence(recipe.confidence)) if recipe.confidence else None
    return _Prepared(len(rows), len(given) - len(rows), partial(train, loaded, rows, config, refresh=weak))


def _encoder(plan: StudentPlan, recipe: Recipe, records: Sequence[Record]) -> _Prepared:
    """Prepare an encoder: it reads what a prompt says last, the row's inputs, and has one output a label."""
    loaded = load_encoder(plan.base)
    rows = class_rows(plan, recipe, records, loaded)
    labels, config = plan.task.labels, recipe.train_config(plan.closed)
    return _Prepared(len(rows), 0, partial(train_encoder, loaded, rows, labels, config, head_only=recipe.head_only))


def class_rows(plan: StudentPlan, recipe: Recipe, records: Sequence[Record], loaded: LoadedModel) -> list[ClassRow]:
    """Return the records as an encoder's rows: the text of their inputs, and a mass for each of the task's labels."""
    rendered = rendered_rows(plan, recipe, records)
    rows: list[ClassRow] = []
    for one, ids in zip(rendered, token_ids(loaded, [one.messages[-1][1] for one in rendered]), strict=True):
        masses = dict(one.completions)
        total = sum(masses.values())
        shares = tuple(masses.get(label, 0.0) / total for label in plan.task.labels)
        rows.append(ClassRow(tuple(ids), shares, one.weight))
    return rows


def lm_of(loaded: LoadedModel, **options: Any) -> LM:
    """Return an LM without a ledger over a model in memory: for out-of-fold predictions."""
    if isinstance(loaded.model, EncoderClassifier):
        backend = EncoderBackend(EncoderEngine(loaded))
    else:
        backend = TorchBackend(engine_of(loaded))
    return LM(f"memory/{loaded.name}", backend, role="student", **options)


def load_student(base: str, adapter: Path) -> LoadedModel:
    """Load a student as it answers, from its base model and what `save` wrote."""
    return load_classifier(base, adapter) if is_encoder(base) else load_model(base, adapter=adapter, merged=True)


def save(result: TrainResult, folder: Path) -> Path:
    """Write the adapter beside a half-written one's place, whole or not at all."""
    part = folder.with_name(folder.name + ".part")
    if part.exists():
        shutil.rmtree(part)
    result.save(part)
    if folder.exists():
        shutil.rmtree(folder)
    part.rename(folder)
    return folder
