"""Training an encoder-decoder: losses and gradients against a plain float64 loop, learning, saving, reading."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from limbeck.engine import load_model
from limbeck.engine.loading import LoadedModel
from limbeck.engine.requests import ScoreRequest
from limbeck.engine.seq2seq import Seq2SeqEngine, engine_of
from limbeck.errors import InputError
from limbeck.finetune.adapters import attach_lora
from limbeck.finetune.loop import TrainConfig, train
from limbeck.finetune.objectives import Divergence, Preference, find_objective
from limbeck.finetune.rows import TrainRow
from limbeck.finetune.step import accumulate_gradients, read_rows, summed_logprobs


def make_rows(loaded: LoadedModel) -> list[TrainRow]:
    """Prompts and branches of several lengths, hard and soft targets, weights, tokens that are only read."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(cast(Any, loaded.tokenizer)(text, add_special_tokens=False)["input_ids"])

    soft = ((ids("spam"), 0.6), (ids("a lazy dog"), 0.4), (ids("ham"), 0.0))
    return [
        TrainRow(ids("label the text: win a free prize now"), soft),
        TrainRow(ids("label the text"), ((ids("see you at five"), 1.0),), weight=2.0),
        TrainRow(ids("yes"), ((ids("no maybe"), 0.5), (ids("yes"), 0.5)), weight=0.5),
        TrainRow(ids("the transfer is pending"), ((ids("card lost: yes"), 1.0),), given=(2,)),
    ]


def student(loaded: LoadedModel) -> Any:
    model = attach_lora(loaded.model, TrainConfig(rank=4, alpha=8))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02, generator=generator)
    return model.eval()


def plain_logprobs(model: Any, row: TrainRow) -> torch.Tensor:
    """Each branch's summed log-probability: the model's own forward pass, one branch alone."""
    found: list[torch.Tensor] = []
    prompt = torch.tensor([[*row.prompt, model.config.eos_token_id]])
    for tokens, begun in zip([t for t, _ in row.branches], row.given or (0,) * len(row.branches), strict=True):
        shifted = torch.tensor([[model.config.decoder_start_token_id, *tokens[:-1]]])
        logits = model(input_ids=prompt, decoder_input_ids=shifted, use_cache=False).logits[0]
        scored = torch.log_softmax(logits, dim=-1)[torch.arange(len(tokens)), torch.tensor(tokens)]
        found.append(scored[begun:].sum())
    return torch.stack(found)


def plain_loss(model: Any, rows: list[TrainRow], normalize: str, loss_per: str) -> torch.Tensor:
    losses: list[torch.Tensor] = []
    for row in rows:
        logprobs = plain_logprobs(model, row)
        masses = torch.tensor([mass for _, mass in row.branches], dtype=logprobs.dtype)
        if normalize == "labels":
            logprobs = logprobs - torch.logsumexp(logprobs, 0)
        elif loss_per == "token":
            given = row.given or (0,) * len(row.branches)
            logprobs = logprobs / torch.tensor([len(t) - n for (t, _), n in zip(row.branches, given, strict=True)])
        losses.append(-row.weight * (masses * logprobs).sum())
    return torch.stack(losses).sum() / sum(row.weight for row in rows)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("pack_tokens", [1, 40, 2048])
@pytest.mark.parametrize("objective", [("vocabulary", "row"), ("vocabulary", "token"), ("labels", "row")])
def test_loss_and_gradients_are_those_of_a_plain_loop(
    fresh_t5: LoadedModel, objective: tuple[str, str], pack_tokens: int
) -> None:
    # Both sides in float64: this model's gradients are large, and in fp32 either is off by a per cent.
    rows, model = make_rows(fresh_t5), student(fresh_t5).double()
    done = accumulate_gradients(
        model.get_base_model(), rows, find_objective(*objective), pack_tokens=pack_tokens, share_prefix=True
    )
    got = gradients(model)
    expected = plain_loss(model, rows, *objective)
    expected.backward()
    wanted = gradients(model)
    assert done.loss == pytest.approx(float(expected.detach()), rel=1e-4)
    assert done.tokens == sum(len(row.prompt) + sum(len(t) for t, _ in row.branches) for row in rows)
    largest = max(float(g.abs().max()) for g in wanted.values())
    assert largest > 1e-3
    assert wanted.keys() == got.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-4 * largest, rtol=1e-3)


