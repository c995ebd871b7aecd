"""What a run would take, before the first call: calls, tokens, dollars and minutes.

Counts follow from the rows, the effort level and what each method of writing rows says of its cost; tokens from the
rows' lengths at four characters a token. Further rounds, a judge's calls and rationales are counted at their most.
Minutes for a local model follow from its size and a bf16 matrix product's speed on two cores (about 250 GFLOP/s);
for a server they are left out. All of it is a forecast: real answers are shorter or longer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rich.table import Table

from limbeck.compile.dedup import record_text
from limbeck.compile.describe import asked_labels, is_opaque
from limbeck.compile.optimizers import INSTRUCTING, Optimizer, RandomSearch, built_in, for_effort
from limbeck.compile.split import make_split
from limbeck.compile.synthesizers import cost_of, load_method, portions_of
from limbeck.models.kinds import is_local
from limbeck.pipeline.config import WORDS, Effort, RunConfig, check
from limbeck.pipeline.dataquality import rules_of
from limbeck.pipeline.parameters import local_parameters
from limbeck.pipeline.students import StudentPlan, confidences, gold_recipes, prompt_text, prompts_tried
from limbeck.task import Task

_FLOPS = 250e9
_CHARACTERS_PER_TOKEN = 4
# Tokens of a turn's frame, of a rationale, of a prompt that asks for new texts, a judgement or a description.
_TURN, _RATIONALE, _WRITING, _JUDGING, _DESCRIBING = 16, 80, 300, 120, 200
# Of a passage of documents: 200 words.
_PASSAGE = 270
# A forward and backward pass of LoRA training costs about four times a forward pass.
_TRAIN_FACTOR = 4.0


@dataclass(frozen=True)
class Line:
    """One stage of the forecast: its calls of `model`, with minutes None where nothing local runs."""

    stage: str
    calls: int
    tokens_in: int
    tokens_out: int
    minutes: float | None
    model: str = ""


@dataclass(frozen=True)
class Forecast:
    """The stages' lines, dollars where the models' prices are known, and what the rows give cause to warn of."""

    lines: tuple[Line, ...]
    usd: float | None
    warnings: tuple[str, ...] = ()

    @property
    def total(self) -> Line:
        """The sum of all lines."""
        minutes = [line.minutes for line in self.lines if line.minutes is not None]
        return Line(
            "total",
            sum(line.calls for line in self.lines),
            sum(line.tokens_in for line in self.lines),
            sum(line.tokens_out for line in self.lines),
            sum(minutes) if minutes else None,
        )


def _minutes(tokens: float, parameters: float | None, factor: float = 1.0) -> float | None:
    return None if parameters is None else tokens * factor * 2 * parameters / _FLOPS / 60


def forecast(config: RunConfig, task: Task | None = None) -> Forecast:
    """Return what the run would take; reads the rows and calls nothing."""
    from limbeck.models.names import check_name
    from limbeck.pipeline.prepare import check_task, read_task

    if task is None:
        check(config)
        task = read_task(config)
    check_task(config, task)
    for name in filter(None, (config.teacher, config.student, config.reflection, config.judge_model)):
        check_name(name, config.api_base or None)
    counts = _count(config, task)
    lines = _lines(config, task, counts)
    warnings = (*task.warnings, *counts.notes, *_terms(config), *_left_out(config, task, counts.plan.closed))
    return Forecast(lines, _usd(lines), warnings)


@dataclass(frozen=True)
class _Counts:
    """Rows of a run: labelled and test ones, of the pool, written in the first round and in all later ones.

    `samples` is how often a row is answered; `notes` is what the split gives cause to say.
    """

    plan: StudentPlan
    size: _Sizes
    gold: int
    test: int
    pool: int
    written: int
    again: int
    samples: int
    folds: int
    notes: tuple[str, ...]

    @property
    def judged(self) -> int:
        """Rows that are new: all but the labelled ones."""
        return self.pool + self.written + self.again


def _count(config: RunConfig, task: Task) -> _Counts:
    from limbeck.models import CompactAdapter

    spend = config.spend
    plan = StudentPlan(config.student, CompactAdapter(), task)
    limit = spend.rows_to_test(plan.writes_more) if config.test_rows is None else config.test_rows
    split = make_split(task, seed=config.seed, n_folds=spend.folds, max_test=limit or None)
    size, gold = _sizes(plan, split.gold, spend), len(split.gold)
    most = spend.rows_to_label(plan.closed, plan.writes_more) if config.pool_rows is None else config.pool_rows
    pool = min(len(task.unlabeled), most)
    given = 0 if config.weak else config.synthetic_rows
    wanted = spend.rows_to_have(plan.closed, plan.writes_more) if given is None else given
    samples = 1 if plan.closed and _is_scored(config.teacher) else spend.samples
    if plan.closed and split.n_folds and spend.demo_tokens / size.row > gold - gold // split.n_folds:
        samples *= 2  # once blind to each fold, once with all demonstrations
    return _Counts(
        plan,
        size,
        gold,
        len(split.test),
        pool,
        written=max(0, wanted - pool) if given is None else wanted,
        again=-(-wanted // 2) * (config.rounds - 1),
        samples=samples,
        folds=max(1, split.n_folds),
        notes=tuple(split.notes),
    )


def _lines(config: RunConfig, task: Task, n: _Counts) -> tuple[Line, ...]:
    """Return every stage's line."""
    if config.weak:
        return _weak_lines(config, n)
    size, closed = n.size, n.plan.closed
    bare = _Calls(n.gold, size.row, size.prompt, size.answer)
    shown = _Calls(n.gold, size.row, size.prompt + size.demos, size.answer, n.folds)
    tuned, distilled, redone = _trained(config, n)
    line = partial(_line, config)

    def writing(rows: int, real: int = 0) -> list[_Calls]:
        made, passage = _writing(config, rows, n.gold, closed), _PASSAGE if config.ground else 0
        texts = _Calls(made.calls, passage, _WRITING, made.texts * size.row, made.calls)
        row = size.row + (0 if closed else 3 * passage)
        return [replace(shown, row=row, count=round((real + made.answers) * n.samples)), texts]

    prompts = [bare, shown]
    if _describes(config, task):
        prompts *= 2
        # Of each label on all rows, and for each fold on the others.
        told = 0 if task.label_descriptions else len(asked_labels(task.labels)) * (1 + n.folds)
        prompts.append(_Calls(told, 0, _DESCRIBING, size.row, told))
    found = [
        line("compile", prompts),
        line("labels alone", [replace(shown, count=n.gold * config.spend.tries * n.plan.writes_more)], tuned),
        line("synthesize", writing(n.written, n.pool)),
    ]
    if config.judge:
        found.append(line("answers to judge", [replace(bare, count=n.gold * config.spend.samples)]))
        found.append(line("judge", [_judging(config, size, n.gold + n.judged)], model=config.judge_model))
    if rules_of(config).toxic:
        looking = _Calls(n.gold + n.written + n.again, size.row + size.answer, _JUDGING, 1)
        found.append(line("toxic rows", [looking], model=config.judge_model if config.judge else config.teacher))
    if config.objectives.rationales and not n.plan.writes_more:
        found.append(line("rationales", [_rationales(size, n.gold + n.judged)]))
    found.append(line("finetune", [], distilled))
    if config.rounds > 1:
        found.append(line(f"rounds 2 to {config.rounds}, at most", writing(n.again), redone))
    tested = [replace(bare, count=n.test), replace(shown, count=n.test, prompts=1)]
    return (*found, line("evaluate", tested, n.test * size.row))


