"""The synthesize stage: what the compiled teacher writes and labels."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import dspy

from limbeck.compile.focus import Focus
from limbeck.compile.label import (
    Answer,
    LabelConfig,
    Labeler,
    answer_all,
    answered,
    block_programs,
    label_pool,
    prompt_hash,
)
from limbeck.compile.pairs import sampled_preferences
from limbeck.compile.prompts import read_states
from limbeck.compile.retrieve import documents_of
from limbeck.compile.source import source_of
from limbeck.compile.synthesizers import (
    Materials,
    Synthesized,
    check_methods,
    portions_of,
    write_rows,
)
from limbeck.errors import StageEmpty
from limbeck.metrics import likeness
from limbeck.pipeline.config import RunConfig, label_shares
from limbeck.pipeline.context import Context
from limbeck.pipeline.parameters import local_parameters
from limbeck.pipeline.runfolder import content_hash
from limbeck.preferences import Preference, write_preferences
from limbeck.records import Provenance, Record, read_records, stable_hash, write_records
from limbeck.task import Task
from limbeck.terms import resolve

# Below this many parameters a teacher writes worse when asked for a style.
_FOLLOWS_STYLES = 5e8
# Seeds that one round may use for its portions.
_SEEDS_A_ROUND = 1000
# A gold answer of the teacher counts as right from this score of the metric on.
RIGHT = 0.99
# The temperature of further tries.
WARM = 0.8
CANDIDATES = "data/candidates.parquet"
# Pairs of answers of which one is preferred, where a method makes such or verifiers tell sampled answers apart.
PREFERENCES = "data/preferences.parquet"


@dataclass(frozen=True)
class Turn:
    """Which round of writing this is, and what the student of the round before got wrong."""

    number: int = 1
    focus: Focus = field(default_factory=Focus)

    @property
    def suffix(self) -> str:
        """What the names of a later round's stages and files end in."""
        return "" if self.number == 1 else f"-{self.number}"

    def file(self, name: str) -> str:
        """Return the name of this round's file.

        >>> Turn(2).file("data/kept.parquet")
        'data/kept-2.parquet'
        """
        stem, _, ending = name.rpartition(".")
        return f"{stem}{self.suffix}.{ending}"

    def key(self) -> list[Any]:
        """Return what a later round's results depend on besides those before it."""
        return [] if self.number == 1 else [self.number, asdict(self.focus)]


FIRST = Turn()


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
        context.answering_adapter,
        task.output_fields,
        label_field=context.output if context.closed else "",
        verifiers=task.verifiers,
        metric=None if context.closed else task.metric,
    )


