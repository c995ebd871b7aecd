"""The synthesize stage: what the compiled teacher writes and labels."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import dspy

from limbeck.compile.label import (
    LabelConfig,
    Labeler,
    answer_all,
    block_programs,
    label_pool,
    prompt_hash,
)
from limbeck.compile.selfinstruct import SelfInstructConfig, self_instruct
from limbeck.compile.source import Source, source_of
from limbeck.compile.synthesize import SynthesisConfig, synthesize
from limbeck.errors import StageEmpty
from limbeck.metrics import likeness
from limbeck.pipeline.config import label_shares
from limbeck.pipeline.context import Context
from limbeck.pipeline.forecast import local_parameters
from limbeck.records import Record, write_records

# Below this many parameters a teacher writes worse when asked for a style.
_FOLLOWS_STYLES = 5e8
# A gold answer of the teacher counts as right from this score of the metric on.
_RIGHT = 0.99
# Calls of one wave of new inputs: later waves show what earlier ones wrote.
_WAVE = 32
CANDIDATES = "data/candidates.parquet"


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


def progress_of(context: Context, what: str) -> Callable[[int, int], None]:
    """Return what shows a step's progress with its cost so far."""

    def show(done: int, total: int) -> None:
        totals = context.run.ledger.totals()
        usd = "$?" if totals.unpriced else f"${totals.usd:.2f}"
        context.run.reporter.step(what, done, total, f"{usd}, {totals.calls} calls")

    return show


def samples_of(context: Context) -> int:
    """Return how many answers an input gets: labels of a server without probabilities are voted on."""
    return 1 if context.closed and context.answerer.supports_score else context.spend.samples


def labeler_of(context: Context, demos: int, program: dspy.Module) -> Labeler:
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
    labeler = labeler_of(context, demos, program)
    config = LabelConfig(samples=samples_of(context), threads=context.callers, seed=context.config.seed)
    records: list[Record] = []
    if pool:
        records += label_pool(pool, labeler, config=config, progress=progress_of(context, "labelling the pool"))
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
        progress=progress_of(context, "writing rows"),
    )
    blocks = [
        r.provenance.block if r.provenance.block in labeler.programs else min(labeler.programs) for r in made.records
    ]
    answers = answer_all(
        [r.inputs for r in made.records],
        labeler,
        blocks=blocks,
        config=config,
        progress=progress_of(context, "reading back what was written"),
    )
    return [
        replace(r, soft=a.soft, soft_source=a.soft_source, scores={**r.scores, **a.scores})
        if not a.reason
        else r.reject(a.reason)
        for r, a in zip(made.records, answers, strict=True)
    ]


def _instructed(context: Context, wanted: int, labeler: Labeler, config: LabelConfig) -> list[Record]:
    """Return new inputs written the Self-Instruct way and answered by rejection sampling."""
    show = progress_of(context, "writing new inputs"), progress_of(context, "answering new inputs")
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
        labeler = replace(labeler_of(context, 0, program), verifiers=(), metric=None)
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
                    progress=progress_of(context, f"answering the labelled rows, try {sample + 1}"),
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