def _weak_lines(config: RunConfig, n: _Counts) -> tuple[Line, ...]:
    """Return the lines of a run in which a weak model labels: nothing is asked, everything is fitted here."""
    tuned, distilled, _ = _trained(config, n)
    own = 0.0 if config.weak == WORDS else local_parameters(config.weak)
    weak = replace(config, student=config.weak)
    gold_passes, _ = config.spend.passes(n.plan.closed, n.plan.writes_more)
    fitted = n.gold * gold_passes * len(gold_recipes(weak, n.plan)) * 2 * n.size.row
    student = local_parameters(config.student)
    minutes = {
        "labels alone": _minutes(tuned, student, _TRAIN_FACTOR),
        "weak labels": _minutes(fitted * _TRAIN_FACTOR + 2 * n.pool * n.size.row, own),
        "finetune": _minutes(distilled, student, _TRAIN_FACTOR),
        "evaluate": _minutes((n.gold + n.test * 3) * n.size.row, student),
    }
    return tuple(Line(stage, 0, 0, 0, found, config.student) for stage, found in minutes.items())


def _trained(config: RunConfig, n: _Counts) -> tuple[float, float, float]:
    """Return the tokens that are trained on: the labels alone, the student, and its further rounds."""
    gold_passes, passes = config.spend.passes(n.plan.closed, n.plan.writes_more)
    fits = len(config.spend.gold_weights) * len(prompts_tried(config)) * len(confidences(config)) + 1
    rows = n.gold + n.pool + n.written
    tuned = n.gold * gold_passes * len(gold_recipes(config, n.plan)) * 2
    # Each further round fits a student on all rows so far.
    redone = (rows + n.again) * passes * (fits - 1) * (config.rounds - 1)
    return tuned * n.size.row, rows * passes * fits * n.size.row, redone * n.size.row


