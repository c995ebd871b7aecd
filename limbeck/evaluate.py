"""Run one program under one model on the test rows: the same for all, failures counted, latency unmixed.

An answer that cannot be read scores 0 and is counted. The first rows run one after another, so that a row's
time is its own; the others run on threads, so that a local model answers them in batches. Tokens, price and
milliseconds come from the calls' ledger rows, also where the ledger answered: measuring twice costs nothing.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false, reportMissingTypeStubs=false

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from limbeck.comparison import SystemResult as SystemResult
from limbeck.comparison import compare as compare
from limbeck.errors import BudgetExceeded, InputError, ModelError
from limbeck.ledger import CallRow
from limbeck.metrics import score_of
from limbeck.models import ScoredField, label_probabilities, probability_source, recorded_scores

LATENCY_ROWS = 10
# A model that writes slowly alone is known well enough after this many seconds of it.
LATENCY_SECONDS = 12.0
_SHOWN_ERROR = 300  # characters of an error kept per row
LOST_SHARE = 0.1  # share of rows lost to a failing server above which a score would be the server's, not the model's

Progress = Callable[[int, int], None]
Probabilities = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class _Measured:
    score: float
    prediction: Mapping[str, Any]
    probabilities: Probabilities | None
    source: str
    ms: float
    calls: Sequence[CallRow] = field(default_factory=list[CallRow])
    error: str = ""
    cause: type[Exception] | None = None


class _Row(dspy.Module):
    """One row's run of a program; its own history holds exactly this row's calls."""

    def __init__(self, program: dspy.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, **inputs: Any) -> Any:
        """Run the program."""
        return self.program(**inputs)

    def calls(self) -> list[CallRow]:
        """The ledger rows of the calls made, with or without a ledger."""
        return [row for entry in self.history for row in entry.get("calls", ())]


def run_system(
    name: str,
    program: dspy.Module,
    lm: dspy.LM,
    examples: Sequence[dspy.Example],
    metric: Callable[..., Any],
    *,
    adapter: Any = None,
    threads: int = 16,
    latency_rows: int = LATENCY_ROWS,
    progress: Progress | None = None,
) -> SystemResult:
    """Score a program, run by `lm`, on every example.

    One row without a usable answer scores 0 and never raises. ModelError is raised instead of a score that
    would measure something else: where over a tenth of the rows got no answer from the server, or every row
    failed for another reason than an answer that cannot be read. BudgetExceeded and KeyboardInterrupt pass
    through. `progress` gets (rows done, rows). With `latency_rows=0` no row runs alone and `p50_ms` is 0; the
    first of several is not part of it.
    """
    if not examples:
        raise InputError(f"no test rows to measure {name} on")
    copy = program.deepcopy()
    copy.set_lm(lm)
    settings: dict[str, Any] = {"lm": lm, "disable_history": False, "trace": None}
    if adapter is not None:
        settings["adapter"] = adapter

    def measure(example: dspy.Example) -> _Measured:
        with dspy.context(**settings):
            return _measure(copy, example, metric)

    rows: dict[int, _Measured] = {}
    alone, spent = 0, 0.0
    # By the rows' own times, so that a resumed run, which has them from the ledger, counts the same rows. The first
    # one pays for the shared prompt and is no row like the others.
    while alone < min(latency_rows, len(examples)) and spent < LATENCY_SECONDS:
        rows[alone] = measure(examples[alone])
        spent += rows[alone].ms / 1000 if alone else 0.0
        alone += 1
        if progress:
            progress(len(rows), len(examples))
    for i, row in _concurrently(measure, examples, alone, threads):
        rows[i] = row
        if progress:
            progress(len(rows), len(examples))
    measured = [rows[i] for i in range(len(examples))]
    _refuse_lost_rows(name, measured)
    return _result(name, measured, alone)


def score_predictions(
    name: str,
    predictions: Sequence[Mapping[str, Any]],
    examples: Sequence[dspy.Example],
    metric: Callable[..., Any],
    *,
    probabilities: Sequence[Probabilities | None] | None = None,
    source: str = "",
    p50_ms: float = 0.0,
) -> SystemResult:
    """Score predictions that no language model made, such as a probe's, on the same rows."""
    if len(predictions) != len(examples) or not examples:
        raise InputError(f"{name} has {len(predictions)} predictions for {len(examples)} test rows")
    given = probabilities or [None] * len(examples)
    pairs = zip(examples, predictions, strict=True)
    return SystemResult(
        name=name,
        scores=tuple(score_of(metric(example, dspy.Prediction(**values))) for example, values in pairs),
        predictions=tuple(dict(p) for p in predictions),
        probabilities=tuple(given),
        probability_source=source,
        p50_ms=p50_ms,
        errors=("",) * len(examples),
    )


