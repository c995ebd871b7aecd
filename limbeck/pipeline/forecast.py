"""What a run would take, before the first call: calls, tokens, dollars and minutes.

Counts follow from the rows and the effort level; tokens from the rows' lengths at four characters a token.
Minutes for a local model follow from its size and a bf16 matrix product's speed on two cores (about 250 GFLOP/s);
for a server they are left out. All of it is a forecast: real answers are shorter or longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from limbeck.compile.dedup import record_text
from limbeck.compile.describe import is_opaque
from limbeck.compile.optimizers import INSTRUCTING, Optimizer, RandomSearch, built_in, for_effort
from limbeck.compile.split import make_split
from limbeck.models.kinds import is_local
from limbeck.pipeline.config import Effort, RunConfig, check
from limbeck.pipeline.students import StudentPlan, prompt_text
from limbeck.task import Task

_FLOPS = 250e9
_PARAMETERS_EMBEDDED = 135e6
_BYTES_PER_PARAMETER_GGUF = 0.63
_TEXTS_PER_CALL = 5
_CHARACTERS_PER_TOKEN = 4
# Tokens of a turn's frame, of a rationale, of a prompt that asks for new texts.
_TURN, _RATIONALE, _WRITING = 16, 80, 300
# A forward and backward pass of LoRA training costs about four times a forward pass.
_TRAIN_FACTOR = 4.0


@dataclass(frozen=True)
class Line:
    """One stage of the forecast; tokens are the teacher's, minutes are None where nothing local runs."""

    stage: str
    calls: int
    tokens_in: int
    tokens_out: int
    minutes: float | None


@dataclass(frozen=True)
class Forecast:
    """The stages' lines, dollars where the teacher's price is known, and what the rows give cause to warn of."""

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


def local_parameters(name: str) -> float | None:
    """Return a local model's parameters by its file's size, None for a server's."""
    kind, _, rest = name.partition(":")
    if name == "embedded":
        return _PARAMETERS_EMBEDDED
    path = Path(rest).expanduser()
    if kind in ("gguf", "hf") and path.is_file():
        return path.stat().st_size / _BYTES_PER_PARAMETER_GGUF
    if kind == "hf" and path.is_dir():
        return sum(f.stat().st_size for f in path.glob("*.safetensors")) / 2
    return None


def _minutes(tokens: float, parameters: float | None, factor: float = 1.0) -> float | None:
    return None if parameters is None else tokens * factor * 2 * parameters / _FLOPS / 60


def forecast(config: RunConfig, task: Task | None = None) -> Forecast:
    """Return what the run would take; reads the rows and calls nothing."""
    from limbeck.models import CompactAdapter
    from limbeck.models.names import check_name
    from limbeck.models.openai_engine import gives_probabilities
    from limbeck.pipeline.run import check_task, read_task
    from limbeck.terms import resolve

    if task is None:
        check(config)
        task = read_task(config)
    check_task(config, task)
    for name in filter(None, (config.teacher, config.student, config.reflection)):
        check_name(name, config.api_base or None)
    spend = config.spend
    limit = spend.test_rows if config.test_rows is None else config.test_rows
    split = make_split(task, seed=config.seed, n_folds=spend.folds, max_test=limit or None)
    plan = StudentPlan(config.student, CompactAdapter(), task)
    closed, kind = plan.closed, (plan.closed, plan.writes_more)
    size = _sizes(plan, split.gold, spend)
    gold, test = len(split.gold), len(split.test)
    limit_pool = spend.rows_to_label(*kind) if config.pool_rows is None else config.pool_rows
    pool = min(len(task.unlabeled), limit_pool)
    written = config.synthetic_rows if config.synthetic_rows is not None else max(0, spend.rows_to_have(*kind) - pool)
    samples = 1 if closed and (is_local(config.teacher) or gives_probabilities(config.teacher)) else spend.samples
    answers = (pool + written) * samples
    if closed and split.n_folds and spend.demo_tokens / size.row > gold - gold // split.n_folds:
        answers *= 2  # once blind to each fold, once with all demonstrations
    texts = -(-written // _TEXTS_PER_CALL)
    checked = gold * samples if plan.writes_more else 0
    teacher, student = local_parameters(config.teacher), local_parameters(config.student)
    tuned = gold * spend.passes(closed)[0] * len(spend.learning_rates) * 2 * size.row
    fits = len(spend.gold_weights) * len(spend.demos) + 1
    distilled = (gold + pool + written) * spend.passes(closed)[1] * fits * size.row

    def line(stage: str, calls: Sequence[_Calls], trained: float = 0.0) -> Line:
        computed = sum(c.count * (c.row + c.out) + c.prompts * c.shared for c in calls)
        parts = [_minutes(computed, teacher), _minutes(trained, student, _TRAIN_FACTOR)]
        known = [p for p in parts if p is not None]
        return Line(
            stage,
            sum(c.count for c in calls),
            int(sum(c.count * (c.row + c.shared) for c in calls)),
            int(sum(c.count * c.out for c in calls)),
            sum(known) if known else None,
        )

    folds = max(1, split.n_folds)
    bare = _Calls(gold, size.row, size.prompt, size.answer)
    shown = _Calls(gold, size.row, size.prompt + size.demos, size.answer, folds)
    lines = (
        line("compile", [bare, shown] * (2 if _describes(config, task) else 1)),
        line("labels alone", [replace(shown, count=checked)], tuned),
        line(
            "synthesize", [replace(shown, count=answers), _Calls(texts, 0, _WRITING, _TEXTS_PER_CALL * size.row, texts)]
        ),
        line("finetune", [], distilled),
        line("evaluate", [replace(bare, count=test), replace(shown, count=test, prompts=1)], test * size.row),
    )
    searched = [one.name for one in _searches(config, task, closed)] + [f"--program {name}" for name in config.program]
    left_out = [f"not-counted: the calls of {', '.join(searched)}, often several hundred"] if searched else []
    terms = [resolve(name, config.api_base) for name in (config.teacher, config.reflection) if name]
    told = [one.told(config.accept_terms.strip()) for one in terms if one.verdict != "allowed"]
    return Forecast(lines, _usd(config.teacher, lines), (*task.warnings, *split.notes, *told, *left_out))


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


def _usd(teacher: str, lines: tuple[Line, ...]) -> float | None:
    from limbeck.models import price_of

    if is_local(teacher):
        return 0.0
    price = price_of(teacher)
    if price is None:
        return None
    return sum(line.tokens_in * price.usd_in + line.tokens_out * price.usd_out for line in lines)


def render(plan: Forecast) -> Table:
    """Return the forecast as a table."""
    table = Table(title="forecast (nothing was called)", title_justify="left")
    for name in ("stage", "teacher calls", "tokens in", "tokens out", "minutes"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for line in (*plan.lines, plan.total):
        minutes = "" if line.minutes is None else f"{line.minutes:.0f}"
        table.add_row(line.stage, f"{line.calls:,}", f"{line.tokens_in:,}", f"{line.tokens_out:,}", minutes)
    table.caption = "teacher: price not known" if plan.usd is None else f"teacher: ${plan.usd:.2f}"
    return table
