"""A weak model's labels in place of a teacher's (`--weak`; weak-to-strong generalization, Burns et al. 2023).

The weak model is fitted on the labels, once a fold on those outside it and once on all of them, and labels the
unlabelled rows. The student learns from its labels with and without the auxiliary confidence loss
(`limbeck.finetune.weak`). No row is written and no teacher is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from limbeck.compile.curate import Judgement
from limbeck.compile.dedup import record_text
from limbeck.compile.label import FAILED, gold_records, probability_matrix
from limbeck.compile.labelmodel import fit_label_model, fixed_label_model
from limbeck.errors import InputError
from limbeck.models.kinds import LOCAL_NAMES, is_encoder
from limbeck.models.names import check_name
from limbeck.pipeline.config import WORDS, RunConfig
from limbeck.pipeline.context import Context
from limbeck.pipeline.data import CANDIDATES, pool_inputs
from limbeck.pipeline.dataquality import rules_of
from limbeck.pipeline.labelers import words_labeler
from limbeck.pipeline.learn import ADAPTERS, Tuned, fit_final, fold_adapters, fold_predictions, tune
from limbeck.pipeline.objectives import Objectives
from limbeck.pipeline.parameters import local_parameters
from limbeck.pipeline.students import Matrix, gold_recipes
from limbeck.records import Provenance, Record, write_records
from limbeck.stats import mean_ci, mean_gap
from limbeck.task import Task
from limbeck.terms import resolve

WEAK = "weak"


def check_weak(config: RunConfig, task: Task, closed: bool) -> None:
    """Raise InputError for a weak model that cannot label this task, or is larger than the student it should teach."""
    if not closed or not task.unlabeled:
        raise InputError(
            "--weak labels unlabelled rows, and "
            + ("there are none" if closed else "this task is not one closed set of labels"),
            valid="a task of labels with --unlabeled FILE",
        )
    if is_encoder(config.student):
        raise InputError(
            f"--weak: the student {config.student!r} is an encoder, which the confidence loss does not train",
            valid=LOCAL_NAMES,
        )
    if asking := _asking(config):
        raise InputError(
            f"--weak takes the teacher's place, and {', '.join(asking)} would ask one", valid="one or the other"
        )
    if config.weak != WORDS:
        check_name(config.weak, None)
    weak, student = _parameters(config.weak), local_parameters(config.student)
    if weak and student and weak > student:
        raise InputError(
            f"--weak {config.weak} has {weak:,.0f} parameters and the student {config.student} {student:,.0f}: the "
            "weak model is the smaller one",
            valid=f"a smaller --weak, such as {WORDS} or encoder, or a larger --student",
        )


def _asking(config: RunConfig) -> list[str]:
    """Return the options of a run that ask a teacher or a judge."""
    given = {
        f"--teacher {config.teacher}": config.teacher != RunConfig.teacher,
        "--optimizer": config.optimizer,
        "--reflection-model": config.reflection,
        "--method": config.method,
        "--program": config.program,
        "--ground": config.ground,
        "--synthetic-rows": config.synthetic_rows,
        "--rounds": config.rounds > 1,
        "--judge": config.judge,
        "--rule toxic": rules_of(config).toxic is not None,
        f"--objective {config.objective}": config.objectives != Objectives(),
    }
    return [name for name, there in given.items() if there]


def _parameters(weak: str) -> float | None:
    return None if weak == WORDS else local_parameters(weak)


def compile_weakly(context: Context) -> dict[str, Any]:
    """Keep the task's own program, for there is no teacher to compile it for; return the compile stage's payload."""
    cast(Any, context.task.program).save(str(context.run.path / "program.json"))
    return {
        "files": ["program.json"],
        "prompt": "uncompiled",
        "descriptions": dict(context.given),
        "demos": 0,
        "oof": None,
        "log": {"records_in": len(context.split.gold), "kept": "uncompiled"},
    }


@dataclass(frozen=True)
class WeakLabels:
    """What a weak model says, as probabilities over the labels [rows, K]; NaN where it says nothing.

    `by_fold` and `whole` are of new rows, by the models of each fold and of all labels, `of_gold` and the hits `scores`
    of the labelled rows, each by the model of its own fold; `scores` is empty without folds.
    """

    by_fold: Sequence[Matrix]
    whole: Matrix
    of_gold: Matrix
    scores: tuple[float, ...]
    how: str = ""

    def blind(self, blocks: Sequence[int]) -> Matrix:
        """Return what new rows are labelled by models that saw no label of the fold that is a row's block."""
        if not self.by_fold:
            return self.whole
        return np.stack([self.by_fold[block % len(self.by_fold)][row] for row, block in enumerate(blocks)])


def _by_words(context: Context, rows: Sequence[Mapping[str, Any]]) -> WeakLabels:
    folds, texts = context.folds(), [record_text(row) for row in rows]
    labeler = words_labeler(context.gold_inputs(), folds, texts)
    of_gold = folds.out_of_fold(labeler.gold_by_fold)
    scores = of_gold.argmax(axis=1) == np.asarray(folds.y_N)
    hits = tuple(map(float, scores)) if folds.n else ()
    return WeakLabels(labeler.predict_folds(texts), labeler.predict(texts), of_gold, hits)