def _concurrently(
    measure: Callable[[dspy.Example], _Measured], examples: Sequence[dspy.Example], start: int, threads: int
) -> Any:
    """Yield (index, row) as rows finish; the first error drops the rows that have not begun."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        jobs = {pool.submit(measure, examples[i]): i for i in range(start, len(examples))}
        try:
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _measure(program: dspy.Module, example: dspy.Example, metric: Callable[..., Any]) -> _Measured:
    row, started = _Row(program), time.monotonic()
    with recorded_scores() as seen:
        try:
            prediction = row(**example.inputs())
            score = score_of(metric(example, prediction))
        except BudgetExceeded:
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {error}"[:_SHOWN_ERROR]
            return _Measured(0.0, {}, None, "", _since(started), row.calls(), text, type(error))
    calls = row.calls()
    # The calls' own time where there are calls: an answer from the ledger took as long when it was made.
    ms = sum(call.ms for call in calls) if calls else _since(started)
    values = {key: prediction[key] for key in prediction.keys()}  # noqa: SIM118 - dspy hides its own keys here
    probabilities, source = _probabilities(prediction, seen)
    return _Measured(score, values, probabilities or None, source, ms, calls)


def _probabilities(prediction: dspy.Prediction, seen: Sequence[ScoredField]) -> tuple[Probabilities, str]:
    """The prediction's own label probabilities, or those scored on the way where a module built it anew."""
    own = label_probabilities(prediction)
    if own:
        return own, probability_source(prediction)
    final = [s for s in seen if s.name in prediction]
    return {s.name: dict(s.probabilities) for s in final}, ", ".join(dict.fromkeys(s.source for s in final))


def _since(started: float) -> float:
    return 1000 * (time.monotonic() - started)


def _refuse_lost_rows(name: str, rows: Sequence[_Measured]) -> None:
    lost = [row for row in rows if row.cause and issubclass(row.cause, ModelError)]
    if len(lost) > LOST_SHARE * len(rows):
        raise ModelError(
            f"{len(lost)} of {len(rows)} rows of {name} got no answer, the first with: {lost[0].error}",
            hint="run the same command again later: every finished call is kept",
        )
    causes = {row.cause for row in rows}
    if not any(cause is None or issubclass(cause, AdapterParseError) for cause in causes):
        raise ModelError(f"every row of {name} failed, the first with: {rows[0].error}")


def _result(name: str, rows: Sequence[_Measured], alone: int) -> SystemResult:
    calls = [call for row in rows for call in row.calls]
    prices = [call.usd for call in calls]
    usd = None if None in prices else sum(p or 0.0 for p in prices)
    return SystemResult(
        name=name,
        scores=tuple(row.score for row in rows),
        predictions=tuple(row.prediction for row in rows),
        probabilities=tuple(row.probabilities for row in rows),
        probability_source=", ".join(dict.fromkeys(row.source for row in rows if row.source)),
        p50_ms=statistics.median(row.ms for row in rows[min(1, alone - 1) : alone]) if alone else 0.0,
        tokens_in=sum(call.tokens_in for call in calls),
        tokens_out=sum(call.tokens_out for call in calls),
        usd_per_1k=None if usd is None else 1000 * usd / len(rows),
        errors=tuple(row.error for row in rows),
    )
