"""Texts to vectors: mean-pooled last hidden states of the base model, or the MiniLM sentence encoder.

Mean pooling over tokens as in Sentence-BERT (Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084).
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.engine.batching import batches_by_length
from limbeck.engine.compute import on_compute_thread
from limbeck.engine.loading import LoadedModel, encoder_path, load_encoder

Vectors = NDArray[np.float32]

_ROWS, _TOKENS = 64, 4096
# Longer inputs are cut: a mean over the first 1024 tokens says what a text is about.
_MOST_TOKENS = 1024


def embed(loaded: LoadedModel, texts: Sequence[str]) -> Vectors:
    """Return float32 [texts, hidden size]: the mean of the last hidden states over a text's tokens."""
    model: Any = loaded.model
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    size = base.get_input_embeddings().weight.shape[1]
    limit = min(_MOST_TOKENS, cast(int, getattr(base.config, "max_position_embeddings", _MOST_TOKENS)))
    body = base.get_encoder() if base.config.is_encoder_decoder else base.base_model
    return on_compute_thread(_pooled, body, loaded.tokenizer, texts, loaded.device, size, limit)


def unit_vectors(loaded: LoadedModel, texts: Sequence[str]) -> Vectors:
    """Return what `embed` does, each vector scaled to length 1."""
    vectors = embed(loaded, texts)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return cast(Vectors, vectors / np.maximum(norms, 1e-9))


def encode(texts: Sequence[str]) -> Vectors | None:
    """Return MiniLM's unit vectors, float32 [texts, 384], or None where the encoder is not installed."""
    return None if encoder_path() is None else unit_vectors(load_encoder("encoder", device="cpu"), texts)


@torch.inference_mode()
def _pooled(model: Any, tokenizer: Any, texts: Sequence[str], device: torch.device, size: int, limit: int) -> Vectors:
    out = np.zeros((len(texts), size), dtype=np.float32)
    if not texts:
        return out
    ids = [row[:limit] for row in tokenizer(list(texts))["input_ids"]]
    pad = cast("int | None", tokenizer.pad_token_id) or 0
    for batch in batches_by_length([max(1, len(row)) for row in ids], _ROWS, _TOKENS):
        out[batch] = mean_states(model, [ids[i] for i in batch], pad, device).cpu().numpy()
    return out


def mean_states(model: Any, ids: Sequence[Sequence[int]], pad: int, device: torch.device) -> torch.Tensor:
    """Return fp32 [rows, hidden size]: each row's mean last hidden state, computed in one padded pass."""
    longest = max(1, *(len(row) for row in ids))
    padded = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in ids], device=device)
    lengths = torch.tensor([len(row) for row in ids], device=device)
    mask = torch.arange(longest, device=device) < lengths.unsqueeze(1)
    hidden = model(input_ids=padded, attention_mask=mask.long()).last_hidden_state.float()
    # An empty text has no token to look at; its vector stays zero.
    hidden = hidden.masked_fill(~mask.unsqueeze(2), 0)
    return hidden.sum(1) / lengths.clamp(min=1).unsqueeze(1)