def _by_model(context: Context, rows: Sequence[Mapping[str, Any]], blocks: Sequence[int]) -> WeakLabels:
    """Train the weak model as the student of the labels alone is trained, and ask it."""
    split = context.split
    weak = replace(context, plan=replace(context.plan, base=context.config.weak, demos=()))
    gold = gold_records(split.gold, folds=split.folds if split.n_folds else None)

    def outside(fold: int) -> list[Record]:
        return [r for r in gold if r.provenance.block != fold]

    recipes = gold_recipes(replace(context.config, student=context.config.weak), context.plan)
    tuned = tune(weak, WEAK, recipes, outside, keep=True)
    fit_final(weak, WEAK, tuned.recipe, gold)
    own = [[row for row, block in enumerate(blocks) if block == fold] for fold in range(split.n_folds)]
    students = [*zip(fold_adapters(weak, WEAK, tuned, outside), own, strict=True)]
    whole = context.run.path / ADAPTERS[WEAK], range(len(rows))
    *by_fold, of_all = fold_predictions(weak, tuned.recipe, rows, [*students, whole])
    return WeakLabels(by_fold, of_all, tuned.matrix, tuned.scores, tuned.recipe.summary())


def label_weakly(context: Context) -> dict[str, Any]:
    """Let the weak model label the unlabelled rows; store every candidate and return the synthesize stage's payload."""
    config, rows, folds = context.config, pool_inputs(context), context.split.n_folds
    blocks = [row % folds if folds else -1 for row in range(len(rows))]
    said = _by_words(context, rows) if config.weak == WORDS else _by_model(context, rows, blocks)
    origins = {block: _origin(config, block) for block in set(blocks)}
    labelled = zip(rows, said.blind(blocks), blocks, strict=True)
    records = [_record(context, row, masses, origins[block]) for row, masses, block in labelled]
    write_records(records, context.run.path / CANDIDATES)
    even = 1.0 / len(context.task.labels)
    return {
        "files": [CANDIDATES],
        "candidates": len(records),
        "whole": np.nan_to_num(said.whole, nan=even).round(6).tolist(),
        "oof": np.nan_to_num(said.of_gold, nan=even).tolist() if folds else None,
        "scores": list(said.scores),
        "log": {
            "records_in": len(context.split.gold) + len(rows),
            "kept": sum(r.kept for r in records),
            "rejected": dict(Counter(r.reason for r in records if not r.kept)),
            "weak": {"model": config.weak, **({"recipe": said.how} if said.how else {})},
        },
    }


def _origin(config: RunConfig, block: int) -> Provenance:
    writes = config.models_asked()["weak model"]
    licence = resolve(writes).licence if writes else ""
    return Provenance("pool", teacher=f"weak:{config.weak}", seed=config.seed, licence=licence, block=block)


def _record(context: Context, row: Mapping[str, Any], masses: Matrix, origin: Provenance) -> Record:
    if np.isnan(masses).any():
        return Record(dict(row), {}, origin).reject(FAILED)
    labels = context.task.labels
    soft = {label: float(mass) for label, mass in zip(labels, masses, strict=True)}
    return Record(dict(row), {context.output: labels[int(masses.argmax())]}, origin, soft=soft, soft_source="exact")


def judged(
    context: Context, records: Sequence[Record], labelled: Mapping[str, Any]
) -> tuple[Judgement, Judgement, Matrix | None]:
    """Return what the weak model alone says of the records, calibrated on the labels out of fold.

    The first judgement is by the model of all labels, the second by one that is blind to the fold of a record's block;
    last, what it says of the labelled rows (None: no folds). `labelled` is what `label_weakly` returned.
    """
    labels, folds = context.task.labels, context.folds()
    whole = {WEAK: np.asarray(labelled["whole"])}
    blind = {WEAK: probability_matrix(records, labels, context.output)}
    model, of_gold = fixed_label_model(labels, [WEAK]), None
    if folds.n:
        measured = {WEAK: np.asarray(labelled["oof"])}
        model = fit_label_model(measured, folds.y_N, labels, folds=folds.fold_N)
        of_gold = model.predict(measured)
    return (
        Judgement(context.output, model, model.predict(whole)),
        Judgement(context.output, model, model.predict(blind)),
        of_gold,
    )


def tell_gain(context: Context, labelled: Mapping[str, Any], gold: Tuned, student: Tuned | None) -> None:
    """Put the weak model's score beside the students', all out of fold, into the report; warn of one that is above."""
    scores, name = labelled["scores"], context.config.weak
    if not scores or student is None or not student.scores:
        return
    weak, (gap, error) = mean_ci(scores), mean_gap(scores, student.scores)
    context.run.stage_log.append(
        {
            "name": "weak to strong",
            "kept": f"{name} {weak.mean:.3f}, its student {student.score:.3f}",
            "weak": name,
            "out_of_fold": weak.mean,
            "ci95": [weak.low, weak.high],
            "student": student.score,
            "student_gold_only": gold.score,
            "confidence": student.recipe.confidence,
        }
    )
    context.run.reporter.note(
        f"out of fold: {name} {weak.mean:.3f} [{weak.low:.3f}, {weak.high:.3f}], its student {student.score:.3f}, "
        f"the labels alone {gold.score:.3f}"
    )
    if gap > 0:
        context.run.warn(
            f"weak-above-strong: {name} scores {weak.mean:.3f} out of fold and the student that learned from it "
            f"{student.score:.3f} (standard error of the difference {error:.3f}): a weak model stronger than the "
            "strong one can hold it back"
        )
