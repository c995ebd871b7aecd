"""Compile a program's prompt with DSPy's optimizers, and keep the result only where it helps on dev.

DSPy's optimizers print, draw progress bars, swallow every exception and leave models and candidates in the
program they return. Here they run in silence, a spent budget ends them at once, and what comes back is the
user's own program with new instructions and demonstrations: it is saved as JSON and loaded by plain DSPy.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUntypedBaseClass=false

from __future__ import annotations

import functools
import io
import logging
import math
import threading
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import dspy
import tqdm
from dspy.utils.callback import BaseCallback

from limbeck.compile.demos import fit_demo
from limbeck.compile.nearest import NearestDemos
from limbeck.compile.optimizers import MAX_ERRORS, THREADS, Job, Optimizer, built_in, for_effort
from limbeck.compile.split import Split
from limbeck.errors import BudgetExceeded, InputError
from limbeck.evaluate import SystemResult, run_system
from limbeck.stats import Paired, paired_bootstrap
from limbeck.task import Task

Effort = Literal["quick", "standard", "thorough"]
Progress = Callable[[str, int, int], None]
UNCOMPILED = "uncompiled"
_FLOOR = 0.01
_SETTLE_SECONDS = 120.0


@dataclass(frozen=True)
class Compiled:
    """The program to go on with, and how it came about.

    `optimizer` is the best candidate's name, also where it was not kept; scores are means on dev (nan where
    there are no dev rows) and `paired` compares candidate and uncompiled program there; `scores` holds
    every candidate. A dev score is the best of several and so flatters a little.
    """

    program: dspy.Module
    optimizer: str
    kept: bool
    baseline_score: float
    compiled_score: float
    paired: Paired | None = None
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    name: str
    program: dspy.Module
    result: SystemResult | None = None

    @property
    def score(self) -> float:
        scores = self.result.scores if self.result else ()
        return sum(scores) / len(scores) if scores else math.nan


def compile_program(
    task: Task,
    split: Split,
    lm: dspy.LM,
    *,
    optimizer: str | Optimizer | Sequence[Optimizer] | None = None,
    effort: Effort = "quick",
    seed: int = 0,
    adapter: Any = None,
    reflection_lm: dspy.LM | None = None,
    progress: Progress | None = None,
) -> Compiled:
    """Return the task's program compiled for `lm`, or uncompiled where no candidate beats it on dev.

    `optimizer` is one of `built_in()`'s names or an own `Optimizer`; several, or None for what the effort level
    holds, are tried in turn, and who refuses is noted with the reason. A tie keeps the uncompiled program, whose
    prompt is shorter. Without dev rows (one row a class) the first candidate is a fixed default, named so in the
    notes. `progress` gets what is measured, rows done and rows. Raises InputError for an unknown optimizer and one
    that refuses; BudgetExceeded and KeyboardInterrupt pass through; a candidate that fails is noted and left out.
    """
    job = Job(task, split, lm, reflection_lm, seed, THREADS)
    wanted, notes = _wanted(job, optimizer, effort)
    measure = _measurer(job, adapter, progress)
    if not split.dev:
        return _default(job, wanted, notes, adapter)
    baseline = _Candidate(UNCOMPILED, task.program, measure(UNCOMPILED, task.program))
    found: list[_Candidate] = []
    for one in wanted:
        try:
            program = clean(task.program, run_silently(one, job, adapter))
            found.append(_Candidate(one.name, program, measure(one.name, program)))
        except BudgetExceeded:
            raise
        except Exception as error:  # a search over a small model's writing can fail in many ways
            notes.append(f"{one.name} failed: {type(error).__name__}: {error}"[:300])
    return _chosen(job, baseline, found, notes)


def clean(original: dspy.Module, compiled: dspy.Module) -> dspy.Module:
    """Return a copy of `original` with the instructions and demonstrations of `compiled`, and nothing else.

    Models, candidate programs and statistics that optimizers attach stay behind, and so do fields of a
    demonstration that the signature does not name.
    """
    if isinstance(compiled, NearestDemos):
        return compiled
    copy, found = original.deepcopy(), dict(compiled.named_predictors())
    for name, predictor in cast(list[tuple[str, Any]], copy.named_predictors()):
        source: Any = found[name]
        demos = [fit_demo(demo, source.signature) for demo in source.demos]
        predictor.signature, predictor.lm = source.signature, None
        predictor.demos = [demo for demo in demos if demo is not None]
    return copy


def run_silently(optimizer: Optimizer, job: Job, adapter: Any) -> dspy.Module:
    """Run one optimizer without output; a spent budget ends it at the first refused call."""
    settings = {"lm": job.lm, "max_errors": MAX_ERRORS, "num_threads": job.threads}
    guard = _Guard()
    callbacks = [*(dspy.settings.get("callbacks") or []), guard]
    if adapter is not None:
        settings["adapter"] = adapter
    try:
        with dspy.context(callbacks=callbacks, **settings), _silence():
            return optimizer.run(job)
    except _Spent as spent:
        guard.settle()
        raise spent.error from None


class _Spent(BaseException):
    """Carries BudgetExceeded past DSPy's `except Exception`."""

    def __init__(self, error: BudgetExceeded) -> None:
        super().__init__(str(error))
        self.error = error


