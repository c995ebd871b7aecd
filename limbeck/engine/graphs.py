"""Decoding steps as CUDA graphs: a token a row for all rows of a batch, started as a whole.

A step of a small model takes as long as its kernels take to start, one after the other. A graph of them has fixed
shapes and places in memory: keys and values lie in buffers of its own, which a batch takes over for as long as it fits.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from limbeck.engine.cascade import cascade_enabled

Pairs = Sequence[tuple[Tensor, Tensor]]

# Columns are rounded up to a multiple, with room for some tokens; rows to a power of two.
_COLUMNS, _ROOM = 256, 32
_WARM_UPS = 2
# What all graphs' buffers may take of the memory that is free at first.
_PART = 4

_log = logging.getLogger(__name__)


class _FixedLayer(DynamicLayer):
    """A cache layer of fixed size: new states are written into the column that `column` [1] names."""

    def __init__(self, keys: Tensor, values: Tensor, column: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._all, self._column = (keys, values), column
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new states; return all columns."""
        keys, values = (
            x.index_copy_(2, self._column, new) for x, new in zip(self._all, (key_states, value_states), strict=True)
        )
        return keys, values


class DecodeStep:
    """One step of `rows` rows over `columns` columns and a shared prompt; `like` are keys and values of its layers."""

    def __init__(self, model: Any, like: Pairs, rows: int, columns: int, shared: int, capture: bool) -> None:
        self._model, self.rows, self.columns = model, rows, columns
        device = like[0][0].device

        def zeros(batch: int, tokens: int) -> list[tuple[Tensor, Tensor]]:
            return [
                (k.new_zeros(batch, k.shape[1], tokens, k.shape[3]), v.new_zeros(batch, v.shape[1], tokens, v.shape[3]))
                for k, v in like
            ]

        self.buffers, self._shared = zeros(rows, columns), zeros(1, shared)
        self._ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._positions = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._column = torch.zeros(1, dtype=torch.long, device=device)
        self._lowest = torch.finfo(model.dtype).min
        self._mask = torch.full((rows, 1, 1, columns), self._lowest, dtype=model.dtype, device=device)
        self._seen: Pairs | None = None
        self._run = self._captured() if capture else self._forward

    @property
    def bytes(self) -> int:
        """What the buffers take."""
        return sum(x.numel() * x.element_size() for pair in (*self.buffers, *self._shared) for x in pair)

    def see(self, shared: Pairs) -> None:
        """Take the keys and values of the shared prompt."""
        if self._seen is not shared:
            for mine, given in zip(self._shared, shared, strict=True):
                mine[0].copy_(given[0])
                mine[1].copy_(given[1])
            self._seen = shared

    def __call__(self, ids: Tensor, positions: Tensor, visible: Tensor, column: int) -> Tensor:
        """Write a token a row into this column; return the logits [n, 1, vocabulary], good until the next step.

        `ids` and `positions` are [n, 1], `visible` [n, 1, column + 1].
        """
        n = len(ids)
        self._ids[:n], self._positions[:n] = ids, positions
        self._column.fill_(column)
        self._mask[:n, 0, :, : column + 1] = torch.where(visible, 0.0, self._lowest).to(self._mask.dtype)
        self._mask[:n, 0, :, column + 1 :] = self._lowest
        return self._run()[:n]

    def _forward(self) -> Tensor:
        layers: list[Any] = [_FixedLayer(keys, values, self._column) for keys, values in self.buffers]
        with cascade_enabled(self._model):
            output = self._model(
                input_ids=self._ids,
                position_ids=self._positions,
                attention_mask=self._mask,
                past_key_values=Cache(layers=layers),
                use_cache=True,
                logits_to_keep=1,
                shared=self._shared,
            )
        return output.logits

    def _captured(self) -> Callable[[], Tensor]:
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self._forward()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            logits = self._forward()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay


class DecodeGraphs:
    """The graphs of one model, the oldest of which leave where their buffers take too much memory.

    `capture` False computes the same steps over the same buffers without graphs.
    """

    def __init__(self, model: Any, *, capture: bool = True) -> None:
        self._model, self._capture = model, capture
        self._steps: OrderedDict[tuple[int, int, int], DecodeStep] = OrderedDict()
        self._most = torch.cuda.mem_get_info()[0] // _PART if capture else 1 << 40
        self._failed = False

    @property
    def captured(self) -> int:
        """How many steps are kept."""
        return len(self._steps)

    def clear(self) -> None:
        """Forget all graphs, as after a change of the weights."""
        self._steps.clear()

    def step(self, like: Pairs, rows: int, length: int, shared: Pairs) -> DecodeStep | None:
        """Return the step for so many rows whose next token is number `length`; None where there is no graph for it."""
        columns = -(-(length + _ROOM) // _COLUMNS) * _COLUMNS
        key = (1 << (rows - 1).bit_length(), columns, shared[0][0].shape[2] if shared else 0)
        if key not in self._steps and not self._failed:
            self._make(like, key)
        if key not in self._steps:
            return None
        self._steps.move_to_end(key)
        if shared:
            self._steps[key].see(shared)
        return self._steps[key]

    def _make(self, like: Pairs, key: tuple[int, int, int]) -> None:
        try:
            step = DecodeStep(self._model, like, *key, capture=self._capture)
        except RuntimeError as error:
            _log.warning("no CUDA graphs for this model: %s", error)
            self._failed = True
            return
        while self._steps and step.bytes + sum(one.bytes for one in self._steps.values()) > self._most:
            self._steps.popitem(last=False)
        if step.bytes <= self._most:
            self._steps[key] = step