def synthesize_stage(context: Context, demos: int, program: dspy.Module, turn: Turn = FIRST) -> dict[str, Any]:
    """Label the pool, write what the pool does not give, and store every candidate; return the payload.

    A later round has the candidates of those before it, and writes half as many rows as a run without a pool.
    """
    earlier = read_records(context.run.path / Turn(turn.number - 1).file(CANDIDATES)) if turn.number > 1 else []
    pool = [] if earlier else pool_inputs(context)
    for name in compiled_states(context)[1]:
        context.run.warn(
            f"{name} was compiled on other labelled rows and is not used: limbeck compile --program {name}"
        )
    labeler = labeler_of(context, demos, program)
    config = LabelConfig(samples=samples_of(context), threads=context.callers, seed=context.config.seed)
    records: list[Record] = []
    preferences: list[Preference] = []
    written = Synthesized(())

    def seen(record: Record, answer: Answer) -> None:
        # A label of a closed task is settled by all labelers together, not by the teacher's verifiers.
        preferences.extend([] if context.closed else sampled_preferences([record], [answer], seed=config.seed))

    if pool:
        show = progress_of(context, "labelling the pool")
        records += label_pool(pool, labeler, config=config, progress=show, seen=seen)
    wanted = -(-rows_to_write(context, 0) // 2) if earlier else rows_to_write(context, len(pool))
    if wanted:
        try:
            written = _written(context, wanted, labeler, config, turn)
            records += written.records
            preferences += written.preferences
            for text in (text for part in written.log.values() for text in part.get("warnings", ())):
                context.run.warn(text)
        except StageEmpty as error:
            if not records:
                context.run.warn(f"nothing could be generated: {error.message}")
            else:
                context.run.warn(f"only the pool is used: {error.message}")
    records = [*earlier, *(replace(r, provenance=_licensed(r.provenance, context)) for r in records)]
    write_records(records, context.run.path / turn.file(CANDIDATES))
    files = [turn.file(CANDIDATES)]
    (context.run.path / turn.file(PREFERENCES)).unlink(missing_ok=True)
    if preferences:
        files.append(turn.file(PREFERENCES))
        pairs = [replace(one, provenance=_licensed(one.provenance, context)) for one in preferences]
        write_preferences(pairs, context.run.path / files[-1])
    usable = sum(r.kept for r in records)
    return {
        "files": files,
        "candidates": len(records),
        "log": {
            "records_in": len(context.split.gold) + len(pool) + len(earlier),
            "kept": usable,
            "rejected": dict(Counter(r.reason for r in records if not r.kept)),
            **({"methods": dict(written.log), "not_written": dict(written.counts)} if written.log else {}),
        },
    }


def _licensed(origin: Provenance, context: Context) -> Provenance:
    """Return the provenance with what the teacher's terms say about training on what it wrote."""
    return replace(origin, licence=resolve(context.config.teacher, context.config.api_base).licence)


def compiled_states(context: Context) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the compiled programs in the run folder that its methods of writing rows use, by METHOD.PART.

    Second, the names of those that were compiled on other gold rows and are not used.
    """
    chains = (portion.chain for portion in portions_of(context.config.method, context.closed))
    return read_states(context.run.path, (name for chain in chains for name in chain), gold_hash(context))


def gold_hash(context: Context) -> str:
    """Return a hash of the gold rows as programs of methods are compiled on them."""
    split = context.split
    return stable_hash([context.gold_inputs(), [dict(e.labels()) for e in split.gold], split.folds, len(split.dev)])


def writing_key(context: Context) -> list[Any]:
    """Return what written rows depend on: the methods, what their files hold, and compiled programs if any."""
    states, _ = compiled_states(context)
    more = [stable_hash(states)] if states else []
    return [context.config.method, method_files_hash(context), *more, *context.grounds]


def check_writing(config: RunConfig, task: Task, closed: bool) -> None:
    """Raise InputError for methods of writing rows that do not fit the task or lack a file."""
    portions = portions_of(config.method, closed)
    source = source_of(task, task.examples)
    check_methods(portions, source, config.method_options())
    if config.ground:
        documents_of(source, config.method_options())


def method_files_hash(context: Context) -> dict[str, str]:
    """Return a hash of what each file or folder holds that the methods of writing rows read."""
    return {name: content_hash(Path(path)) for name, path in context.config.method_files().items() if path}


def materials_of(context: Context, labeler: Labeler, turn: Turn = FIRST, *, compiled: bool = True) -> Materials:
    """Return what the methods of writing may use; folds are kept apart for a closed task.

    With `compiled` these are the compiled programs of the run folder, else every program is plain.
    """
    folds = context.split.folds if context.split.n_folds and context.closed else ()
    parameters = local_parameters(context.config.teacher)
    return Materials(
        source_of(context.task, context.split.gold, folds),
        context.teacher,
        context.writing_adapter,
        labeler,
        samples=samples_of(context),
        threads=context.callers,
        seed=context.config.seed + _SEEDS_A_ROUND * (turn.number - 1),
        distribution=label_shares(context.config.label_distribution),
        follows_styles=parameters is None or parameters >= _FOLLOWS_STYLES,
        options=context.config.method_options(),
        focus=turn.focus,
        progress=lambda what, done, total: progress_of(context, what)(done, total),
        states=compiled_states(context)[0] if compiled else {},
    )


def _written(context: Context, wanted: int, labeler: Labeler, config: LabelConfig, turn: Turn) -> Synthesized:
    """Return written rows with their answers: what a method left open, and in a closed task every label."""
    portions = portions_of(context.config.method, context.closed)
    made = write_rows(portions, materials_of(context, labeler, turn), wanted)
    names = context.task.output_fields
    asked = [r for r in made.records if r.kept and (context.closed or any(name not in r.outputs for name in names))]
    blocks = [labeler.block_for(r.provenance.block) for r in asked]
    what = "reading back what was written" if context.closed else "answering new inputs"
    answers = answer_all(
        [r.inputs for r in asked], labeler, blocks=blocks, config=config, progress=progress_of(context, what)
    )
    told = {id(r): _told(r, a, intended=context.closed) for r, a in zip(asked, answers, strict=True)}
    pairs = [] if context.closed else sampled_preferences(asked, answers, seed=config.seed)
    records = tuple(told.get(id(r), r) for r in made.records)
    return replace(made, records=records, preferences=(*made.preferences, *pairs))


def _told(record: Record, answer: Answer, *, intended: bool) -> Record:
    """Return the record with its answer; an `intended` label stays what the row was written for."""
    if answer.reason:
        return record.reject(answer.reason)
    if not intended or not record.outputs:
        return answered(record, answer)
    return replace(record, soft=answer.soft, soft_source=answer.soft_source, scores={**record.scores, **answer.scores})


def answers_to_gold(
    context: Context, program: dspy.Module, rows: Sequence[Record], *, sample: int, temperature: float
) -> list[Answer]:
    """Return one try of the teacher at each labelled row, right or wrong; [] where no row got an answer."""
    # Verifiers and metric would choose among the answers.
    labeler = replace(labeler_of(context, 0, program), verifiers=(), metric=None)
    config = LabelConfig(temperature=temperature, threads=context.callers, seed=context.config.seed + sample)
    show = progress_of(context, f"answering the labelled rows, try {sample + 1}")
    try:
        return answer_all([r.inputs for r in rows], labeler, blocks=[-1] * len(rows), config=config, progress=show)
    except StageEmpty:
        return []


def trusted_gold(context: Context, program: dspy.Module, gold: Sequence[Record]) -> list[Record]:
    """Return gold rows with the whole answer of a program that writes more than the labels hold.

    The teacher answers every gold row several times; of what it wrote, an answer that the metric accepts
    against the label is kept with its rationale and trace (rejection sampling). Rows that it never gets right
    are left out.
    """
    examples = context.split.gold

    def work() -> dict[str, Any]:
        found: list[dict[str, Any]] = []
        for sample in range(context.spend.tries):
            left = [i for i in range(len(gold)) if all(f["row"] != i for f in found)]
            if not left:
                break
            rows, temperature = [gold[i] for i in left], WARM if sample else 0.0
            answers = answers_to_gold(context, program, rows, sample=sample, temperature=temperature)
            for i, answer in zip(left, answers, strict=bool(answers)):
                made = dspy.Prediction(**answer.outputs)
                if answer.reason or likeness(context.task.metric, examples[i], made) < RIGHT:
                    continue
                found.append({"row": i, "rationale": answer.rationale, "calls": list(answer.calls)})
        return {"found": found}

    key = context.key("trusted gold", prompt_hash(program), *context.grounds)
    payload = context.run.stage("answer the labelled rows", key, work, show=False)
    records: list[Record] = [
        replace(gold[int(f["row"])], rationale=f["rationale"], calls=tuple(f["calls"])) for f in payload["found"]
    ]
    context.run.reporter.note(f"the teacher got {len(records)} of {len(gold)} labelled rows right")
    return records