def _line(config: RunConfig, stage: str, calls: Sequence[_Calls], trained: float = 0.0, *, model: str = "") -> Line:
    """Return a stage's line: calls of a model (the teacher without one), and tokens that the student is trained on."""
    asked = model or config.teacher
    computed = sum(c.count * (c.row + c.out) + c.prompts * c.shared for c in calls)
    student = local_parameters(config.student)
    parts = [_minutes(computed, local_parameters(asked)), _minutes(trained, student, _TRAIN_FACTOR)]
    known = [p for p in parts if p is not None]
    return Line(
        stage,
        sum(c.count for c in calls),
        int(sum(c.count * (c.row + c.shared) for c in calls)),
        int(sum(c.count * c.out for c in calls)),
        sum(known) if known else None,
        asked,
    )


def _terms(config: RunConfig) -> list[str]:
    """Return what the terms of the models say where they do not simply allow it."""
    from limbeck.terms import resolve

    terms = [resolve(name, config.api_base) for name in config.models_asked().values() if name]
    return [one.told(config.accept_terms.strip()) for one in terms if one.verdict != "allowed"]


def _left_out(config: RunConfig, task: Task, closed: bool) -> list[str]:
    """Return what no one can count beforehand."""
    optimizers = [] if config.weak else _searches(config, task, closed)
    searched = [one.name for one in optimizers] + [f"--program {name}" for name in config.program]
    told = [f"not-counted: the calls of {', '.join(searched)}, often several hundred"] if searched else []
    pairs = ["not-counted: training on preference pairs, of which there may be none"] if config.objectives.beta else []
    return told + pairs


def _describes(config: RunConfig, task: Task) -> bool:
    """Return whether prompts with label descriptions are tried as well."""
    return bool(task.labels) and (
        bool(task.label_descriptions) or config.effort != "quick" or any(map(is_opaque, task.labels))
    )


def _searches(config: RunConfig, task: Task, closed: bool) -> list[Optimizer]:
    """Return the optimizers whose calls no one can count beforehand."""
    tried = [built_in()[config.optimizer]] if config.optimizer else list(for_effort(config.effort, task))
    return [one for one in tried if one.name in INSTRUCTING or (one.name == RandomSearch.name and not closed)]


