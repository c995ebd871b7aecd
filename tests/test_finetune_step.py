"""Sharing the prefix changes nothing: same loss, same gradients as the plain loop."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from limbeck.engine.loading import load_model
from limbeck.finetune import attention
from limbeck.finetune.loop import TrainConfig, attach_lora
from limbeck.finetune.objectives import find_objective
from limbeck.finetune.rows import TrainRow
from limbeck.finetune.step import accumulate_gradients

SHARED = "Answer with the topic of the message.\nMessage: "
OTHER = "You translate English to French, word by word and without any comment, as a dictionary would. "
SOFT = ((" sports team", 0.6), (" sports car", 0.3), (" weather", 0.1), (" music", 0.0))


def make_rows(tokenizer: Any) -> list[TrainRow]:
    """Two prefixes, tails of none to many tokens, hard and soft targets, shared beginnings, weights."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    soft = tuple(((*ids(text), 2), mass) for text, mass in SOFT)
    prompt = ids(SHARED)
    return [
        TrainRow(prompt, soft),
        TrainRow(prompt, (((*ids(" weather"), 2), 1.0),), weight=2.0),
        TrainRow(prompt + ids("rain, then sun and later some wind from the west"), ((ids(" weather"), 1.0),)),
        TrainRow(prompt + ids("a late goal"), soft, weight=0.5),
        TrainRow(ids(OTHER + "\nwater:"), (((*ids(" eau"), 2), 1.0),), weight=0.5),
        TrainRow(ids(OTHER + "\nbread:"), ((ids(" pain"), 0.8), (ids(" baguette"), 0.2)), weight=0.5),
    ]


def student(layers: int) -> tuple[Any, list[TrainRow]]:
    """The embedded model's first layers in fp32 with LoRA layers that change its output."""
    loaded = load_model("embedded", dtype="float32", device="cpu")
    base = cast(Any, loaded.model)
    base.model.layers = base.model.layers[:layers]
    base.config.num_hidden_layers = layers
    model = attach_lora(base, TrainConfig(rank=4, alpha=8))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.005, generator=generator)
    return model.eval(), make_rows(loaded.tokenizer)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def plain_logprob(model: Any, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    """The completion's summed log-probability: one sequence, stock attention and LoRA, logits everywhere."""
    ids = torch.tensor([prompt + completion])
    logits = model(input_ids=ids, use_cache=False).logits[0]
    scored = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    return scored[torch.arange(len(completion)), torch.tensor(completion)].sum()


def plain_loop(model: Any, rows: list[TrainRow], normalize: str, loss_per: str) -> float:
    total = 0.0
    weights = sum(row.weight for row in rows)
    for row in rows:
        logprobs = torch.stack([plain_logprob(model, row.prompt, tokens) for tokens, _ in row.branches])
        masses = torch.tensor([mass for _, mass in row.branches])
        if normalize == "labels":
            logprobs = logprobs - torch.logsumexp(logprobs, 0)
        elif loss_per == "token":
            logprobs = logprobs / torch.tensor([float(len(tokens)) for tokens, _ in row.branches])
        loss = -(masses * logprobs).sum() * row.weight / weights
        loss.backward()
        total += float(loss.detach())
    return total


def check_equal(model: Any, rows: list[TrainRow], objective: tuple[str, str], *variants: tuple[int, bool]) -> None:
    expected = plain_loop(model, rows, *objective)
    wanted = gradients(model)
    largest = max(float(g.abs().max()) for g in wanted.values())
    assert largest > 1e-3
    for pack_tokens, share in variants:
        got = accumulate_gradients(
            model.get_base_model(),
            rows,
            find_objective(*objective),
            pack_tokens=pack_tokens,
            share_prefix=share,
        )
        assert got.loss == pytest.approx(expected, abs=1e-5)
        found = gradients(model)
        assert found.keys() == wanted.keys()
        for name, grad in found.items():
            assert float((grad - wanted[name]).abs().max()) <= 1e-5 * max(1.0, largest), name


def test_loss_and_gradients_of_the_whole_model_equal_the_plain_loop() -> None:
    # One pass over everything, several passes behind one prefix pass, no sharing at all.
    check_equal(*student(30), ("vocabulary", "row"), (2048, True), (12, True), (2048, False))


@pytest.mark.parametrize("objective", [("vocabulary", "token"), ("labels", "row")])
def test_other_objectives_equal_the_plain_loop(objective: tuple[str, str]) -> None:
    check_equal(*student(3), objective, (2048, True))


def test_the_fused_attention_of_long_rows_equals_the_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MATERIALIZED_KEYS", 0)
    check_equal(*student(3), ("vocabulary", "row"), (2048, True), (12, True), (2048, False))


def test_the_shared_prefix_is_forwarded_once_a_step() -> None:
    model, rows = student(1)
    same = [row for row in rows if row.prompt[:5] == rows[0].prompt[:5]]
    shared = len(rows[0].prompt) - 1
    own = sum(len(row.prompt) - shared for row in same)
    seen: list[int] = []
    for pack_tokens in (2048, 12):
        done = accumulate_gradients(
            model.get_base_model(), same, find_objective("vocabulary", "row"), pack_tokens=pack_tokens
        )
        seen.append(done.tokens)
    # Inner tokens of the branches: "sports", "team", "car", "weather" and "music" twice, "weather" once.
    assert seen == [shared + own + 2 * 5 + 1 + 0] * 2


def test_attention_without_a_layout_is_refused_and_the_model_is_left_as_it_was() -> None:
    model, rows = student(1)
    before = model.config._attn_implementation
    with attention.shared_prefix_enabled(model.get_base_model()), pytest.raises(RuntimeError, match="layout"):
        model(input_ids=torch.tensor([rows[0].prompt]), use_cache=False)
    assert model.config._attn_implementation == before
