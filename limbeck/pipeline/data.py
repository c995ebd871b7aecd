"""The synthesize and curate stages: what the compiled teacher writes and labels, and what of it can be trusted."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import dspy
import numpy as np

from limbeck.compile.curate import Curated, Judgement, curate
from limbeck.compile.dedup import record_text
from limbeck.compile.describe import readable
from limbeck.compile.label import (
    LabelConfig,
    Labeler,
    answer_all,
    answered,
    block_programs,
    gold_records,
    label_pool,
    probability_matrix,
    prompt_hash,
)
from limbeck.compile.labelmodel import LabelModel, fit_label_model, fixed_label_model
from limbeck.compile.selfinstruct import SelfInstructConfig, self_instruct
from limbeck.compile.source import Source, source_of
from limbeck.compile.synthesize import SynthesisConfig, synthesize
from limbeck.errors import StageEmpty
from limbeck.metrics import likeness
from limbeck.pipeline.config import label_shares
from limbeck.pipeline.context import Context
from limbeck.pipeline.forecast import local_parameters
from limbeck.pipeline.labelers import LinearLabeler, encoder_labeler, probe_labeler
from limbeck.pipeline.learn import ADAPTERS, Tuned, fold_predictions
from limbeck.pipeline.students import label_matrix, predict
from limbeck.records import Record, read_records, write_records

# Below this many parameters a teacher writes worse when asked for a style.
_FOLLOWS_STYLES = 5e8
# A gold answer of the teacher counts as right from this score of the metric on.
_RIGHT = 0.99
# Calls of one wave of new inputs: later waves show what earlier ones wrote.
_WAVE = 32
CANDIDATES, KEPT, REJECTED = "data/candidates.parquet", "data/kept.parquet", "data/rejected.parquet"
# The kept rows as labelled without sight of the gold fold that their block keeps out: for out-of-fold fits alone.
BLIND = "data/kept_blind.parquet"


def pool_inputs(context: Context) -> list[dict[str, Any]]:
    """Return the unlabelled rows to label: all, or a seeded draw of the effort's count."""
    rows = [dict(row) for row in context.task.unlabeled]
    limit = context.config.pool_rows
    if limit is None:
        limit = context.spend.rows_to_label(context.closed, context.plan.writes_more)
    if len(rows) > limit:
        rows = random.Random(context.config.seed).sample(rows, limit)
        context.run.reporter.note(f"labelling {limit} of {len(context.task.unlabeled)} unlabelled rows")
    return rows


def rows_to_write(context: Context, pool: int) -> int:
    """Return how many rows to generate: the effort's count less the real rows that the pool gives."""
    if context.config.synthetic_rows is not None:
        return context.config.synthetic_rows
    return max(0, context.spend.rows_to_have(context.closed, context.plan.writes_more) - pool)


def _progress(context: Context, what: str) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        totals = context.run.ledger.totals()
        context.run.reporter.step(what, done, total, f"${totals.usd:.2f}, {totals.calls} calls")

    return show


def _labeler(context: Context, demos: int, program: dspy.Module) -> Labeler:
    """Return the teacher as it labels: demonstrations drawn anew per block for a closed task."""
    task = context.task
    if context.closed:
        programs = block_programs(
            task.program,
            context.split.gold,
            context.split.folds,
            demos,
            context.config.seed,
            labels=task.labels,
            output=context.output,
        )
    else:
        programs = {-1: program}
    return Labeler(
        programs,
        context.answerer,
        context.plan.adapter,
        task.output_fields,
        label_field=context.output if context.closed else "",
        verifiers=task.verifiers,
        metric=None if context.closed else task.metric,
    )


