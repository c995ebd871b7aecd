"""The evaluate stage: every system on the same test rows, and which program the run returns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import dspy
import numpy as np

from limbeck.compile.dedup import record_text
from limbeck.compile.label import prompt_hash
from limbeck.evaluate import LATENCY_ROWS, SystemResult, compare, run_system, score_predictions
from limbeck.models import LM, connect
from limbeck.pipeline.context import Context
from limbeck.pipeline.curation import linear_labelers
from limbeck.pipeline.learn import ADAPTERS, Tuned
from limbeck.pipeline.runfolder import content_hash
from limbeck.pipeline.students import CALLERS, Matrix, Recipe
from limbeck.stats import mean_gap

STUDENT, GOLD_ONLY, BASE = "student", "student_gold_only", "student_base"
# Rows that run alone for the latency where programs reason, the first not counted: each takes up to a minute.
_REASONED_ALONE = 2
_PROBES = {"probe": "linear_probe", "encoder": "encoder_probe"}


@dataclass(frozen=True)
class Choice:
    """The system that the run returns, chosen out of fold, and why in a clause."""

    system: str
    because: str
    scores: Mapping[str, float]


def choose(gold: Tuned, student: Tuned | None, base: Sequence[float], *, blind: bool = True) -> Choice:
    """Choose among the distilled, the gold-only and the untouched student by out-of-fold scores on gold rows.

    The distilled student stays unless another is better by more than one standard error of the paired
    difference: out of fold it was fitted on a part of its data only. It has to beat its prompted base. Without
    `blind` the teacher wrote its rows with the held-out rows in its prompt, and the reason says so.
    """
    scores = {BASE: float(np.mean(base)) if len(base) else float("nan")}
    if not gold.scores:
        fallback = STUDENT if student is not None else GOLD_ONLY
        return Choice(fallback, "a fixed default: there are no folds to choose on", {})
    scores[GOLD_ONLY] = gold.score
    best = GOLD_ONLY
    if student is not None:
        scores[STUDENT] = student.score
        gap, error = mean_gap(gold.scores, student.scores)
        best = GOLD_ONLY if gap > error else STUDENT
    trained = scores[best]
    if trained <= scores[BASE]:
        best = max(scores, key=lambda name: scores[name])
    if best == BASE:
        return Choice(BASE, f"out of fold it scored {scores[BASE]:.2f}, the trained one {trained:.2f}", scores)
    told = ", ".join(f"{name} {value:.2f}" for name, value in scores.items())
    if not blind and student is not None:
        told += " (the distilled one's flatters: the teacher's prompt showed the held-out rows)"
    return Choice(best, f"out of fold on the labels: {told}", scores)


def _lm(context: Context, adapter: str, role: str) -> LM:
    """Return the student's LM with an adapter of the run folder, on the run's ledger."""
    path = context.run.path / adapter if adapter else None
    return connect(
        context.config.student,
        adapter=path,
        ledger=context.run.ledger,
        budget=context.run.budget,
        role=role,
        in_bulk=True,
        max_tokens=context.plan.max_tokens,
    )


def _measure(
    context: Context, name: str, program: dspy.Module, lm: LM, threads: int, adapter: Any = None
) -> SystemResult:
    def progress(done: int, total: int) -> None:
        context.run.reporter.step(f"scoring {name}", done, total)

    return run_system(
        name,
        program,
        lm,
        context.split.test,
        context.task.metric,
        adapter=adapter or context.plan.adapter,
        threads=threads,
        progress=progress,
        latency_rows=_REASONED_ALONE if context.plan.writes_more else LATENCY_ROWS,
    )


def _probe_results(context: Context) -> dict[str, SystemResult]:
    """Return the linear baselines on the test rows, fitted on all gold rows."""
    task, found = context.task, dict[str, SystemResult]()
    texts = [record_text(context.task_inputs(e)) for e in context.split.test]
    for name, labeler in linear_labelers(context).items():
        matrix: Matrix = labeler.predict(texts)
        values = [{context.output: task.labels[int(row.argmax())]} for row in matrix]
        probabilities = [
            {context.output: {label: float(p) for label, p in zip(task.labels, row, strict=True)}} for row in matrix
        ]
        found[_PROBES[name]] = score_predictions(
            _PROBES[name],
            values,
            context.split.test,
            task.metric,
            probabilities=probabilities,
            source="exact",
            p50_ms=_alone_ms(labeler.predict, texts),
        )
    return found


def _alone_ms(predict: Callable[[Sequence[str]], Matrix], texts: Sequence[str]) -> float:
    """Return the median milliseconds of a row asked alone, as `run_system` measures language models."""
    times: list[float] = []
    for text in texts[:LATENCY_ROWS]:
        started = time.perf_counter()
        predict([text])
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def evaluate_systems(
    context: Context, bare: dspy.Module, compiled: dspy.Module, recipes: Mapping[str, Recipe]
) -> dict[str, SystemResult]:
    """Return every system's result on the test rows; each is a resumable piece of work of its own.

    `bare` is the task's program as the user gave it, `compiled` the teacher's, where there is one; `recipes` maps the
    trained students that exist to how they were trained.
    """
    plan = context.plan
    teachers = {"teacher": (bare, "teacher", ""), "teacher_compiled": (compiled, "teacher", "")}
    jobs: dict[str, tuple[dspy.Module, str, str]] = {
        **({} if context.config.weak else teachers),
        BASE: (plan.task.program, "student", ""),
        **{name: (plan.program(recipe), "student", ADAPTERS[name]) for name, recipe in recipes.items()},
    }
    results: dict[str, SystemResult] = {}
    for name, (program, who, adapter) in jobs.items():

        def work(
            name: str = name, program: dspy.Module = program, who: str = who, adapter: str = adapter
        ) -> dict[str, Any]:
            if who == "teacher":
                shown = context.answering_adapter  # as it answers what the student learns from
                return _measure(context, name, program, context.answerer, context.callers, shown).to_dict()
            return _measure(context, name, program, _lm(context, adapter, f"eval:{name}"), CALLERS).to_dict()

        recipe = recipes.get(name)
        weights = content_hash(context.run.path / adapter) if adapter else None
        grounds = context.grounds if who == "teacher" and not context.closed else []
        key = context.key(name, prompt_hash(program), recipe.values() if recipe else None, weights, *grounds)
        key.append([context.task_inputs(e) for e in context.split.test])
        results[name] = SystemResult.from_dict(context.run.stage(f"score {name}", key, work, show=False))
    if context.closed:
        results |= _probe_results(context)
    return results


def base_out_of_fold(context: Context) -> list[float]:
    """Return the untouched student's score on every gold row; it has seen none of them."""

    def work() -> dict[str, Any]:
        lm = _lm(context, "", "base")
        result = run_system(
            BASE,
            context.plan.task.program,
            lm,
            context.split.gold,
            context.task.metric,
            adapter=context.plan.adapter,
            threads=CALLERS,
            latency_rows=0,
        )
        return {"scores": list(result.scores)}

    payload = context.run.stage(
        "score base", context.key("base", dict(context.task.label_descriptions)), work, show=False
    )
    return cast(list[float], payload["scores"])