@dataclass(frozen=True)
class _Calls:
    """Calls of one kind: tokens of a call's own row, of the prompt it shares, of its answer.

    Each call is billed its whole prompt; local weights compute `prompts` shared ones and every row.
    """

    count: int
    row: float
    shared: float
    out: float
    prompts: int = 1


@dataclass(frozen=True)
class _Sizes:
    """Tokens of an average row, of the prompt without demonstrations, of the demonstrations, of an answer."""

    row: float
    prompt: float
    demos: float
    answer: float


def _sizes(plan: StudentPlan, rows: Sequence[Any], spend: Effort) -> _Sizes:
    def mean_tokens(texts: Sequence[str]) -> float:
        return sum(map(len, texts)) / max(1, len(texts)) / _CHARACTERS_PER_TOKEN

    row = mean_tokens([record_text(e.inputs()) for e in rows]) + _TURN
    label = mean_tokens([str(dict(e.labels())) for e in rows])
    answer = 1.0 if plan.closed else label + (_RATIONALE if plan.writes_more else 0)
    demo = row + (label if plan.closed else answer)
    return _Sizes(row, mean_tokens([prompt_text(plan)]), min(spend.demo_tokens, len(rows) * demo), answer)


def _is_scored(model: str) -> bool:
    from limbeck.models.openai_engine import gives_probabilities

    return is_local(model) or gives_probabilities(model)


@dataclass(frozen=True)
class _Writing:
    """What writing rows takes: calls that write, the texts of each, and inputs that are answered."""

    calls: int = 0
    texts: float = 0.0
    answers: float = 0.0


def _writing(config: RunConfig, wanted: int, gold: int, closed: bool) -> _Writing:
    """Return what the run's methods take for so many rows; in a closed task every row is read back once at least."""
    calls = rows_of_calls = answers = 0.0
    for portion in portions_of(config.method, closed) if wanted else ():
        given, part, last = gold, max(1, round(wanted * portion.share)), 0.0
        for name in portion.chain:
            cost = cost_of(load_method(name))
            given = min(part, given) if cost.each else part
            calls, last = calls + cost.calls * given, cost.answers
            rows_of_calls, answers = rows_of_calls + max(1.0, cost.calls) * given, answers + last * given
        answers += max(0.0, 1.0 - last) * given if closed else 0.0
    return _Writing(math.ceil(calls), rows_of_calls / calls if calls else 0.0, answers)


def _judging(config: RunConfig, size: _Sizes, rows: int) -> _Calls:
    """Return the judge's calls for so many rows; where it gives no probabilities its answers are counted as votes."""
    votes = 1 if _is_scored(config.judge_model) else config.spend.samples
    return _Calls(rows * votes, size.row + size.answer, _JUDGING, 1)


def _rationales(size: _Sizes, rows: int) -> _Calls:
    """Return the calls for the rationales of so many rows, one each that is told the answer."""
    return _Calls(rows, size.row + size.answer, size.prompt, _RATIONALE + size.answer)


def _usd(lines: tuple[Line, ...]) -> float | None:
    from limbeck.models import price_of

    total = 0.0
    for line in lines:
        price = None if is_local(line.model) else price_of(line.model)
        if price is not None:
            total += line.tokens_in * price.usd_in + line.tokens_out * price.usd_out
        elif line.calls and not is_local(line.model):
            return None
    return total


def render(plan: Forecast) -> Table:
    """Return the forecast as a table."""
    table = Table(title="forecast (nothing was called)", title_justify="left")
    for name in ("stage", "calls", "tokens in", "tokens out", "minutes"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for line in (*plan.lines, plan.total):
        minutes = "" if line.minutes is None else f"{line.minutes:.0f}"
        table.add_row(line.stage, f"{line.calls:,}", f"{line.tokens_in:,}", f"{line.tokens_out:,}", minutes)
    table.caption = "price not known" if plan.usd is None else f"${plan.usd:.2f}"
    return table