def synthesize_stage(context: Context, demos: int, program: dspy.Module) -> dict[str, Any]:
    """Label the pool, write what the pool does not give, and store every candidate; return the payload."""
    pool = pool_inputs(context)
    labeler = _labeler(context, demos, program)
    config = LabelConfig(
        samples=1 if context.closed else context.spend.samples, threads=context.callers, seed=context.config.seed
    )
    records: list[Record] = []
    if pool:
        records += label_pool(pool, labeler, config=config, progress=_progress(context, "labelling the pool"))
    wanted = rows_to_write(context, len(pool))
    if wanted:
        try:
            records += (_written if context.closed else _instructed)(context, wanted, labeler, config)
        except StageEmpty as error:
            if not records:
                context.run.warn(f"nothing could be generated: {error.message}")
            else:
                context.run.warn(f"only the pool is used: {error.message}")
    write_records(records, context.run.path / CANDIDATES)
    answered = sum(r.kept for r in records)
    return {
        "files": [CANDIDATES],
        "candidates": len(records),
        "log": {
            "records_in": len(context.split.gold) + len(pool),
            "kept": answered,
            "rejected": {"failed": len(records) - answered} if answered < len(records) else {},
        },
    }


def _source(context: Context) -> Source:
    """Return what a writer may know of the task; folds are kept apart for a closed task."""
    folds = context.split.folds if context.split.n_folds and context.closed else ()
    return source_of(context.task, context.split.gold, folds)


def _writing(context: Context, wanted: int) -> SynthesisConfig:
    """Return how rows are written; a very small teacher follows no style and needs a cooler head."""
    config = SynthesisConfig(
        total=wanted,
        distribution=label_shares(context.config.label_distribution),
        threads=context.callers,
        seed=context.config.seed,
    )
    parameters = local_parameters(context.config.teacher)
    if parameters is not None and parameters < _FOLLOWS_STYLES:
        return replace(config, styled=0.0, temperature=0.7, top_p=0.9)
    return config


def _written(context: Context, wanted: int, labeler: Labeler, config: LabelConfig) -> list[Record]:
    """Return label-conditioned rows, each with what the teacher says when it reads them back."""
    made = synthesize(
        _source(context),
        lm=context.teacher,
        adapter=context.plan.adapter,
        config=_writing(context, wanted),
        progress=_progress(context, "writing rows"),
    )
    blocks = [
        r.provenance.block if r.provenance.block in labeler.programs else min(labeler.programs) for r in made.records
    ]
    answers = answer_all(
        [r.inputs for r in made.records],
        labeler,
        blocks=blocks,
        config=config,
        progress=_progress(context, "reading back what was written"),
    )
    return [
        replace(r, soft=a.soft, soft_source=a.soft_source, scores={**r.scores, **a.scores})
        if not a.reason
        else r.reject(a.reason)
        for r, a in zip(made.records, answers, strict=True)
    ]


def _instructed(context: Context, wanted: int, labeler: Labeler, config: LabelConfig) -> list[Record]:
    """Return new inputs written the Self-Instruct way and answered by rejection sampling."""
    show = _progress(context, "writing new inputs"), _progress(context, "answering new inputs")
    made = self_instruct(
        _source(context),
        labeler,
        config=SelfInstructConfig(
            total=wanted, samples=config.samples, threads=config.threads, wave=_WAVE, seed=config.seed
        ),
        progress=lambda what, done, total: show[what == "answer"](done, total),
    )
    return list(made.records)


def trusted_gold(context: Context, program: dspy.Module, gold: Sequence[Record]) -> list[Record]:
    """Return gold rows with the whole answer of a program that writes more than the labels hold.

    The teacher answers every gold row several times; of what it wrote, an answer that the metric accepts
    against the label is kept with its rationale and trace (rejection sampling). Rows that it never gets right
    are left out.
    """
    examples = context.split.gold

    def work() -> dict[str, Any]:
        labeler = replace(_labeler(context, 0, program), verifiers=(), metric=None)
        found: list[dict[str, Any]] = []
        for sample in range(context.spend.samples):
            left = [i for i in range(len(gold)) if all(f["row"] != i for f in found)]
            config = LabelConfig(
                temperature=0.8 if sample else 0.0, threads=context.callers, seed=context.config.seed + sample
            )
            if not left:
                break
            try:
                answers = answer_all(
                    [gold[i].inputs for i in left],
                    labeler,
                    blocks=[-1] * len(left),
                    config=config,
                    progress=_progress(context, f"answering the labelled rows, try {sample + 1}"),
                )
            except StageEmpty:
                continue  # of the rows that are left, none got an answer this time
            for i, answer in zip(left, answers, strict=True):
                made = dspy.Prediction(**answer.outputs)
                if answer.reason or likeness(context.task.metric, examples[i], made) < _RIGHT:
                    continue
                found.append({"row": i, "rationale": answer.rationale, "calls": list(answer.calls)})
        return {"found": found}

    key = context.key("trusted gold", prompt_hash(program))
    payload = context.run.stage("answer the labelled rows", key, work, show=False)
    records: list[Record] = [
        replace(gold[int(f["row"])], rationale=f["rationale"], calls=tuple(f["calls"])) for f in payload["found"]
    ]
    context.run.reporter.note(f"the teacher got {len(records)} of {len(gold)} labelled rows right")
    return records


