"""Many token sequences in one forward pass: a forest of tokens behind one shared prefix.

Every token sees the prefix, its own ancestors and itself, as SpecInfer's tree attention does (Miao et al.
2023, https://arxiv.org/abs/2305.09781). Ragged inputs need no padding and branches share their trunk.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from limbeck.engine.graphs import Graphs
from limbeck.engine.prefix_cache import Context, KeyValues

Seen = npt.NDArray[np.bool_]

ROOT = -1
# Rows of logits turned to fp32 at once: 64 of 150,000 words are 38 MB. A GPU takes more of them in one go.
_CHUNK, _CHUNK_GPU = 64, 1024


@dataclass(frozen=True)
class _Chain:
    """Tokens that follow one another from `start` on, under what `sees` says of their parent."""

    start: int
    ids: tuple[int, ...]
    depth: int
    sees: Seen


class TokenForest:
    """Tokens with parents over a prefix; `append` queues them, `forward` runs the queue in one pass."""

    def __init__(
        self,
        model: Any,
        prefix: KeyValues,
        device: torch.device,
        *,
        room: int,
        graphs: Graphs | None = None,
    ) -> None:
        self._graphs = graphs
        self._model, self._room = model, room
        self._prefix = prefix
        self._device = device
        self._length = 0
        self._queue: list[_Chain] = []
        # For the last token of every chain: which tokens it sees [its index + 1], itself included.
        self._sees: dict[int, Seen] = {}

    @cached_property
    def _context(self) -> Context:
        """The prefix and what has been read behind it; a pass by a graph needs none."""
        return Context(self._model, self._prefix, room=self._room)

    def append(self, ids: Sequence[int], parent: int = ROOT) -> int:
        """Queue a chain of tokens under `parent` (what an earlier call returned, or ROOT); return its last token."""
        start, self._length = self._length, self._length + len(ids)
        above = np.zeros(start, bool)
        if parent != ROOT:
            above[: parent + 1] = self._sees[parent]
        self._queue.append(_Chain(start, tuple(ids), int(above.sum()), above))
        self._sees[self._length - 1] = np.concatenate([above, np.ones(len(ids), bool)])
        return self._length - 1

    def forward(self, wanted: Sequence[int], *, last: bool = False) -> Tensor:
        """Run the queued tokens; return the logits [wanted, vocabulary] after the wanted ones among them.

        `last`: nothing is asked of the forest afterwards, so that a graph can take the pass.
        """
        start, skip = self._queue[0].start, self._prefix.length
        ids = [token for chain in self._queue for token in chain.ids]
        places = [skip + chain.depth + n for chain in self._queue for n in range(len(chain.ids))]
        visible = np.zeros((len(ids), skip + self._length), bool)
        visible[:, :skip] = True
        for chain in self._queue:
            stop = chain.start + len(chain.ids)
            rows = visible[chain.start - start : stop - start, skip:]
            rows[:, : chain.start] = chain.sees
            rows[:, chain.start : stop] = np.tri(len(chain.ids), dtype=bool)
        self._queue = []
        given = (
            torch.tensor([ids], device=self._device),
            torch.tensor([places], device=self._device),
            torch.from_numpy(visible).unsqueeze(0).to(self._device),
            torch.tensor(wanted, device=self._device) - start,
        )
        if last and self._graphs and not start:
            logits = self._graphs.read(self._prefix.layers, *given)
            if logits is not None:
                return logits
        return self._context.forward(*given)[0]

    def path(self, node: int) -> tuple[KeyValues, Tensor]:
        """Return all keys and values, and the columns of `node`'s ancestors and itself, prefix left out."""
        columns = np.flatnonzero(self._sees[node]) + self._prefix.length
        return self._context.key_values(), torch.from_numpy(columns).to(self._device)


def log_probabilities(logits: Tensor, picks: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return for each row of logits [n, vocabulary] the log-probabilities of its picked tokens."""
    found: list[list[float]] = []
    chunk = _CHUNK if logits.device.type == "cpu" else _CHUNK_GPU
    for start in range(0, len(picks), chunk):
        rows = logits[start : start + chunk].float()
        part = picks[start : start + chunk]
        width = max(1, *map(len, part))
        index = torch.tensor([[*row, *[0] * (width - len(row))] for row in part], device=rows.device)
        values = (rows.gather(1, index) - rows.logsumexp(1, keepdim=True)).tolist()
        found += [row[: len(wanted)] for row, wanted in zip(values, part, strict=True)]
    return found
