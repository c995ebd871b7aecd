"""Training a sentence encoder as a classifier: LoRA on the encoder and a head, or the head alone."""
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from limbeck.engine.batching import batches_by_length
from limbeck.engine.compute import on_compute_thread
from limbeck.engine.encoder import EncoderClassifier, untrained
from limbeck.errors import InputError
from limbeck.finetune.adapters import attach_lora, detach_lora, has_adapter
from limbeck.finetune.loop import Progress, Run, TrainConfig, TrainResult, take_steps
from limbeck.finetune.step import StepLoss

if TYPE_CHECKING:
    from limbeck.engine.loading import LoadedModel

# BERT's pooler is no part of the mean over token states.
_UNUSED = r".*pooler.*"


@dataclass(frozen=True)
class ClassRow:
    """One example: token ids of a text, the target mass of each label, and the row's weight in its step.

    >>> ClassRow((101, 7, 102), (0.9, 0.1)).weight
    1.0
    """

    ids: tuple[int, ...]
    masses: tuple[float, ...]
    weight: float = 1.0


def accumulate_classes(model: EncoderClassifier, rows: Sequence[ClassRow], *, pack_tokens: int = 2048) -> StepLoss:
    """Add the gradients of the rows' weighted mean cross-entropy (nats) to the model's trainable parameters.

    A forward pass has at most `pack_tokens` tokens, padding included, or one row.
    """
    scale, total = 1.0 / sum(row.weight for row in rows), 0.0
    for batch in batches_by_length([len(row.ids) for row in rows], len(rows), pack_tokens):
        part = [rows[i] for i in batch]
        logprobs = torch.log_softmax(model([row.ids for row in part]), dim=1)
        masses = logprobs.new_tensor([row.masses for row in part])
        weights = logprobs.new_tensor([row.weight for row in part])
        loss = -(weights * (masses * logprobs).sum(1)).sum()
        (loss * scale).backward()
        total += float(loss.detach())
    return StepLoss(total * scale, sum(len(row.ids) for row in rows))


def train_encoder(
    loaded: LoadedModel,
    rows: Sequence[ClassRow],
    labels: Sequence[str],
    config: TrainConfig,
    *,
    head_only: bool = False,
    evaluate: Callable[[int, LoadedModel], float] | None = None,
    eval_every: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Train a head over `labels`, and LoRA layers in the encoder unless `head_only`; return the classifier.

    `loaded` is a bare encoder (`limbeck.engine.loading.load_encoder`). The result's `loaded.model` is an
    `EncoderClassifier`; of `config`, `normalize`, `loss_per`, `share_prefix` and `dtype` mean nothing here. Whatever
    interrupts training leaves the encoder without new LoRA layers. Raises `InputError` for no rows, for rows without
    tokens, without a positive weight or whose masses are not a distribution over the labels, and for an encoder that
    carries another training's layers.
    """
    _check(rows, labels)
    fresh = not has_adapter(loaded.model)
    try:
        run = on_compute_thread(_start, loaded, rows, labels, config, head_only)
        return take_steps(run, evaluate, eval_every, progress)
    except BaseException:
        if fresh:
            detach_lora(loaded.model)
        raise


def _start(
    loaded: LoadedModel, rows: Sequence[ClassRow], labels: Sequence[str], config: TrainConfig, head_only: bool
) -> Run[ClassRow]:
    model = untrained(loaded, labels)
    if head_only:
        model.encoder.requires_grad_(False)
    else:
        model.encoder = attach_lora(loaded.model, config, task="FEATURE_EXTRACTION", exclude=_UNUSED)
    model.eval()
    accumulate = partial(accumulate_classes, model, pack_tokens=config.pass_tokens(loaded.device))
    return Run(replace(loaded, model=cast(Any, model)), rows, config, accumulate)


def _check(rows: Sequence[ClassRow], labels: Sequence[str]) -> None:
    if not rows:
        raise InputError("no training rows", valid="at least one row")
    for number, row in enumerate(rows):
        if not row.ids or row.weight <= 0:
            raise InputError(f"training row {number} has no tokens, or a weight of zero or less")
        if len(row.masses) != len(labels) or min(row.masses) < 0 or abs(sum(row.masses) - 1) > 1e-3:
            raise InputError(
                f"training row {number} has masses {row.masses}",
                valid=f"{len(labels)} numbers, one a label, of 0 or more and sum 1",
            )