# -- curate ------------------------------------------------------------------------------------------------------


def meanings(context: Context) -> list[str]:
    """Return each label in words: its readable name, and its description where there is one."""
    described = context.task.label_descriptions
    return [f"{readable(label)}. {described.get(label, '')}".strip() for label in context.task.labels]


def linear_labelers(context: Context) -> dict[str, LinearLabeler]:
    """Return the linear labelers that this machine can fit: the student's probe, and the sentence encoder."""
    gold, folds = context.gold_inputs(), context.folds()
    found = {"probe": probe_labeler(context.plan.base, gold, folds)}
    encoder = encoder_labeler(gold, folds, meanings(context)) if context.config.encoder else None
    return {**found, "encoder": encoder} if encoder else found


def _with_all_demonstrations(
    context: Context, records: Sequence[Record], demos: int, program: dspy.Module
) -> Sequence[Record]:
    """Return the records with what the teacher says under its whole prompt.

    The prompts of the blocks leave a fold out; where they then show fewer demonstrations, the teacher is asked
    once more with all of them (clinc150: 0.60 instead of 0.55 of 360 pool rows right).
    """
    split = context.split
    if not split.n_folds or demos <= len(split.gold) - max(map(split.folds.count, set(split.folds))):
        return records
    asked = [r for r in records if r.kept]
    try:
        answers = answer_all(
            [r.inputs for r in asked],
            replace(_labeler(context, demos, program), programs={-1: program}),
            blocks=[-1] * len(asked),
            config=LabelConfig(threads=context.callers, seed=context.config.seed),
            progress=_progress(context, "labelling with all demonstrations"),
        )
    except StageEmpty as error:
        context.run.warn(f"the final labels show fewer demonstrations than the compiled prompt: {error.message}")
        return records
    # A row that failed this time keeps what it had.
    told = iter(r if a.reason else answered(r, a) for r, a in zip(asked, answers, strict=True))
    return [next(told) if r.kept else r for r in records]


def _judge(
    context: Context,
    records: Sequence[Record],
    teacher: Sequence[Record],
    oof: Any,
    tuned: Tuned,
    adapters: Callable[[], list[Path]],
) -> tuple[Judgement, Judgement]:
    """Return what all labelers together say about the records, weighed by their out-of-fold record.

    The first judgement takes the models of all gold rows and `teacher`, the records as its whole prompt labels
    them, and is what the final student learns from. The second takes for a record of block k only models that saw
    no gold row of fold k, and is for students that are judged on that fold; the weights come from such models, and
    are cautious for the first.
    """
    task, folds = context.task, context.folds()
    texts = [record_text(r.inputs) for r in records]
    linear = linear_labelers(context)
    by_fold = {name: labeler.predict_folds(texts) for name, labeler in linear.items()}
    whole = {name: labeler.predict(texts) for name, labeler in linear.items()}
    if folds.n:
        students = [*adapters(), context.run.path / ADAPTERS["student_gold_only"]]
        *by_fold["student"], whole["student"] = fold_predictions(
            context, tuned.recipe, [r.inputs for r in records], students
        )
    blocks = [max(0, r.provenance.block) for r in records]
    whole["teacher"] = probability_matrix(teacher, task.labels, context.output)
    blind = {
        name: np.stack([found[block % len(found)][row] for row, block in enumerate(blocks)])
        for name, found in by_fold.items()
    }
    blind["teacher"] = probability_matrix(records, task.labels, context.output)
    if folds.n:
        measured = {"teacher": np.asarray(oof), "student": tuned.matrix}
        measured |= {n: folds.out_of_fold(labeler.gold_by_fold) for n, labeler in linear.items()}
        model = fit_label_model(measured, folds.y_N, task.labels, folds=folds.fold_N)
    else:
        model = _unseen_model(context, linear)
        whole = {name: p for name, p in whole.items() if name in model.weights}
        blind = {name: p for name, p in blind.items() if name in model.weights}
    return (
        Judgement(context.output, model, model.predict(whole)),
        Judgement(context.output, model, model.predict(blind)),
    )