def predictions(context: Context, results: Mapping[str, SystemResult]) -> list[dict[str, Any]]:
    """Return each test row with its label and what every system said of it."""
    rows: list[dict[str, Any]] = []
    for number, example in enumerate(context.split.test):
        said = {
            name: {
                "prediction": {field: one.predictions[number].get(field) for field in context.task.output_fields},
                "score": one.scores[number],
                **({"error": one.errors[number]} if one.errors[number] else {}),
            }
            for name, one in results.items()
        }
        rows.append({"inputs": context.task_inputs(example), "label": dict(example.labels()), "systems": said})
    return rows


def build_report(
    context: Context, results: Mapping[str, SystemResult], choice: Choice, hashes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the whole of report.json."""
    report = compare(
        results,
        task=context.task.name,
        metric=context.task.metric_name,
        seed=context.config.seed,
        candidate=STUDENT if STUDENT in results else GOLD_ONLY,
        chosen=choice.system,
        chosen_because=choice.because,
    )
    totals = context.run.ledger.totals()
    return {
        **report,
        "chosen": choice.system,
        "chosen_because": choice.because,
        "out_of_fold": dict(choice.scores),
        "stages": context.run.stage_log,
        "cost": {
            "usd": None if totals.unpriced else totals.usd,
            "calls": totals.calls,
            "cached_calls": totals.cached_calls,
            "tokens_in": totals.tokens_in,
            "tokens_out": totals.tokens_out,
        },
        "warnings": list(context.run.warnings),
        "models": {**context.config.labelled_by(), "student": context.config.student},
        "hashes": dict(hashes),
    }
