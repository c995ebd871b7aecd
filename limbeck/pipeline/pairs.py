"""Preference pairs as a student's training rows, and what DPO makes of a supervised student with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from limbeck.finetune.dpo import PreferenceRows, prefer, preference_rows
from limbeck.finetune.loop import Progress, TrainConfig, TrainResult
from limbeck.finetune.objectives import Preference as Objective
from limbeck.models.adapter import Rendered, render
from limbeck.pipeline.students import Recipe, StudentPlan
from limbeck.pipeline.ways import CHAIN
from limbeck.preferences import Preference

if TYPE_CHECKING:
    from limbeck.engine.loading import LoadedModel

INCOMPLETE = "incomplete"
# Steps of DPO are far smaller than supervised ones, which teach new answers instead of choosing between known ones.
_SLOWER, _PASSES, _BATCH = 10.0, 2.0, 8


def dpo_config(recipe: Recipe) -> TrainConfig:
    """Return how a recipe's student is trained on pairs after its supervised fit."""
    return TrainConfig(lr=recipe.lr / _SLOWER, epochs=_PASSES, batch_size=_BATCH, seed=recipe.seed)


def pair_rows(plan: StudentPlan, recipe: Recipe, pairs: Sequence[Preference], loaded: LoadedModel) -> PreferenceRows:
    """Return the pairs as token rows under the student's own prompt, with the number of those left out by reason.

    `incomplete` are those that do not hold all that the student's one predictor writes, all of a program of several
    predictors, and all where the student answers by chains: what is preferred are answers.
    """
    predictors = cast(list[Any], plan.program(recipe).predictors())
    one = len(predictors) == 1 and recipe.way != CHAIN
    rendered = [_rendered(plan, predictors[0], pair) for pair in pairs] if one else []
    whole = [one for one in rendered if one is not None]
    made = preference_rows(loaded, whole)
    return replace(made, left_out=Counter({**made.left_out, INCOMPLETE: len(pairs) - len(whole)}))


def align(
    plan: StudentPlan,
    recipe: Recipe,
    student: LoadedModel,
    pairs: Sequence[Preference],
    *,
    progress: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Go on training a supervised student on pairs and return what came of it; InputError where none is a row."""
    rows = pair_rows(plan, recipe, pairs, student).rows
    return prefer(student, rows, dpo_config(recipe), Objective(recipe.beta), progress=progress)


def _rendered(plan: StudentPlan, predictor: Any, pair: Preference) -> Rendered | None:
    """Return a pair as one prompt with two answers; None where one of them lacks a field."""
    if any(name not in answer for answer in (pair.chosen, pair.rejected) for name in predictor.signature.output_fields):
        return None
    chosen, rejected = (
        render(predictor, adapter=plan.adapter, demos=predictor.demos, inputs=pair.inputs, outputs=answer)
        for answer in (pair.chosen, pair.rejected)
    )
    ((better, _),), ((worse, _),) = chosen.completions, rejected.completions
    return replace(chosen, completions=((better, pair.p), (worse, 1 - pair.p)))
