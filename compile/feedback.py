"""Metrics as GEPA calls them: a score, and in words what went wrong."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import dspy

from limbeck.errors import BudgetExceeded
from limbeck.metrics import FieldMetric, score_of
from limbeck.task import Task


def with_feedback(task: Task) -> Callable[..., dspy.Prediction]:
    """Return the task's metric as GEPA calls it: five arguments, and a prediction with score and feedback."""
    wide = _takes_five(task.metric)

    def metric(
        gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
    ) -> dspy.Prediction:
        try:
            call = cast(Callable[..., Any], task.metric)
            found = call(gold, pred, trace, pred_name, pred_trace) if wide else call(gold, pred, trace)
        except BudgetExceeded:
            raise
        except Exception as error:  # the metric met an answer that could not be read
            return dspy.Prediction(score=0.0, feedback=f"The answer could not be scored: {error}")
        score = score_of(found)
        return dspy.Prediction(
            score=score, feedback=getattr(found, "feedback", None) or _verdict(task, gold, pred, score)
        )

    return metric


def _verdict(task: Task, gold: Any, pred: Any, score: float) -> str:
    if score >= 1.0:
        return "This is right."
    lines = [f"{name} should be {gold[name]!r} and was {pred.get(name, 'not given')!r}." for name in task.output_fields]
    return " ".join([f"The score is {score:.2f}.", *lines])


def explains(metric: Any) -> bool:
    """Return whether a metric says what went wrong: one of ours, or one that takes GEPA's five arguments."""
    return isinstance(metric, FieldMetric) or _takes_five(metric)


def _takes_five(metric: Any) -> bool:
    try:
        inspect.signature(metric).bind(None, None, None, None, None)
    except TypeError:
        return False
    return True
