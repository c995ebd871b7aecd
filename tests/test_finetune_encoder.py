"""Training an encoder: loss and gradients against a plain float64 loop, learning, saving, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from limbeck.engine.encoder import SCALE, EncoderClassifier, load_classifier, token_ids, untrained
from limbeck.engine.loading import LoadedModel, load_encoder
from limbeck.errors import InputError
from limbeck.finetune.adapters import attach_lora
from limbeck.finetune.encoder import ClassRow, accumulate_classes, train_encoder
from limbeck.finetune.loop import TrainConfig

LABELS = ("weather", "card", "spam")
TEXTS = ["the card was lost or stolen", "see you at five", "win a free prize now see you at five", "yes"]
MASSES = [(0.0, 1.0, 0.0), (0.6, 0.3, 0.1), (0.0, 0.2, 0.8), (1.0, 0.0, 0.0)]
CONFIG = TrainConfig(lr=5e-3, epochs=20, batch_size=2, rank=4, alpha=8)


@pytest.fixture
def loaded(encoder_folder: Path) -> LoadedModel:
    return load_encoder(f"encoder:{encoder_folder}", device="cpu")


def make_rows(loaded: LoadedModel) -> list[ClassRow]:
    weights = (1.0, 2.0, 0.5, 1.0)
    ids = token_ids(loaded, TEXTS)
    return [ClassRow(tuple(i), m, w) for i, m, w in zip(ids, MASSES, weights, strict=True)]


def plain_loss(model: EncoderClassifier, rows: list[ClassRow]) -> torch.Tensor:
    """One row at a time, no padding, the definition written out."""
    losses: list[torch.Tensor] = []
    for row in rows:
        ids = torch.tensor([row.ids])
        hidden = model.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        mean = hidden.mean(0)
        logits = SCALE * (model.weight @ (mean / mean.norm()) + model.bias)
        masses = torch.tensor(row.masses, dtype=logits.dtype)
        losses.append(-row.weight * (masses * (logits - torch.logsumexp(logits, 0))).sum())
    return torch.stack(losses).sum() / sum(row.weight for row in rows)


def gradients(model: EncoderClassifier) -> dict[str, torch.Tensor]:
    found = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("pack_tokens", [1, 12, 2048])
def test_loss_and_gradients_are_those_of_a_plain_loop(loaded: LoadedModel, pack_tokens: int) -> None:
    rows, model = make_rows(loaded), untrained(loaded, LABELS)
    model.encoder = attach_lora(loaded.model, CONFIG, task="FEATURE_EXTRACTION")
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02, generator=generator)
    model.eval()
    done = accumulate_classes(model, rows, pack_tokens=pack_tokens)
    got = gradients(model)
    expected = plain_loss(model.double(), rows)
    expected.backward()
    wanted = gradients(model)
    assert done.loss == pytest.approx(float(expected.detach()), abs=1e-4)
    assert done.tokens == sum(len(row.ids) for row in rows)
    assert max(float(g.abs().max()) for name, g in wanted.items() if "lora" in name) > 1e-3
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, wanted.get(name, torch.zeros_like(gradient)), atol=2e-3, rtol=1e-3)


# A head alone has less to move: random vectors of four texts lie close together.
@pytest.mark.parametrize(("head_only", "lr"), [(False, 5e-3), (True, 5e-2)])
def test_training_lowers_the_loss_and_a_saved_student_answers_the_same(
    loaded: LoadedModel, encoder_folder: Path, tmp_path: Path, head_only: bool, lr: float
) -> None:
    rows = make_rows(loaded)
    before = {name: p.clone() for name, p in cast(Any, loaded.model).named_parameters()}
    result = train_encoder(loaded, rows, LABELS, replace(CONFIG, lr=lr), head_only=head_only)
    assert len(result.losses) == 40
    assert sum(result.losses[-4:]) < 0.6 * sum(result.losses[:4])
    trained: Any = result.loaded.model
    names = list(trained.encoder.named_parameters())
    base = {name.replace("base_model.model.", "").replace("base_layer.", ""): p for name, p in names}
    assert all(torch.equal(base[name], value) for name, value in before.items())
    assert any("lora" in name for name in base) is not head_only
    assert not any("lora" in name and "pooler" in name for name in base)

    result.save(tmp_path / "adapter")
    again = load_classifier(f"encoder:{encoder_folder}", tmp_path / "adapter", device="cpu")
    ids = [row.ids for row in rows]
    assert trained(ids).argmax(1).tolist() == [row.masses.index(max(row.masses)) for row in rows]
    torch.testing.assert_close(cast(Any, again.model)(ids), trained(ids), atol=1e-3, rtol=1e-4)
    assert (tmp_path / "adapter" / "adapter_config.json").exists() is not head_only


def test_the_same_seed_gives_the_same_weights(encoder_folder: Path) -> None:
    def once(seed: int) -> str:
        fresh = load_encoder(f"encoder:{encoder_folder}", device="cpu")
        config = TrainConfig(lr=1e-3, max_steps=3, batch_size=2, rank=4, seed=seed)
        return train_encoder(fresh, make_rows(fresh), LABELS, config).adapter_hash

    assert once(0) == once(0) != once(1)


def test_an_interrupted_training_leaves_the_encoder_without_layers(loaded: LoadedModel) -> None:
    before = cast(Any, loaded.model).encoder.layer[0].attention.self.query

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_encoder(loaded, make_rows(loaded), LABELS, CONFIG, progress=stop)
    assert cast(Any, loaded.model).encoder.layer[0].attention.self.query is before


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no training rows"),
        ([ClassRow((), (1.0, 0.0, 0.0))], "no tokens"),
        ([ClassRow((1,), (1.0, 0.0, 0.0), weight=0.0)], "weight of zero"),
        ([ClassRow((1,), (1.0, 0.0))], "3 numbers"),
        ([ClassRow((1,), (0.7, 0.7, 0.0))], "sum 1"),
        ([ClassRow((1,), (1.5, -0.5, 0.0))], "sum 1"),
    ],
)
def test_rows_that_teach_nothing_are_refused(loaded: LoadedModel, rows: list[ClassRow], said: str) -> None:
    with pytest.raises(InputError, match=said):
        train_encoder(loaded, rows, LABELS, CONFIG)
