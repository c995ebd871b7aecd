"""The curate stage: what all labelers together say of the candidates, and which of them can be trusted."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import dspy
import numpy as np

from limbeck.compile.curate import Curated, Judgement, curate
from limbeck.compile.dedup import record_text
from limbeck.compile.describe import readable
from limbeck.compile.label import (
    LabelConfig,
    answer_all,
    answered,
    gold_records,
    probability_matrix,
)
from limbeck.compile.labelmodel import LabelModel, fit_label_model, fixed_label_model
from limbeck.compile.thresholds import CurateConfig
from limbeck.compile.toxicity import ToxicityJudge, joined
from limbeck.errors import StageEmpty
from limbeck.levels import LEVELS, count_levels, parse_levels, restrict
from limbeck.models.kinds import is_encoder
from limbeck.pipeline.context import Context
from limbeck.pipeline.data import CANDIDATES, FIRST, Turn, labeler_of, progress_of, samples_of
from limbeck.pipeline.dataquality import as_curated, curation_log, given_documents, odd_labels, rules_of
from limbeck.pipeline.judging import RunJudge
from limbeck.pipeline.labelers import Folds, LinearLabeler, encoder_labeler, probe_labeler
from limbeck.pipeline.learn import ADAPTERS, Tuned, fold_predictions
from limbeck.pipeline.students import Matrix, callers, label_matrix, predict
from limbeck.pipeline.weak import judged
from limbeck.principles import read_principles
from limbeck.records import Record, read_records, stable_hash, write_records
from limbeck.review import apply_reviews, read_reviews, review_status

KEPT, REJECTED = "data/kept.parquet", "data/rejected.parquet"
# The kept rows as labelled without sight of the gold fold that their block keeps out: for out-of-fold fits alone.
BLIND = "data/kept_blind.parquet"


def meanings(context: Context) -> list[str]:
    """Return each label in words: its readable name, and its description where there is one."""
    described = context.task.label_descriptions
    return [f"{readable(label)}. {described.get(label, '')}".strip() for label in context.task.labels]


def linear_labelers(context: Context) -> dict[str, LinearLabeler]:
    """Return the linear labelers that this machine can fit: the student's probe, and the sentence encoder.

    Where the student is an encoder, the two are one.
    """
    gold, folds = context.gold_inputs(), context.folds()
    if is_encoder(context.plan.base):
        own = encoder_labeler(gold, folds, meanings(context), context.plan.base)
        return {"encoder": own} if own else {}
    found = {"probe": probe_labeler(context.plan.base, gold, folds)}
    encoder = encoder_labeler(gold, folds, meanings(context)) if context.config.encoder else None
    return {**found, "encoder": encoder} if encoder else found


def _with_all_demonstrations(
    context: Context, records: Sequence[Record], compiled: Mapping[str, Any], program: dspy.Module, tuned: Tuned
) -> Sequence[Record]:
    """Return the records with what the teacher says under its whole prompt.

    The prompts of the blocks leave a fold out; where they then show fewer demonstrations, the teacher is asked
    once more with all of them (clinc150: 0.60 instead of 0.55 of 360 pool rows right). A teacher that is no better
    out of fold than the student trained on the labels has little weight, and is not asked twice.
    """
    split, demos = context.split, int(compiled["demos"])
    if not split.n_folds or demos <= len(split.gold) - max(map(split.folds.count, set(split.folds))):
        return records
    if _accuracy(np.asarray(compiled["oof"]), context.folds()) <= _accuracy(tuned.matrix, context.folds()):
        return records
    asked = [r for r in records if r.kept]
    try:
        answers = answer_all(
            [r.inputs for r in asked],
            replace(labeler_of(context, demos, program), programs={-1: program}),
            blocks=[-1] * len(asked),
            config=LabelConfig(samples=samples_of(context), threads=context.callers, seed=context.config.seed),
            progress=progress_of(context, "labelling with all demonstrations"),
        )
    except StageEmpty as error:
        context.run.warn(f"the final labels show fewer demonstrations than the compiled prompt: {error.message}")
        return records
    # A row that failed this time keeps what it had.
    told = iter(r if a.reason else answered(r, a) for r, a in zip(asked, answers, strict=True))
    return [next(told) if r.kept else r for r in records]


def _accuracy(matrix: Matrix, folds: Folds) -> float:
    return float((matrix.argmax(axis=1) == np.asarray(folds.y_N)).mean())


def _judge(
    context: Context,
    records: Sequence[Record],
    teacher: Sequence[Record],
    oof: Any,
    tuned: Tuned,
    adapters: Callable[[], list[Path]],
) -> tuple[Judgement, Judgement, Matrix | None]:
    """Return what all labelers together say about the records, weighed by their out-of-fold record.

    The first judgement takes the models of all gold rows and `teacher`, the records as its whole prompt labels
    them, and is what the final student learns from. The second takes for a record of block k only models that saw
    no gold row of fold k, and is for students that are judged on that fold; the weights come from such models, and
    are cautious for the first. Last, what they say of the gold rows themselves, each out of its fold (None: no folds).
    """
    task, folds = context.task, context.folds()
    texts = [record_text(r.inputs) for r in records]
    linear = linear_labelers(context)
    by_fold = {name: labeler.predict_folds(texts) for name, labeler in linear.items()}
    whole = {name: labeler.predict(texts) for name, labeler in linear.items()}
    blocks = [max(0, r.provenance.block) for r in records]
    if folds.n:
        # A fold's student is asked about the rows of its block alone: of the others its answer counts for nothing.
        own = [[row for row, block in enumerate(blocks) if block % folds.n == fold] for fold in range(folds.n)]
        final = context.run.path / ADAPTERS["student_gold_only"], range(len(records))
        *by_fold["student"], whole["student"] = fold_predictions(
            context, tuned.recipe, [r.inputs for r in records], [*zip(adapters(), own, strict=True), final]
        )
    whole["teacher"] = probability_matrix(teacher, task.labels, context.output)
    blind = {
        name: np.stack([found[block % len(found)][row] for row, block in enumerate(blocks)])
        for name, found in by_fold.items()
    }
    blind["teacher"] = probability_matrix(records, task.labels, context.output)
    of_gold = None
    if folds.n:
        measured = {"teacher": np.asarray(oof), "student": tuned.matrix}
        measured |= {n: folds.out_of_fold(labeler.gold_by_fold) for n, labeler in linear.items()}
        model = fit_label_model(measured, folds.y_N, task.labels, folds=folds.fold_N)
        of_gold = model.predict(measured)
    else:
        model = _unseen_model(context, linear)
        whole = {name: p for name, p in whole.items() if name in model.weights}
        blind = {name: p for name, p in blind.items() if name in model.weights}
    return (
        Judgement(context.output, model, model.predict(whole)),
        Judgement(context.output, model, model.predict(blind)),
        of_gold,
    )


def _unseen_model(context: Context, linear: Mapping[str, LinearLabeler]) -> LabelModel:
    """Return the label model where each class has one row: calibrated on labelers that saw no gold row.

    The teacher without demonstrations and the encoder on the labels' words alone have not seen the gold rows,
    so their predictions of them can be weighed. Their successors, which see the rows, are better than that:
    the weights are cautious. The student and the probe cannot be weighed and have no vote.
    """
    from limbeck.engine.linear import fit_linear

    # Descriptions that the teacher wrote have seen the gold rows: without them.
    context = replace(context, task=context.task.with_descriptions(context.given))
    task, folds = context.task, context.folds()
    bare = predict(context.plan, task.program.deepcopy(), context.answerer, context.split.gold, "teacher")
    measured = {"teacher": label_matrix(bare, context.output, task.labels)}
    if encoder := linear.get("encoder"):
        model = fit_linear(encoder.features(meanings(context)), list(range(len(task.labels))), len(task.labels))
        measured["encoder"] = model.predict(encoder.features([record_text(row) for row in context.gold_inputs()]))
    if np.isnan(measured["teacher"]).all():
        return fixed_label_model(task.labels, list(measured))
    halves = [i % 2 for i in range(len(folds.y_N))]
    return fit_label_model(measured, folds.y_N, task.labels, folds=halves)


def curate_stage(
    context: Context,
    compiled: Mapping[str, Any],
    program: dspy.Module,
    tuned: Tuned,
    adapters: Callable[[], list[Path]],
    *,
    turn: Turn = FIRST,
    judge: RunJudge | None = None,
) -> dict[str, Any]:
    """Apply every rule to the candidates; store kept and rejected rows; return the payload.

    `compiled` is the compile stage's payload with the teacher's out-of-fold probabilities, or the weak model's with
    what it says of the candidates, `program` the teacher's prompt,
    `tuned` the gold-only student, `adapters` gives that student's fold adapters where they are needed, `judge` has
    been tried.
    """
    records = read_records(context.run.path / turn.file(CANDIDATES))
    judgement = blind = of_gold = None
    if context.config.weak and records:
        judgement, blind, of_gold = judged(context, records, compiled)
    elif context.closed and records:
        teacher = _with_all_demonstrations(context, records, compiled, program, tuned)
        judgement, blind, of_gold = _judge(context, records, teacher, compiled["oof"], tuned, adapters)
    gold = gold_records(context.split.gold, folds=context.split.folds)
    protected = [record_text(row) for row in _test_inputs(context)]
    # The labelers together may name another label than the one that the verifiers saw.
    verifiers = context.task.verifiers if judgement else ()
    rules = rules_of(context.config)
    records, toxic = _with_toxicity(context, records, gold, rules)
    rules = replace(rules, toxic=toxic.get("threshold"))
    asked = judge.verifier(context, as_curated(records, gold, rules)) if judge else None
    by_rules = partial(
        curate,
        records,
        gold=gold,
        protected=protected,
        verifiers=(*verifiers, *filter(None, [asked])),
        documents=given_documents(context.config),
        config=rules,
    )
    done = by_rules(judgement=judgement)
    for_folds = by_rules(judgement=blind) if blind else done
    files = [turn.file(name) for name in (KEPT, BLIND, REJECTED)]
    for name, found in zip(files, (done.kept, for_folds.kept, done.rejected), strict=True):
        write_records(found, context.run.path / name)
    _say(context, done)
    log = curation_log(context, records, done)
    if of_gold is not None and turn == FIRST:
        log["odd_labels"] = odd_labels(context, gold, of_gold)
    return {
        "files": files,
        "label_model": judgement.model.report() if judgement else None,
        "kept": len(done.kept),
        "log": {
            "records_in": len(records),
            "kept": len(done.kept),
            "rejected": dict(done.counts),
            **log,
            **({"labelers": judgement.model.report()["weights"]} if judgement else {}),
            **({"toxic": toxic} if toxic else {}),
            **({"judge": judge.log(done.counts)} if judge else {}),
        },
    }


def _with_toxicity(
    context: Context, records: Sequence[Record], gold: Sequence[Record], rules: CurateConfig
) -> tuple[Sequence[Record], dict[str, Any]]:
    """Return the records with what the constitution's judge says of written ones, where `--rule toxic` is on."""
    if rules.toxic is None:
        return records, {}
    judge = ToxicityJudge(
        joined(read_principles(context.config.constitution)),
        context.judge or context.answerer,
        context.plan.adapter,
        rules.toxic,
        context.output if context.closed else "",
        callers(context.config.judge_model if context.judge else context.config.teacher),
        progress_of(context, "looking for toxic rows"),
    )
    scored, log = judge.scored(records, gold)
    if "refused" in log:
        larger = "--teacher" if context.closed else "--judge"
        context.run.warn(f"toxic: the rule is left out: {log['refused']}; a larger {larger} may tell them")
    return scored, log


