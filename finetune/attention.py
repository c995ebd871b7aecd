"""Attention over a shared prefix and packed rows, registered with transformers as one more implementation.

Linear layers see one packed sequence without padding. Attention splits it: the prefix attends to itself,
causally; each row attends to the prefix and to its own ancestors. No cache object is involved: packed
attention through one is contaminated across rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from limbeck.finetune.packing import Pack

_NAME = "limbeck_shared_prefix"


@dataclass
class Layout:
    """One forward pass: `inline` prefix tokens come first, then the rows of `pack`, if any.

    With `keep`, the prefix's keys and values of each layer are kept in `kept`; with `given`, the rows attend
    to those instead of an inline prefix.
    """

    inline: int
    pack: Pack | None
    keep: bool = False
    kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict[int, tuple[torch.Tensor, torch.Tensor]]
    )
    given: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None


def _grouped(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attend with [B, H, T, D] queries to [B, G, S, D] keys: query heads of a group become more queries."""
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    repeat = heads // groups
    folded = query.reshape(batch, groups, repeat * length, width)
    out = scaled_dot_product_attention(
        folded, key, value, attn_mask=mask.repeat(1, 1, repeat, 1), scale=scale
    )
    return out.reshape(batch, heads, length, width)


def _attend_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor],
    pack: Pack,
    scale: float,
) -> torch.Tensor:
    """Return [n, H, D] outputs of the packed rows' [H, n, D] queries, [G, n, D] keys and values."""
    outputs: list[torch.Tensor] = []
    for block in pack.blocks:
        rows, longest = block.gather_BT.shape
        index = block.gather_BT.reshape(-1)

        def padded(x: torch.Tensor, index: torch.Tensor = index, rows: int = rows) -> torch.Tensor:
            return x.index_select(1, index).view(x.shape[0], rows, -1, x.shape[2]).transpose(0, 1)

        keys, values = (
            torch.cat([shared.expand(rows, -1, -1, -1), padded(own)], dim=2)
            for shared, own in zip(prefix, (key, value), strict=True)
        )
        out = _grouped(padded(query), keys, values, block.mask_B1TS, scale)
        outputs.append(out.transpose(1, 2).reshape(rows * longest, *out.shape[1:2], out.shape[3]))
    return torch.cat(outputs).index_select(0, pack.scatter)


def shared_prefix_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention output [1, n, H, D] of a packed sequence; transformers' attention interface."""
    if layout is None:
        raise RuntimeError("shared-prefix attention needs a layout")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    inline, outputs = layout.inline, list[torch.Tensor]()
    prefix = (key[:, :, :inline], value[:, :, :inline])
    if layout.given is not None:
        prefix = layout.given[module.layer_idx]
    if inline:
        causal = scaled_dot_product_attention(
            query[:, :, :inline], *prefix, is_causal=True, scale=scale, enable_gqa=True
        )
        outputs.append(causal.transpose(1, 2))
    if layout.keep:
        layout.kept[module.layer_idx] = prefix
    if layout.pack is not None:
        own = (x[0, :, inline:] for x in (query, key, value))
        outputs.append(_attend_rows(*own, prefix, layout.pack, scale).unsqueeze(0))
    return torch.cat(outputs, dim=1), None


def supports_sharing(config: Any) -> bool:
    """Whether a model of this configuration computes plain full attention, so that a prefix can be shared."""
    layers = getattr(config, "layer_types", None)
    if layers is not None and any(kind != "full_attention" for kind in layers):
        return False
    sliding = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    capped = getattr(config, "attn_logit_softcapping", None)
    alibi = getattr(config, "alibi", False)
    return layers is not None and not (capped or alibi) or not (sliding or capped or alibi)


@contextmanager
def shared_prefix_enabled(model: Any) -> Iterator[None]:
    """Switch the model's attention to `shared_prefix_attention` for the duration."""
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, shared_prefix_attention)
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before
