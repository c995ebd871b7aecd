"""Many token sequences in one forward pass: a forest of tokens behind one shared prefix.

Every token sees the prefix, its own ancestors and itself, as SpecInfer's tree attention does (Miao et al.
2023, https://arxiv.org/abs/2305.09781). Ragged inputs need no padding and branches share their trunk.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.engine.prefix_cache import Context, KeyValues

ROOT = -1
# Rows of logits turned to fp32 at once: 64 of 150,000 words are 38 MB.
_CHUNK = 64


class TokenForest:
    """Tokens with parents over a prefix; `append` queues them, `forward` runs the queue in one pass."""

    def __init__(self, model: Any, prefix: KeyValues, device: torch.device, *, room: int) -> None:
        self._context = Context(model, prefix, room=room)
        self._prefix = prefix
        self._device = device
        self._ids: list[int] = []
        self._depths: list[int] = []
        self._done = 0
        self._sees = torch.zeros(room, room, dtype=torch.bool)

    def append(self, ids: Sequence[int], parent: int = ROOT) -> int:
        """Queue a chain of tokens under `parent` (an index, or ROOT); return its last token's index."""
        start, stop = len(self._ids), len(self._ids) + len(ids)
        self._reserve(stop)
        depth = 0 if parent == ROOT else self._depths[parent] + 1
        if parent != ROOT:
            self._sees[start:stop] = self._sees[parent]
        self._sees[start:stop, start:stop] = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        self._ids += ids
        self._depths += range(depth, depth + len(ids))
        return stop - 1

    def forward(self, wanted: Sequence[int]) -> Tensor:
        """Run the queued tokens; return the logits [wanted, vocabulary] after the wanted ones among them."""
        start, stop = self._done, len(self._ids)
        ids = torch.tensor([self._ids[start:stop]], device=self._device)
        positions = torch.tensor([self._depths[start:stop]], device=self._device) + self._prefix.length
        visible = torch.ones(1, stop - start, self._prefix.length + stop, dtype=torch.bool)
        visible[0, :, self._prefix.length :] = self._sees[start:stop, :stop]
        keep = torch.tensor(wanted, device=self._device) - start
        self._done = stop
        return self._context.forward(ids, positions, visible.to(self._device), keep)[0]

    def path(self, node: int) -> tuple[KeyValues, Tensor]:
        """Return all keys and values, and the columns of `node`'s ancestors and itself, prefix left out."""
        columns = self._sees[node, : node + 1].nonzero().squeeze(1) + self._prefix.length
        return self._context.key_values(), columns.to(self._device)

    def _reserve(self, size: int) -> None:
        known = self._sees.shape[0]
        if size > known:
            grown = torch.zeros(2 * size, 2 * size, dtype=torch.bool)
            grown[:known, :known] = self._sees
            self._sees = grown


def log_probabilities(logits: Tensor, picks: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return for each row of logits [n, vocabulary] the log-probabilities of its picked tokens."""
    found: list[list[float]] = []
    for start in range(0, len(picks), _CHUNK):
        rows = logits[start : start + _CHUNK].float()
        part = picks[start : start + _CHUNK]
        width = max(map(len, part))
        index = torch.tensor([[*row, *[0] * (width - len(row))] for row in part], device=rows.device)
        values = (rows.gather(1, index) - rows.logsumexp(1, keepdim=True)).tolist()
        found += [row[: len(wanted)] for row, wanted in zip(values, part, strict=True)]
    return found