class _Guard(BaseCallback):
    """Turns a refused call into an exception that optimizers do not count as one more failed row.

    DSPy's thread pools go on with what is queued after an exception; here it ends before its first call.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._active = 0
        self._spent: BudgetExceeded | None = None

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Let no module begin once the budget is spent."""
        with self._changed:
            if self._spent is not None:
                raise _Spent(self._spent)
            self._active += 1

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Look at how a module ended."""
        with self._changed:
            self._active -= 1
            self._changed.notify_all()
        self.on_lm_end(call_id, None, exception)

    def on_lm_end(self, call_id: str, outputs: dict[str, Any] | None, exception: BaseException | None = None) -> None:
        """Look at how a model's call ended."""
        if isinstance(exception, BudgetExceeded):
            self._spent = exception
            raise _Spent(exception)

    def settle(self) -> None:
        """Wait for the calls in flight: what they cost is recorded when they end."""
        with self._changed:
            self._changed.wait_for(lambda: not self._active, timeout=_SETTLE_SECONDS)


class _Logged(io.TextIOBase):
    """What optimizers print, as debug messages."""

    def write(self, text: str) -> int:
        """Log a printed text."""
        if text.strip():
            logging.getLogger(__name__).debug("%s", text.rstrip())
        return len(text)


@contextmanager
def _silence() -> Generator[None]:
    """Keep prints, progress bars, log lines and warnings of optimizers off the terminal."""
    loggers = [logging.getLogger(name) for name in ("dspy", "optuna")]
    levels = [logger.level for logger in loggers]
    bar: Any = tqdm.tqdm
    draw = bar.__init__
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    # DSPy asks for its bars without a switch; tqdm has none for all of them.
    bar.__init__ = functools.partialmethod(draw, disable=True)
    try:
        with redirect_stdout(cast(Any, _Logged())), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        bar.__init__ = draw
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _wanted(
    job: Job, optimizer: str | Optimizer | Sequence[Optimizer] | None, effort: Effort
) -> tuple[tuple[Optimizer, ...], list[str]]:
    if optimizer is None or (isinstance(optimizer, Sequence) and not isinstance(optimizer, str)):
        tried = for_effort(effort, job.task) if optimizer is None else optimizer
        refusals = {one.name: one.refuse(job.task, job.split, job.reflection_lm) for one in tried}
        notes = [f"{name} was left out: {reason}" for name, reason in refusals.items() if reason]
        return tuple(one for one in tried if not refusals[one.name]), notes
    if isinstance(optimizer, str):
        known = built_in()
        if optimizer not in known:
            raise InputError(f"unknown optimizer {optimizer!r}", valid=", ".join(known))
        optimizer = known[optimizer]
    reason = optimizer.refuse(job.task, job.split, job.reflection_lm)
    if reason:
        usable = [n for n, o in built_in().items() if not o.refuse(job.task, job.split, job.reflection_lm)]
        raise InputError(f"{optimizer.name} cannot run: {reason}", valid=", ".join(usable))
    return (optimizer,), []


def _measurer(job: Job, adapter: Any, progress: Progress | None) -> Callable[[str, dspy.Module], SystemResult]:
    def measure(name: str, program: dspy.Module) -> SystemResult:
        told = None if progress is None else functools.partial(progress, name)
        return run_system(
            name,
            program,
            job.lm,
            job.split.dev,
            job.task.metric,
            adapter=adapter,
            threads=job.threads,
            latency_rows=0,
            progress=told,
        )

    return measure


def _default(job: Job, wanted: Sequence[Optimizer], notes: list[str], adapter: Any) -> Compiled:
    if not wanted:
        return Compiled(job.task.program.deepcopy(), UNCOMPILED, False, math.nan, math.nan, notes=tuple(notes))
    program = clean(job.task.program, run_silently(wanted[0], job, adapter))
    note = f"{wanted[0].name} is a fixed default: there are no dev rows to compare on"
    return Compiled(program, wanted[0].name, True, math.nan, math.nan, notes=(*notes, note))


def _chosen(job: Job, baseline: _Candidate, found: Sequence[_Candidate], notes: list[str]) -> Compiled:
    scores = {one.name: one.score for one in (baseline, *found)}
    if not found:
        return Compiled(
            job.task.program.deepcopy(),
            UNCOMPILED,
            False,
            baseline.score,
            baseline.score,
            scores=scores,
            notes=tuple(notes),
        )
    best = max(found, key=lambda one: (one.score, _certainty(one, job), -_demo_length(one)))
    kept = best.score > baseline.score
    if len(found) > 1:
        rows = len(job.split.dev)
        notes.append(f"the best of {len(found)} candidates on {rows} dev rows: its score there flatters")
    return Compiled(
        best.program if kept else job.task.program.deepcopy(),
        best.name,
        kept,
        baseline.score,
        best.score,
        paired_bootstrap(_rows(best), _rows(baseline), job.seed),
        scores,
        tuple(notes),
    )


def _rows(candidate: _Candidate) -> tuple[float, ...]:
    return candidate.result.scores if candidate.result else ()


def _certainty(candidate: _Candidate, job: Job) -> float:
    """The mean log-probability of the gold labels, which tells apart candidates of equal score; 0 without."""
    name = job.task.label_field
    if not name or candidate.result is None:
        return 0.0
    pairs = zip(job.split.dev, candidate.result.probabilities, strict=True)
    found = [(row or {}).get(name, {}).get(job.task.label_of(example), 0.0) for example, row in pairs]
    return sum(math.log(max(_FLOOR, p)) for p in found) / len(found)


def _demo_length(candidate: _Candidate) -> int:
    demos = [demo for p in cast(list[Any], candidate.program.predictors()) for demo in p.demos]
    return sum(len(str(dict(demo))) for demo in demos)