def test_rows_are_read_without_gradients_in_their_order(fresh_t5: LoadedModel) -> None:
    rows, model = make_rows(fresh_t5), student(fresh_t5).get_base_model()
    found = [read_rows(model, rows, summed_logprobs, pack_tokens=n) for n in (1, 2048)]
    model.double()
    with torch.no_grad():
        expected = [plain_logprobs(model, row).tolist() for row in rows]
    for seen in found:
        assert [list(one) for one in seen] == [pytest.approx(one, rel=1e-3) for one in expected]


def plain_logits(model: Any, prompt: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
    """The log-probabilities [tokens, V] before each token of one answer, by the model's own forward pass."""
    source = torch.tensor([[*prompt, model.config.eos_token_id]])
    shifted = torch.tensor([[model.config.decoder_start_token_id, *tokens[:-1]]])
    return torch.log_softmax(model(input_ids=source, decoder_input_ids=shifted, use_cache=False).logits[0], dim=-1)


def test_preferences_and_divergences_are_those_of_plain_passes(fresh_t5: LoadedModel) -> None:
    soft, _, pair, _ = make_rows(fresh_t5)
    model = student(fresh_t5).get_base_model().double()
    with torch.no_grad():
        chosen, rejected = plain_logprobs(model, pair).tolist()
        own = [plain_logits(model, soft.prompt, tokens) for tokens, _ in soft.branches]
    h = 0.1 * ((chosen + 3.0) - (rejected + 40.0))
    expected = -0.5 * math.log(1 / (1 + math.exp(-h))) - 0.5 * math.log(1 / (1 + math.exp(h)))
    asked = TrainRow(pair.prompt, pair.branches, reference=(-3.0, -40.0))
    (loss,) = read_rows(model, [asked], lambda view: float(Preference(0.1)(view)))
    assert abs(h) > 0.5
    assert loss == pytest.approx(expected, rel=1e-4)

    drawn = torch.randn(sum(map(len, own)), own[0].shape[-1], generator=torch.Generator().manual_seed(0))
    teacher = torch.log_softmax(2 * drawn.double(), dim=-1)
    total = weight = 0.0
    for (tokens, mass), said, wanted in zip(soft.branches, own, teacher.split([len(one) for one in own]), strict=True):
        total += mass * float((wanted.exp() * (wanted - said)).sum())
        weight += mass * len(tokens)
    taught = TrainRow(soft.prompt, soft.branches, teacher=teacher)
    (apart,) = read_rows(model, [taught], lambda view: float(Divergence(0.0)(view)))
    assert apart == pytest.approx(total / weight, rel=1e-4)


def test_training_learns_and_the_saved_adapter_answers_the_same(fresh_t5: LoadedModel, tmp_path: Path) -> None:
    cast(Any, fresh_t5.model).save_pretrained(tmp_path / "base")
    cast(Any, fresh_t5.tokenizer).save_pretrained(tmp_path / "base")
    rows = make_rows(fresh_t5)
    config = TrainConfig(lr=2e-2, epochs=12, batch_size=2, rank=4, alpha=8)
    result = train(fresh_t5, rows, config)
    assert sum(result.losses[-4:]) < 0.5 * sum(result.losses[:4])
    result.save(tmp_path / "adapter")
    request = ScoreRequest((("user", "label the text"),), "", ("see you at five", "spam"))
    scores: list[tuple[float, ...]] = []
    loaded = load_model(
        f"hf:{tmp_path / 'base'}", device="cpu", dtype="fp32", adapter=tmp_path / "adapter", merged=True
    )
    for one in (result.loaded, loaded):
        engine = engine_of(one)
        assert isinstance(engine, Seq2SeqEngine)
        scores.append(engine.score(request).logprobs)
        engine.close()
    assert scores[0] == pytest.approx(scores[1], abs=1e-2)
    result.unload()
    assert not any("lora" in name for name, _ in cast(Any, fresh_t5.model).named_parameters())


def test_a_row_longer_than_the_context_is_refused(fresh_t5: LoadedModel) -> None:
    row = TrainRow((5,) * 511, (((6,), 1.0),))
    with pytest.raises(InputError, match="context holds 511"):
        train(fresh_t5, [row], TrainConfig())