def _test_inputs(context: Context) -> list[dict[str, Any]]:
    rows = context.task.test if context.task.test is not None else context.split.test
    return [context.task_inputs(e) for e in rows]


def _say(context: Context, done: Curated) -> None:
    total = len(done.kept) + len(done.rejected)
    reasons = ", ".join(f"{n} {name}" for name, n in sorted(done.counts.items(), key=lambda x: -x[1]))
    context.run.reporter.note(f"kept {len(done.kept)} of {total} rows" + (f" (rejected: {reasons})" if reasons else ""))
    if total and not done.kept:
        context.run.warn("curation kept no row: the student is trained on the labels alone")


@dataclass(frozen=True)
class Learnable:
    """What the distilled student may learn from: labels, kept rows, and these as labelled blind to their fold.

    `own` says which fold a labelled row is of, by a hash of its inputs: rows that answer it anew are not for students
    that are judged on it.
    """

    gold: list[Record]
    kept: list[Record]
    blind: list[Record]
    own: Mapping[str, int] = field(default_factory=dict[str, int])

    def outside(self, fold: int) -> list[Record]:
        """Return the rows that have not seen the gold rows of a fold."""
        return [r for r in self.gold if r.provenance.block != fold] + self.told(fold)

    def told(self, fold: int) -> list[Record]:
        """Return those of them that are not the user's own."""
        return self.unseen(fold, self.blind)

    def unseen(self, fold: int, rows: Sequence[Record]) -> list[Record]:
        """Return those of some written rows that have not seen the gold rows of a fold, and are none of them."""
        return [
            r for r in rows if r.provenance.block in (fold, -1) and self.own.get(stable_hash(dict(r.inputs))) != fold
        ]

    def enough(self, folds: int) -> bool:
        """Return whether there are rows for every fit."""
        return bool(self.kept) and all(map(self.outside, range(folds)))


