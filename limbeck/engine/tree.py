"""Many token sequences in one forward pass: a forest of tokens behind one shared prefix.

Every token sees the prefix, its own ancestors and itself, as SpecInfer's tree attention does (Miao et al.
2023, https://arxiv.org/abs/2305.09781). Ragged inputs need no padding and branches share their trunk.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.engine.prefix_cache import Context, KeyValues

ROOT = -1
# Rows of logits turned to fp32 at once: 64 of 150,000 words are 38 MB.
_CHUNK = 64


@dataclass(frozen=True)
class _Chain:
    """Tokens that follow one another from `start` on, under what `sees` says of their parent."""

    start: int
    ids: tuple[int, ...]
    depth: int
    sees: Tensor


class TokenForest:
    """Tokens with parents over a prefix; `append` queues them, `forward` runs the queue in one pass."""

    def __init__(self, model: Any, prefix: KeyValues, device: torch.device, *, room: int) -> None:
        self._context = Context(model, prefix, room=room)
        self._prefix = prefix
        self._device = device
        self._length = 0
        self._queue: list[_Chain] = []
        # For the last token of every chain: which tokens it sees [its index + 1], itself included.
        self._sees: dict[int, Tensor] = {}

    def append(self, ids: Sequence[int], parent: int = ROOT) -> int:
        """Queue a chain of tokens under `parent` (what an earlier call returned, or ROOT); return its last token."""
        start, self._length = self._length, self._length + len(ids)
        above = torch.zeros(start, dtype=torch.bool)
        if parent != ROOT:
            above[: parent + 1] = self._sees[parent]
        self._queue.append(_Chain(start, tuple(ids), int(above.sum()), above))
        self._sees[self._length - 1] = torch.cat([above, torch.ones(len(ids), dtype=torch.bool)])
        return self._length - 1

    def forward(self, wanted: Sequence[int]) -> Tensor:
        """Run the queued tokens; return the logits [wanted, vocabulary] after the wanted ones among them."""
        start, skip = self._queue[0].start, self._prefix.length
        ids = [token for chain in self._queue for token in chain.ids]
        places = [skip + chain.depth + n for chain in self._queue for n in range(len(chain.ids))]
        visible = torch.zeros(1, len(ids), skip + self._length, dtype=torch.bool)
        visible[:, :, :skip] = True
        for chain in self._queue:
            stop = chain.start + len(chain.ids)
            rows = visible[0, chain.start - start : stop - start, skip:]
            rows[:, : chain.start] = chain.sees
            rows[:, chain.start : stop] = torch.ones(len(chain.ids), len(chain.ids), dtype=torch.bool).tril()
        self._queue = []
        return self._context.forward(
            torch.tensor([ids], device=self._device),
            torch.tensor([places], device=self._device),
            visible.to(self._device),
            torch.tensor(wanted, device=self._device) - start,
        )[0]

    def path(self, node: int) -> tuple[KeyValues, Tensor]:
        """Return all keys and values, and the columns of `node`'s ancestors and itself, prefix left out."""
        columns = self._sees[node].nonzero().squeeze(1) + self._prefix.length
        return self._context.key_values(), columns.to(self._device)


def log_probabilities(logits: Tensor, picks: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return for each row of logits [n, vocabulary] the log-probabilities of its picked tokens."""
    found: list[list[float]] = []
    for start in range(0, len(picks), _CHUNK):
        rows = logits[start : start + _CHUNK].float()
        part = picks[start : start + _CHUNK]
        width = max(1, *map(len, part))
        index = torch.tensor([[*row, *[0] * (width - len(row))] for row in part], device=rows.device)
        values = (rows.gather(1, index) - rows.logsumexp(1, keepdim=True)).tolist()
        found += [row[: len(wanted)] for row, wanted in zip(values, part, strict=True)]
    return found
