"""Before the first stage: the task read and checked, the models reached, the rows split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from limbeck.compile.backtranslate import METHOD as BACKTRANSLATION
from limbeck.compile.demos import draw_demos
from limbeck.compile.optimizers import INSTRUCTING, built_in
from limbeck.compile.retrieve import documents_of, drawer, finder, retriever_of
from limbeck.compile.source import source_of
from limbeck.compile.split import make_split
from limbeck.compile.synthesizers import parse_methods
from limbeck.errors import InputError
from limbeck.models import LM, CompactAdapter, connect
from limbeck.models.grounded import GroundedAdapter
from limbeck.models.kinds import LOCAL_NAMES, is_encoder
from limbeck.pipeline.config import RunConfig, label_shares
from limbeck.pipeline.consent import with_consent
from limbeck.pipeline.context import Context, weights_of
from limbeck.pipeline.data import check_writing
from limbeck.pipeline.dataquality import rules_of
from limbeck.pipeline.judging import check_judge
from limbeck.pipeline.programs import check_programs
from limbeck.pipeline.runfolder import RunFolder, content_hash
from limbeck.pipeline.students import StudentPlan, answer_tokens, prompt_text
from limbeck.pipeline.teacher import demo_budget, reflection
from limbeck.pipeline.ways import by_chains
from limbeck.pipeline.weak import check_weak
from limbeck.task import Task, check_context, task_from_labels
from limbeck.taskfile import load_task


def read_task(config: RunConfig) -> Task:
    """Return the task of a configuration: a labels file's, or a task.py's."""
    if config.task_file:
        return load_task(config.task_file)
    return task_from_labels(
        config.labels,
        output=list(config.output),
        inputs=list(config.inputs) or None,
        instructions=config.instructions or None,
        test=config.test or None,
        unlabeled=config.unlabeled or None,
        label_descriptions=config.descriptions or None,
        kind=cast(Any, config.kind or None),
    )


def check_task(config: RunConfig, task: Task) -> None:
    """Raise `InputError` for options that do not fit the task, before anything is spent."""
    known = built_in()
    if config.optimizer and config.optimizer not in known:
        raise InputError(f"unknown optimizer {config.optimizer!r}", valid=", ".join(known))
    closed = StudentPlan(config.student, None, task).closed
    check_writing(config, task, closed)
    check_programs(config, task)
    rules_of(config)
    check_judge(config, closed)
    if config.weak:
        check_weak(config, task, closed)
    if config.objectives.rationales:
        _check_reasons(config, task, closed)
    with_consent(task, allow_code=config.allow_code)
    if not closed and is_encoder(config.student):
        raise InputError(
            f"the student {config.student!r} is an encoder, and this task is not one closed set of labels answered by "
            "one predictor",
            valid=f"a task of labels, or a student that writes: {LOCAL_NAMES}",
        )
    if not closed:
        return
    if config.optimizer and config.optimizer not in INSTRUCTING:
        raise InputError(
            f"the optimizer {config.optimizer} changes demonstrations alone, and a task of labels draws its own for "
            "every block of rows",
            valid=", ".join(sorted(INSTRUCTING)),
            hint="leave --optimizer out: prompts with and without demonstrations are compared anyway",
        )
    shares = label_shares(config.label_distribution)
    if isinstance(shares, Mapping) and (unknown := sorted(set(shares) - set(task.labels))):
        raise InputError(
            f"--label-distribution names {', '.join(unknown[:5])}, which no labelled row has",
            valid=", ".join(task.labels[:20]),
        )


def _check_reasons(config: RunConfig, task: Task, closed: bool) -> None:
    """Raise InputError for a student that has no rationale to learn beside its answer."""
    why = ""
    if by_chains(task, config.method, closed):
        why = "a student that answers by chains has no other rationale"
    elif len(cast(Any, task.program).predictors()) > 1:
        why = "a program of several predictors has no rationale of its own"
    if why:
        raise InputError(f"--objective step-by-step: {why}", valid="sft, or sft,dpo")


def prepare(folder: RunFolder, task: Task) -> Context:
    """Return what the stages share: models, split, demonstrations and the student's plan; raises InputError."""
    config = folder.config
    for text in task.warnings:
        folder.warn(text)
    reasons = StudentPlan(config.student, None, task).writes_more
    limit = config.spend.rows_to_test(reasons) if config.test_rows is None else config.test_rows
    teacher = None if config.weak else _connect(folder, config.teacher, config.api_base or None, "teacher")
    student = _connect(folder, _for_transformers(config.student), None, "student")
    teacher = student if teacher is None else teacher  # where a weak model labels, no stage asks a teacher
    if config.reflection:
        reflection(folder)  # a name or a key that is wrong is found before anything is spent
    judge = _connect(folder, config.judge_model, config.judge_base, "judge") if config.judge else None
    task = _within_context(folder, task, (student, config.spend.demos[-1]), (teacher, not config.weak))
    split = make_split(task, seed=config.seed, n_folds=config.spend.folds, max_test=limit or None)
    for text in split.notes:
        folder.warn(text)
    k = demo_budget(split.gold, config.spend.demo_tokens)
    demos = draw_demos(split.gold, k, config.seed, labels=task.labels, output=task.label_field)
    tagged = any(BACKTRANSLATION in portion.chain for portion in parse_methods(config.method))
    plan = StudentPlan(config.student, CompactAdapter(), task, tuple(demos), tagged=tagged)
    plan = replace(plan, chains=by_chains(task, config.method, plan.closed))
    plan = replace(plan, max_tokens=answer_tokens(plan, split.gold, _counter(student)))
    folder.reporter.note(
        f"{task.name}: {task.kind}, {len(split.gold)} labels, {len(split.test)} test rows"
        + (f", {len(task.labels)} classes" if task.labels else "")
        + (f", {len(task.unlabeled)} unlabelled rows" if task.unlabeled else "")
    )
    models = (weights_of(teacher), weights_of(student))
    context = Context(folder, task, split, teacher, plan, dict(task.label_descriptions), models, judge)
    return _grounded(context) if config.ground else context


