"""Rationales as a second task: the loss is the paper's sum, whichever way the answers' loss is taken."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

import pytest
import torch

from limbeck.engine.loading import LoadedModel
from limbeck.errors import InputError
from limbeck.finetune.adapters import attach_lora
from limbeck.finetune.loop import TrainConfig, train
from limbeck.finetune.objectives import find_objective
from limbeck.finetune.rows import TrainRow
from limbeck.finetune.step import accumulate_gradients
from limbeck.finetune.step_by_step import second_task

ANSWERS = [TrainRow((9, 10, 11, 20 + i), (((30 + i, 2), 1.0),)) for i in range(3)]
REASONS = [TrainRow((9, 12, 13, 20 + i), (((*range(40, 46 + i), 2), 1.0),)) for i in range(3)]


def nats(model: Any, row: TrainRow) -> torch.Tensor:
    """The cross-entropy of every token of a row's one completion, by a plain forward pass."""
    tokens = row.branches[0][0]
    logits = model(input_ids=torch.tensor([row.prompt + tokens]), use_cache=False).logits[0]
    scored = torch.log_softmax(logits[len(row.prompt) - 1 : -1], dim=-1)
    return -scored[torch.arange(len(tokens)), torch.tensor(tokens)]


@pytest.mark.parametrize("loss_per", ["row", "token"])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_a_step_has_the_loss_and_gradients_of_the_paper(fresh_tiny: LoadedModel, loss_per: str, share: float) -> None:
    """Answers' loss + share * mean rationale loss a token, over the rows, in float64."""
    config = TrainConfig(rank=4, alpha=8, loss_per=loss_per)
    model: Any = attach_lora(fresh_tiny.model, config).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
    total = torch.zeros((), dtype=torch.float64)
    for answer, reason in zip(ANSWERS, REASONS, strict=True):
        found = nats(model, answer)
        total = total + (found.sum() if loss_per == "row" else found.mean()) + share * nats(model, reason).mean()
    loss = total / (2 * len(ANSWERS))  # the loop's loss is a mean over rows
    loss.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    rows = [*ANSWERS, *second_task(REASONS, share, config)]
    done = accumulate_gradients(model.get_base_model(), rows, find_objective(config.normalize, loss_per))
    assert done.loss == pytest.approx(float(loss.detach()), abs=1e-5)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5


def test_both_tasks_are_learned_together(fresh_tiny: LoadedModel) -> None:
    config = TrainConfig(lr=1e-2, max_steps=40, batch_size=3, rank=8, alpha=16)
    with torch.no_grad():
        before = [float(nats(fresh_tiny.model, row).mean()) for row in (ANSWERS[0], REASONS[0])]
    done = train(fresh_tiny, [*ANSWERS, *second_task(REASONS, 1.0, config)], config)
    with torch.no_grad():
        after = [float(nats(done.loaded.model, row).mean()) for row in (ANSWERS[0], REASONS[0])]
    assert all(b < a / 3 for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(("share", "normalize"), [(0.0, "vocabulary"), (float("nan"), "vocabulary"), (1.0, "labels")])
def test_what_would_teach_nothing_is_refused(share: float, normalize: str) -> None:
    with pytest.raises(InputError) as caught:
        second_task(REASONS, share, TrainConfig(normalize=normalize))
    assert caught.value.valid
