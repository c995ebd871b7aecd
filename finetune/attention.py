"""Attention over a shared prefix and packed rows, registered with transformers as one more implementation.

Linear layers see one packed sequence without padding. Attention splits it: the prefix attends to itself,
causally; each row attends to the prefix and to its own ancestors. No cache object is involved: packed
attention through one is contaminated across rows.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from limbeck.engine.cascade import Pair, attend, attention
from limbeck.finetune.packing import Pack

_NAME = "limbeck_shared_prefix"
# Up to this many keys the scores are written out on CPUs; beyond, their memory costs more than they gain.
MATERIALIZED_KEYS = 640


@dataclass
class Layout:
    """One forward pass: `inline` prefix tokens come first, then the rows of `pack`, if any.

    With `keep`, the prefix's keys and values of each layer are kept in `kept`; with `given`, the rows attend
    to those instead of an inline prefix.
    """

    inline: int
    pack: Pack | None
    keep: bool = False
    kept: dict[int, Pair] = field(default_factory=dict[int, Pair])
    given: dict[int, Pair] | None = None


def fused_attend(query: torch.Tensor, shared: Pair, own: Pair, bias_B11TT: torch.Tensor, scale: float) -> torch.Tensor:
    """Return what `attend` does, by torch's fused kernel: for long rows and for CUDA."""
    batch, heads, length, width = query.shape
    groups, prefix = shared[0].shape[1:3]
    repeat = heads // groups
    key, value = (torch.cat([x.expand(batch, -1, -1, -1), y], dim=2) for x, y in zip(shared, own, strict=True))
    mask = pad(bias_B11TT[:, 0], (prefix, 0)).repeat(1, 1, repeat, 1)
    folded = query.reshape(batch, groups, repeat * length, width)
    out = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scale)
    return out.reshape(batch, heads, length, width)


def _attend(query: torch.Tensor, shared: Pair, own: Pair, bias_B11TT: torch.Tensor, scale: float) -> torch.Tensor:
    keys = shared[0].shape[2] + own[0].shape[2]
    small = query.device.type == "cpu" and keys <= MATERIALIZED_KEYS
    return (attend if small else fused_attend)(query, shared, own, bias_B11TT, scale)


def attend_prefix(query: torch.Tensor, own: Pair, scale: float) -> torch.Tensor:
    """Return the [1, H, P, D] output of causal attention within the prefix."""
    length = query.shape[2]
    if query.device.type != "cpu" or length > MATERIALIZED_KEYS:
        return scaled_dot_product_attention(query, *own, is_causal=True, scale=scale, enable_gqa=True)
    bias = torch.full((length, length), -torch.inf, dtype=query.dtype).triu(1)[None, None, None]
    nothing = (own[0][:, :, :0], own[1][:, :, :0])
    return attend(query, nothing, own, bias, scale)


def _attend_rows(query: torch.Tensor, own: Pair, shared: Pair, pack: Pack, scale: float) -> torch.Tensor:
    """Return [n, H, D] outputs of the packed rows' [H, n, D] queries, [G, n, D] keys and values."""
    outputs: list[torch.Tensor] = []
    for block in pack.blocks:
        rows, longest = block.gather_BT.shape
        index = block.gather_BT.reshape(-1)

        def padded(x: torch.Tensor, index: torch.Tensor = index, rows: int = rows) -> torch.Tensor:
            return x.index_select(1, index).view(x.shape[0], rows, -1, x.shape[2]).transpose(0, 1)

        out = _attend(padded(query), shared, (padded(own[0]), padded(own[1])), block.bias_B11TT.to(query.dtype), scale)
        outputs.append(out.transpose(1, 2).reshape(rows * longest, out.shape[1], out.shape[3]))
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
        outputs.append(attend_prefix(query[:, :, :inline], prefix, scale).transpose(1, 2))
    if layout.keep:
        layout.kept[module.layer_idx] = prefix
    if layout.pack is not None:
        own = (key[0, :, inline:], value[0, :, inline:])
        rows = _attend_rows(query[0, :, inline:], own, prefix, layout.pack, scale)
        outputs.append(rows.unsqueeze(0))
    return torch.cat(outputs, dim=1), None


def shared_prefix_enabled(model: Any) -> AbstractContextManager[None]:
    """Switch the model's attention to `shared_prefix_attention`; its passes then need a layout."""
    return attention(model, _NAME, shared_prefix_attention)
