"""Weak labels with the auxiliary confidence loss: the ramp, the threshold, the targets of a step."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.engine.loading import LoadedModel
from limbeck.errors import InputError
from limbeck.finetune.adapters import attach_lora
from limbeck.finetune.loop import TrainConfig, train
from limbeck.finetune.objectives import find_objective
from limbeck.finetune.rows import TrainRow
from limbeck.finetune.step import accumulate_gradients
from limbeck.finetune.weak import Confidence, OnWeakRows, harden, ramp, recovered

CLASSES = ((5, 2), (6, 2), (7, 8, 2))


def make_rows(*masses: tuple[float, ...]) -> list[TrainRow]:
    """Rows behind one prompt, each with one branch a class."""
    return [
        TrainRow((9, 10, 11, 12, 13, 20 + i), tuple(zip(CLASSES, row, strict=True))) for i, row in enumerate(masses)
    ]


def test_the_weight_rises_in_a_line_and_never_jumps() -> None:
    weights = [ramp(step, 50, 0.75, 0.2) for step in range(50)]
    assert weights[0] == 0
    assert weights[10:] == [0.75] * 40
    assert max(b - a for a, b in itertools.pairwise(weights)) == pytest.approx(0.075)


@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.7]) | st.floats(0.01, 0.99), st.integers(0, 64)), min_size=2))
def test_two_classes_keep_the_weak_share_above_the_threshold(pairs: list[tuple[float, int]]) -> None:
    student = torch.tensor([[1 - p, p] for p, _ in pairs], dtype=torch.float64)
    weak = torch.tensor([[1 - w / 64, w / 64] for _, w in pairs], dtype=torch.float64)
    hard = harden(student, weak).tolist()
    assert abs(sum(hard) - sum(w for _, w in pairs) / 64) <= 0.5 + 1e-9
    # No row of the first class has a higher probability than one of the second, and of equals the first ones are it.
    ranked = sorted(range(len(pairs)), key=lambda row: (-pairs[row][0], row))
    assert [hard[row] for row in ranked] == sorted(hard, reverse=True)


def test_more_classes_keep_the_weak_means() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.softmax(3 * torch.randn(400, 4, generator=generator), dim=-1)
    student = student * torch.tensor([8.0, 1.0, 1.0, 1.0])  # a student that is partial to the first class
    student = student / student.sum(1, keepdim=True)
    weak = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).expand(400, 4)
    plain = torch.bincount(student.argmax(1), minlength=4) / 400
    shares = torch.bincount(harden(student, weak), minlength=4) / 400
    assert float(plain[0]) > 0.3
    assert (shares - weak[0]).abs().max() < 0.06


def test_a_step_has_the_loss_and_gradients_of_its_definition(fresh_tiny: LoadedModel) -> None:
    """(1 - a) CE(f, weak) + a CE(f, own hardened), written out in float64 for three classes."""
    model: Any = attach_lora(fresh_tiny.model, TrainConfig(rank=4, alpha=8)).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
    rows = make_rows((0.7, 0.2, 0.1), (0.1, 0.8, 0.1), (0.2, 0.2, 0.6), (0.5, 0.4, 0.1))

    def logprob(prompt: tuple[int, ...], tokens: tuple[int, ...]) -> torch.Tensor:
        logits = model(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits[0]
        scored = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
        return scored[torch.arange(len(tokens)), torch.tensor(tokens)].sum()

    f = torch.stack([torch.stack([logprob(row.prompt, tokens) for tokens, _ in row.branches]) for row in rows])
    f = f - torch.logsumexp(f, dim=1, keepdim=True)
    weak = torch.tensor([[mass for _, mass in row.branches] for row in rows], dtype=torch.float64)
    own = torch.nn.functional.one_hot(harden(f.detach().exp(), weak), 3).double()
    weight = 0.6 * 5 / (0.5 * 20)
    loss = -((1 - weight) * weak * f + weight * own * f).sum(1).mean()
    loss.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)

    student = replace(fresh_tiny, model=model)
    mixed = Confidence(0.6, 0.5)(5, 20, rows, student)
    done = accumulate_gradients(model.get_base_model(), mixed, find_objective("labels", "row"))
    assert done.loss == pytest.approx(float(loss.detach()), abs=1e-6)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-6


def test_the_loss_leaves_certain_labels_alone(fresh_tiny: LoadedModel) -> None:
    model: Any = attach_lora(fresh_tiny.model, TrainConfig(rank=4, alpha=8))
    student = replace(fresh_tiny, model=model)
    gold, weak = make_rows((0.0, 1.0, 0.0), (1.0, 0.0, 0.0)), make_rows((0.7, 0.2, 0.1), (0.1, 0.8, 0.1))
    rows = [gold[0], weak[0], gold[1], weak[1]]
    mixed = OnWeakRows(Confidence(0.6, 0.5))(9, 10, rows, student)
    assert [mixed[0], mixed[2]] == gold
    assert [mixed[1], mixed[3]] == list(Confidence(0.6, 0.5)(9, 10, weak, student))
    assert mixed[1] != weak[0]
    assert OnWeakRows(Confidence())(5, 10, gold, student) == gold
    assert OnWeakRows(Confidence())(0, 10, rows, student) == rows, "the first step has the weak labels alone"


def test_training_runs_with_targets_that_follow_the_student(fresh_tiny: LoadedModel) -> None:
    rows = make_rows(*[(0.6, 0.3, 0.1)] * 8)
    config = TrainConfig(lr=1e-2, max_steps=10, batch_size=4, rank=4, alpha=8, normalize="labels")
    plain = train(fresh_tiny, rows, config)
    plain.unload()
    sure = train(fresh_tiny, rows, config, refresh=Confidence(0.9, 0.2))
    assert len(sure.losses) == 10
    assert all(map(math.isfinite, sure.losses))
    assert sure.losses[0] == pytest.approx(plain.losses[0])  # the first step has the weak labels alone
    assert sure.adapter_hash != plain.adapter_hash


def test_impossible_weights_are_refused() -> None:
    with pytest.raises(InputError, match="most=1"):
        Confidence(1.0)


def test_the_recovered_gap_is_none_without_a_gap() -> None:
    assert recovered(0.5, 0.6, 0.9) == 0.25
    assert math.isnan(recovered(0.9, 0.9, 0.5))