def _unseen_model(context: Context, linear: Mapping[str, LinearLabeler]) -> LabelModel:
    """Return the label model where each class has one row: calibrated on labelers that saw no gold row.

    The teacher without demonstrations and the encoder on the labels' words alone have not seen the gold rows,
    so their predictions of them can be weighed. Their successors, which see the rows, are better than that:
    the weights are cautious. The student and the probe cannot be weighed and have no vote.
    """
    from limbeck.engine.embedding import encode
    from limbeck.engine.linear import fit_linear

    # Descriptions that the teacher wrote have seen the gold rows: without them.
    context = replace(context, task=context.task.with_descriptions(context.given))
    task, folds = context.task, context.folds()
    bare = predict(context.plan, task.program.deepcopy(), context.answerer, context.split.gold, "teacher")
    measured = {"teacher": label_matrix(bare, context.output, task.labels)}
    anchors = encode(meanings(context)) if "encoder" in linear else None
    if anchors is not None:
        gold = encode([record_text(row) for row in context.gold_inputs()])
        model = fit_linear(anchors, list(range(len(task.labels))), len(task.labels))
        measured["encoder"] = model.predict(cast(Any, gold))
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
) -> dict[str, Any]:
    """Apply every rule to the candidates; store kept and rejected rows; return the payload.

    `compiled` is the compile stage's payload with the teacher's out-of-fold probabilities, `program` its prompt,
    `tuned` the gold-only student, `adapters` gives that student's fold adapters where they are needed.
    """
    records = read_records(context.run.path / CANDIDATES)
    judgement = blind = None
    if context.closed and records:
        teacher = _with_all_demonstrations(context, records, int(compiled["demos"]), program)
        judgement, blind = _judge(context, records, teacher, compiled["oof"], tuned, adapters)
    gold = gold_records(context.split.gold, folds=context.split.folds)
    protected = [record_text(row) for row in _test_inputs(context)]
    done = curate(records, gold=gold, protected=protected, judgement=judgement)
    for_folds = curate(records, gold=gold, protected=protected, judgement=blind) if blind else done
    write_records(done.kept, context.run.path / KEPT)
    write_records(for_folds.kept, context.run.path / BLIND)
    write_records(done.rejected, context.run.path / REJECTED)
    _say(context, done)
    return {
        "files": [KEPT, BLIND, REJECTED],
        "label_model": judgement.model.report() if judgement else None,
        "kept": len(done.kept),
        "log": {
            "records_in": len(records),
            "kept": len(done.kept),
            "rejected": dict(done.counts),
            **({"labelers": judgement.model.report()["weights"]} if judgement else {}),
        },
    }


def _test_inputs(context: Context) -> list[dict[str, Any]]:
    rows = context.task.test if context.task.test is not None else context.split.test
    return [context.task_inputs(e) for e in rows]


def _say(context: Context, done: Curated) -> None:
    total = len(done.kept) + len(done.rejected)
    reasons = ", ".join(f"{n} {name}" for name, n in sorted(done.counts.items(), key=lambda x: -x[1]))
    context.run.reporter.note(f"kept {len(done.kept)} of {total} rows" + (f" (rejected: {reasons})" if reasons else ""))
    if total and not done.kept:
        context.run.warn("curation kept no row: the student is trained on the labels alone")