def _grounded(context: Context) -> Context:
    """Return the context with adapters that show the teacher passages of the documents."""
    documents = documents_of(source_of(context.task, context.split.gold), context.config.method_options())
    for text in documents.warnings:
        context.run.warn(text)
    retriever = retriever_of(documents.passages)
    context.run.reporter.note(f"grounded in {len(documents.passages)} passages of {context.config.documents}")
    return replace(
        context,
        writes_with=GroundedAdapter(drawer(retriever, documents.passages)),
        answers_with=GroundedAdapter(finder(retriever)),
        documents=content_hash(Path(context.config.documents)),
    )


def _connect(folder: RunFolder, name: str, api_base: str | None, role: str) -> LM:
    import warnings

    from limbeck.models import UnknownPriceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnknownPriceWarning)
        lm = connect(name, api_base=api_base, ledger=folder.ledger, budget=folder.budget, role=role, in_bulk=True)
    for warning in caught:
        folder.warn(str(warning.message))
    return lm


def _for_transformers(student: str) -> str:
    """Return the student's name as it is trained: a GGUF file's weights run in transformers."""
    kind, _, path = student.partition(":")
    return f"hf:{path}" if kind == "gguf" else student


def _counter(student: LM) -> Callable[[str], int]:
    """Return what counts a text's tokens; characters where the student's own tokenizer is not at hand."""
    engine: Any = getattr(student.backend, "engine", None)
    return len if engine is None else lambda text: engine.count_tokens((("user", text),))


def _within_context(folder: RunFolder, task: Task, *models: tuple[LM, bool]) -> Task:
    """Return the task without rows that a model's context does not hold beside its prompt.

    Models come with whether they are shown demonstrations. What a server or llama.cpp holds they say themselves, row
    by row.
    """
    for lm, shown in models:
        engine: Any = getattr(lm.backend, "engine", None)
        if engine is None:
            continue
        count = _counter(lm)
        plan = StudentPlan(folder.config.student, CompactAdapter(), task)
        reserve = count(prompt_text(plan)) + answer_tokens(plan, task.examples, count)
        reserve += folder.config.spend.demo_tokens if shown else 0
        seen = len(task.warnings)
        task = check_context(task, count, engine.context_tokens, reserve=reserve)
        for text in task.warnings[seen:]:
            folder.warn(text)
    return task
