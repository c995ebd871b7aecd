"""Attention to a prompt that all rows share and to each row's own tokens, the prompt read once for all rows.

As Hydragen does it (Juravsky et al. 2024, https://arxiv.org/abs/2402.05099): the shared keys meet the queries of all
rows in one matrix product. Registered with transformers as one more implementation.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

_NAME = "limbeck_cascade"

Pair = tuple[torch.Tensor, torch.Tensor]


def attend(query: torch.Tensor, shared: Pair, own: Pair, bias_B11QT: torch.Tensor, scale: float) -> torch.Tensor:
    """Attend with [B, H, Q, D] queries to shared [1, G, P, D] and own [B, G, T, D] keys and values.

    Scores are written out: on CPUs this is twice as fast in bf16 as the fused kernel, and the shared keys
    are neither copied for every row nor multiplied row by row.
    """
    batch, heads, length, width = query.shape
    groups, prefix = shared[0].shape[1:3]
    repeat, keys = heads // groups, own[0].shape[2]
    folded = (query * scale).reshape(batch, groups, repeat * length, width)
    flat = folded.transpose(0, 1).reshape(groups, -1, width)
    to_shared = (flat @ shared[0][0].transpose(1, 2)).view(groups, batch, repeat * length, prefix)
    to_own = (folded @ own[0].transpose(2, 3)).view(batch, groups, repeat, length, keys) + bias_B11QT
    scores = torch.cat([to_shared.transpose(0, 1), to_own.view(batch, groups, -1, keys)], dim=-1)
    weights = torch.softmax(scores, dim=-1)
    at_shared, at_own = weights.split([prefix, keys], dim=-1)
    from_shared = at_shared.transpose(0, 1).reshape(groups, batch * repeat * length, prefix) @ shared[1][0]
    out = from_shared.view(groups, batch, -1, width).transpose(0, 1) + at_own @ own[1]
    return out.reshape(batch, heads, length, width)


def supports_sharing(config: Any) -> bool:
    """Whether a model of this configuration computes plain full attention, so that a prefix can be shared."""
    if getattr(config, "attn_logit_softcapping", None) or getattr(config, "alibi", False):
        return False
    layers = getattr(config, "layer_types", None)
    return all(kind == "full_attention" for kind in layers) if layers is not None else sliding_window(config) is None


def sliding_window(config: Any) -> int | None:
    """Return how many tokens back some layers of a model of this configuration see, None where all see all."""
    layers = getattr(config, "layer_types", None)
    slides = "sliding_attention" in layers if layers is not None else getattr(config, "use_sliding_window", True)
    return getattr(config, "sliding_window", None) if slides else None


def _cascade(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    shared: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention output [B, Q, H, D]; transformers' attention interface. `shared` has a pair a layer."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    out = attend(query, shared[module.layer_idx], (key, value), attention_mask.unsqueeze(1), scale)
    return out.transpose(1, 2), None


@contextmanager
def attention(model: Any, name: str, function: Callable[..., Any]) -> Generator[None]:
    """Switch the model's attention to a function of transformers' attention interface for the duration."""
    from transformers import AttentionInterface

    AttentionInterface.register(name, function)
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def cascade_enabled(model: Any) -> AbstractContextManager[None]:
    """Switch the model's attention to this one; its passes then need `shared`."""
    return attention(model, _NAME, _cascade)
