"""Training on a weaker model's labels with the auxiliary confidence loss (Burns et al. 2023, weak-to-strong).

The target of a row is (1 - a) times the weak label's masses plus a times the student's own hardened answer. The loss is
the cross-entropy against it, softmax over the candidates (`objectives.labels`).
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from limbeck.engine.compute import on_compute_thread
from limbeck.errors import InputError
from limbeck.finetune.adapters import base_of
from limbeck.finetune.rows import TrainRow
from limbeck.finetune.step import read_rows

if TYPE_CHECKING:
    from limbeck.engine.loading import LoadedModel
    from limbeck.finetune.objectives import Branches

# Rounds of matching class means: each multiplies every class by how far its mean is off.
_ROUNDS, _LEAST_MEAN = 100, 1e-6


def ramp(step: int, total: int, most: float, share: float) -> float:
    """Return the weight of the student's own answer in step 0 to total - 1: up in a line from 0, then `most`.

    >>> [round(ramp(step, 10, 0.5, 0.4), 3) for step in range(6)]
    [0.0, 0.125, 0.25, 0.375, 0.5, 0.5]
    """
    rising = share * total
    return most if step >= rising else most * step / rising


def harden(student_NC: torch.Tensor, weak_NC: torch.Tensor) -> torch.Tensor:
    """Return the student's probabilities [N, C] as one class a row, [N], so that classes keep the weak means.

    Two classes: the rows with the highest probability of the second one are of it, as many as its weak mean says, of
    equals the first ones. More: each class's probabilities are multiplied by a factor until the batch's class means are
    the weak ones, then the largest wins.

    >>> student = torch.tensor([[0.4, 0.6], [0.3, 0.7], [0.2, 0.8], [0.1, 0.9]])
    >>> harden(student, torch.tensor([[0.5, 0.5]] * 4)).tolist()
    [0, 0, 1, 1]
    """
    means = weak_NC.double().mean(0)
    student = student_NC.double()
    if student.shape[1] == 2:
        count = round(float(means[1]) * len(student))
        highest = torch.argsort(student[:, 1], descending=True, stable=True)[:count]
        return torch.zeros(len(student), dtype=torch.long, device=student.device).index_fill(0, highest, 1)
    factors = torch.ones_like(means)
    for _ in range(_ROUNDS):
        scaled = student * factors
        now = (scaled / scaled.sum(1, keepdim=True)).mean(0)
        factors = factors * means.clamp_min(_LEAST_MEAN) / now.clamp_min(_LEAST_MEAN)
    return (student * factors).argmax(1)


def _probabilities(row: Branches) -> torch.Tensor:
    return torch.softmax(row.logprobs, dim=0).cpu()


@dataclass(frozen=True)
class Confidence:
    """Mixes the student's own hardened answers into the weak labels of every step (a `Refresh` of the loop).

    The weight of the student's answer rises over the first `share` of the steps to `most` (the paper: 0.75, and 0.5 for
    small students) and stays there. Rows need one branch a class, in the same order, those without mass as well.
    """

    most: float = 0.75
    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.most < 1 or not 0 <= self.share <= 1:
            raise InputError(
                f"most={self.most:g}, share={self.share:g}",
                valid="most: 0 to below 1, what the student's own answers weigh; share of the steps: 0 to 1",
            )

    def __call__(self, step: int, total: int, rows: Sequence[TrainRow], student: LoadedModel) -> Sequence[TrainRow]:
        """Return the rows with the step's targets; InputError where they have not all as many branches."""
        sizes = {len(row.branches) for row in rows}
        if len(sizes) > 1:
            raise InputError(
                f"rows of {min(sizes)} and of {max(sizes)} branches",
                valid="one branch a class in every row, those without mass as well",
            )
        weight = ramp(step, total, self.most, self.share)
        if not weight:
            return rows
        found: list[torch.Tensor] = on_compute_thread(read_rows, base_of(student.model), rows, _probabilities)
        weak = torch.tensor([[mass for _, mass in row.branches] for row in rows])
        own = harden(torch.stack(found), weak).tolist()
        return [_mixed(row, weight, chosen) for row, chosen in zip(rows, own, strict=True)]


@dataclass(frozen=True)
class OnWeakRows:
    """Applies the confidence loss to the rows of a step that a weak model labelled (a `Refresh` of the loop).

    A row with all its mass on one class has a person's label and stays as it is.
    """

    confidence: Confidence

    def __call__(self, step: int, total: int, rows: Sequence[TrainRow], student: LoadedModel) -> Sequence[TrainRow]:
        """Return the rows with the step's targets, in their order."""
        unsure = [max(mass for _, mass in row.branches) < 1 for row in rows]
        weak = [row for row, is_weak in zip(rows, unsure, strict=True) if is_weak]
        mixed = iter(self.confidence(step, total, weak, student) if weak else ())
        return [next(mixed) if is_weak else row for row, is_weak in zip(rows, unsure, strict=True)]


def _mixed(row: TrainRow, weight: float, chosen: int) -> TrainRow:
    branches = tuple(
        (tokens, (1 - weight) * mass + weight * (place == chosen)) for place, (tokens, mass) in enumerate(row.branches)
    )
    return replace(row, branches=branches)


def recovered(weak: float, student: float, ceiling: float) -> float:
    """Return the performance gap recovered: 0 where the student is as good as its weak teacher, 1 at the ceiling.

    NaN where the ceiling is no better than the weak model: there is no gap.

    >>> recovered(0.6, 0.7, 0.8)
    0.5
    """
    return round((student - weak) / (ceiling - weak), 12) if ceiling > weak else math.nan