def learnable(context: Context, gold: Sequence[Record], number: int = 1) -> Learnable:
    """Return the rows to learn from: what people said of them holds, and then the levels that the run may use.

    Their ids and answers are in the keys of the fits: other verdicts, another student.
    """
    started, path, levels = time.monotonic(), context.run.path, parse_levels(context.config.level)
    reviews = read_reviews(path)
    files = [path / Turn(number).file(name) for name in (KEPT, BLIND)]
    kept, blind = (restrict(apply_reviews(read_records(file), reviews), levels) for file in files)
    labels = restrict(gold, levels)
    own = {stable_hash(inputs): fold for inputs, fold in zip(context.gold_inputs(), context.split.folds, strict=False)}
    rows = Learnable(*([r for r in part if r.kept] for part in (labels, kept, blind)), own=own)
    if reviews or levels != frozenset(LEVELS):
        review = {"review": review_status(path, seed=context.config.seed).to_dict()} if reviews else {}
        told = _log_review(context, [*labels, *kept], {**review, "seconds": round(time.monotonic() - started, 2)})
        if kept and not rows.enough(context.split.n_folds):
            context.run.warn(
                f"review: of {len(kept)} kept rows too few are left to learn from (rejected: {told}), so there is no "
                f"distilled student; people can verify rows: limbeck review take {path} --reviewer NAME"
            )
    return rows


def _log_review(context: Context, rows: Sequence[Record], log: Mapping[str, Any]) -> str:
    """Put what is left of the rows, and why not the rest, into the report and on the screen; return the why."""
    rejected = dict(Counter(r.reason for r in rows if not r.kept))
    left = sum(r.kept for r in rows)
    context.run.stage_log.append(
        {"name": "review", **log, "records_in": len(rows), "kept": left, "rejected": rejected}
        | {"levels": count_levels(rows)}
    )
    told = ", ".join(f"{n} {name}" for name, n in rejected.items())
    context.run.reporter.note(f"{left} of {len(rows)} rows to learn from" + (f" (rejected: {told})" if told else ""))
    return told
