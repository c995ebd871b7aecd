"""Sharing the prefix changes nothing: same loss, same gradients as the plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from limbeck.engine.loading import LoadedModel, load_model
from limbeck.finetune.loop import TrainConfig, attach_lora, detach_lora
from limbeck.finetune.objectives import find_objective
from limbeck.finetune.rows import TrainRow
from limbeck.finetune.step import accumulate_gradients

SYSTEM_A = (1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411)
SYSTEM_B = (1, 9690, 198, 811, 812, 813, 814, 815, 816, 817, 818, 819, 820, 821, 822, 823, 824, 825, 826)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("embedded", dtype="float32", device="cpu")


def ragged_rows() -> list[TrainRow]:
    """Two prefixes, tails of 0 to 40 tokens, hard and soft targets, weights."""
    tails = [(), (30,), tuple(range(100, 140)), tuple(range(200, 207)), (30, 31), (9, 9, 9)]
    soft = (((500, 501, 2), 0.6), ((500, 502, 503, 2), 0.3), ((600, 2), 0.1), ((700, 2), 0.0))
    rows = [
        TrainRow(SYSTEM_A + tail, soft if i % 2 else (((500 + i, 2), 1.0),), weight=1.0 + i)
        for i, tail in enumerate(tails)
    ]
    long = SYSTEM_B + tuple(range(1000, 1060))
    rows += [TrainRow(long + (40 + i, 50), (((300, 301, 302, 2), 1.0),), weight=0.5) for i in range(3)]
    return rows


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def plain_logprob(model: Any, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    """Sum of the completion's log-probabilities: one sequence, stock attention, logits everywhere."""
    ids = torch.tensor([prompt + completion])
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    scored = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    return scored[torch.arange(len(completion)), torch.tensor(completion)].sum()


def plain_loop(model: Any, rows: list[TrainRow], normalize: str, loss_per: str) -> float:
    total = 0.0
    weights = sum(row.weight for row in rows)
    for row in rows:
        lps = torch.stack([plain_logprob(model, row.prompt, tokens) for tokens, _ in row.branches])
        masses = torch.tensor([mass for _, mass in row.branches])
        if normalize == "labels":
            lps = lps - torch.logsumexp(lps, 0)
        elif loss_per == "token":
            lps = lps / torch.tensor([float(len(tokens)) for tokens, _ in row.branches])
        loss = -(masses * lps).sum() * row.weight / weights
        loss.backward()
        total += float(loss.detach())
    return total


@pytest.fixture(scope="module")
def student(loaded: LoadedModel) -> Any:
    """The embedded model with LoRA layers that change the output: lora_B starts at zero otherwise."""
    model = attach_lora(loaded.model, TrainConfig(rank=4, alpha=8))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02, generator=generator)
    return model.eval()


@pytest.mark.parametrize(
    ("normalize", "loss_per"), [("vocabulary", "row"), ("vocabulary", "token"), ("labels", "row")]
)
def test_loss_and_gradients_equal_the_plain_loop(student: Any, normalize: str, loss_per: str) -> None:
    rows = ragged_rows()
    expected = plain_loop(student, rows, normalize, loss_per)
    wanted = gradients(student)
    assert max(float(g.abs().max()) for g in wanted.values()) > 1e-3
    objective = find_objective(normalize, loss_per)
    for pack_tokens, share in ((2048, True), (30, True), (2048, False)):
        got = accumulate_gradients(
            student.get_base_model(), rows, objective, pack_tokens=pack_tokens, share_prefix=share
        )
        assert got.loss == pytest.approx(expected, abs=1e-5)
        found = gradients(student)
        assert found.keys() == wanted.keys()
        for name, grad in found.items():
            torch.testing.assert_close(grad, wanted[name], atol=1e-5, rtol=1e-4, msg=name)
