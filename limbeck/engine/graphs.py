"""Passes as CUDA graphs: all kernels of a step that writes a token a row, or of a pack that is read, started at once.

A pass of a small model takes as long as its kernels take to start, one after the other. A graph of them has fixed
shapes and places in memory. Of a batch that is written, keys and values lie in buffers of its own, which the batch
takes over for as long as it fits.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from limbeck.engine.cascade import cascade_enabled
from limbeck.engine.norms import fused_norms

Pairs = Sequence[tuple[Tensor, Tensor]]

# Columns and tokens are rounded up to a multiple, columns with room for some tokens; rows to a power of two.
_COLUMNS, _ROOM, _TOKENS, _KEPT = 256, 32, 256, 64
_WARM_UPS = 2
# What all graphs may take of the memory that is free at first.
_PART = 4

_log = logging.getLogger(__name__)

Step = TypeVar("Step", bound="_Step")


def _like(pairs: Pairs, batch: int, tokens: int) -> list[tuple[Tensor, Tensor]]:
    """Return zeros for so many rows and tokens of keys and values like these, a pair a layer."""

    def zeros(x: Tensor) -> Tensor:
        return x.new_zeros(batch, x.shape[1], tokens, x.shape[3])

    return [(zeros(keys), zeros(values)) for keys, values in pairs]


def padded(number: int, step: int) -> int:
    """Return the number rounded up to a multiple of `step`.

    >>> padded(33, 32)
    64
    """
    return -(-number // step) * step


def captured(run: Callable[[], Tensor], pool: Any = None) -> Callable[[], Tensor]:
    """Return what replays `run` as a CUDA graph, with the same tensors in the same places; `run` is called before.

    What replays returns the same tensor each time. `pool` is memory that other graphs share, which run by turns. Raises
    RuntimeError for what cannot be captured, such as a look at a value.
    """
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class _FixedLayer(DynamicLayer):
    """A cache layer of fixed size: new states are written into the column that `column` [1] names."""

    def __init__(self, keys: Tensor, values: Tensor, column: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._all, self._column = (keys, values), column
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new states; return all columns."""
        new = (key_states, value_states)
        keys, values = (x.index_copy_(2, self._column, states) for x, states in zip(self._all, new, strict=True))
        return keys, values


class _Step(ABC):
    """A pass of fixed shape behind a shared prompt of so many tokens; `like` are keys and values of the layers."""

    def __init__(self, model: Any, like: Pairs, shape: tuple[int, int], columns: int, shared: int) -> None:
        device = like[0][0].device
        self._model = model
        self._ids = torch.zeros(shape, dtype=torch.long, device=device)
        self._positions = torch.zeros(shape, dtype=torch.long, device=device)
        self._lowest = torch.finfo(model.dtype).min
        self._mask = torch.full((shape[0], 1, shape[1], columns), self._lowest, dtype=model.dtype, device=device)
        self._shared, self._seen = _like(like, 1, shared), cast("Pairs | None", None)
        self._run: Callable[[], Tensor] = self._forward

    def see(self, shared: Pairs) -> None:
        """Take the keys and values of the shared prompt."""
        if self._seen is not shared:
            for mine, given in zip(self._shared, shared, strict=True):
                mine[0].copy_(given[0])
                mine[1].copy_(given[1])
            self._seen = shared

    def capture(self) -> None:
        """Make a graph of the pass."""
        self._run = captured(self._forward)

    def _look(self, visible: Tensor) -> None:
        """Write what sees what; `visible` [n, q, columns] is the mask's first part, the rest is seen by none."""
        rows, queries, columns = visible.shape
        self._mask[:rows, 0, :queries, :columns] = torch.where(visible, 0.0, self._lowest).to(self._mask.dtype)
        self._mask[:rows, 0, :, columns:] = self._lowest

    def _pass(self, **options: Any) -> Tensor:
        with cascade_enabled(self._model), fused_norms(self._model):
            output = self._model(
                input_ids=self._ids,
                position_ids=self._positions,
                attention_mask=self._mask,
                shared=self._shared,
                **options,
            )
        return output.logits

    @abstractmethod
    def _forward(self) -> Tensor:
        """Run the pass over the tensors as they are; return the logits."""


class DecodeStep(_Step):
    """One step of `rows` rows over `columns` columns: a token a row."""

    def __init__(self, model: Any, like: Pairs, rows: int, columns: int, shared: int) -> None:
        super().__init__(model, like, (rows, 1), columns, shared)
        self.buffers = _like(like, rows, columns)
        self._column = torch.zeros(1, dtype=torch.long, device=like[0][0].device)

    def __call__(self, ids: Tensor, positions: Tensor, visible: Tensor, column: int) -> Tensor:
        """Write a token a row into this column; return the logits [n, 1, vocabulary], good until the next step.

        `ids` and `positions` are [n, 1], `visible` [n, 1, column + 1].
        """
        n = len(ids)
        self._ids[:n], self._positions[:n] = ids, positions
        self._column.fill_(column)
        self._look(visible)
        return self._run()[:n]

    def _forward(self) -> Tensor:
        layers: list[Any] = [_FixedLayer(keys, values, self._column) for keys, values in self.buffers]
        return self._pass(past_key_values=Cache(layers=layers), use_cache=True, logits_to_keep=1)


class ReadStep(_Step):
    """One pass over `tokens` tokens behind the shared prompt, of which `kept` ones' logits are wanted."""

    def __init__(self, model: Any, like: Pairs, tokens: int, kept: int, shared: int) -> None:
        super().__init__(model, like, (1, tokens), tokens, shared)
        self._keep = torch.zeros(kept, dtype=torch.long, device=like[0][0].device)

    def __call__(self, ids: Tensor, positions: Tensor, visible: Tensor, wanted: Tensor) -> Tensor:
        """Return the logits [wanted, vocabulary], good until the next pass.

        `ids` and `positions` are [1, n], `visible` [1, n, n]: all see the prompt.
        """
        n = ids.shape[1]
        self._ids[:, :n], self._positions[:, :n] = ids, positions
        self._keep[: len(wanted)] = wanted
        self._look(visible)
        return self._run()[0, : len(wanted)]

    def _forward(self) -> Tensor:
        return self._pass(use_cache=False, logits_to_keep=self._keep)


class Graphs:
    """The graphs of one model, the oldest of which leave where they take too much memory.

    `capture` False computes the same passes without graphs.
    """

    def __init__(self, model: Any, *, capture: bool = True) -> None:
        self._model, self._capture = model, capture
        self._steps: OrderedDict[Hashable, tuple[_Step, int]] = OrderedDict()
        self._most = torch.cuda.mem_get_info()[0] // _PART if capture else 0
        self._failed = False

    @property
    def captured(self) -> int:
        """How many passes are kept."""
        return len(self._steps)

    def clear(self) -> None:
        """Forget all graphs, as after a change of the weights."""
        self._steps.clear()

    def decode(self, like: Pairs, rows: int, length: int, shared: Pairs) -> DecodeStep | None:
        """Return the step for so many rows whose next token is number `length`; None where there is no graph for it."""
        size = 1 << (rows - 1).bit_length(), padded(length + _ROOM, _COLUMNS), _tokens(shared)
        return self._found(DecodeStep, size, like, shared)

    def read(self, shared: Pairs, ids: Tensor, positions: Tensor, visible: Tensor, wanted: Tensor) -> Tensor | None:
        """Return the logits [wanted, vocabulary] of tokens [1, n] behind the shared prompt; None: there is no graph."""
        if not shared:
            return None
        size = padded(ids.shape[1], _TOKENS), padded(len(wanted), _KEPT), _tokens(shared)
        step = self._found(ReadStep, size, shared, shared)
        return step(ids, positions, visible[:, :, size[2] :], wanted) if step else None

    def _found(
        self, kind: Callable[[Any, Pairs, int, int, int], Step], size: tuple[int, int, int], like: Pairs, shared: Pairs
    ) -> Step | None:
        key = (kind, size)
        if key not in self._steps and not self._failed:
            self._make(key, lambda: kind(self._model, like, *size))
        if key not in self._steps:
            return None
        self._steps.move_to_end(key)
        step = cast(Step, self._steps[key][0])
        if shared:
            step.see(shared)
        return step

    def _make(self, key: Hashable, make: Callable[[], _Step]) -> None:
        before = torch.cuda.memory_reserved() if self._capture else 0
        try:
            step = make()
            if self._capture:
                step.capture()
        except RuntimeError as error:
            _log.warning("no CUDA graphs for this model: %s", error)
            self._failed = True
            return
        size = max(0, torch.cuda.memory_reserved() - before) if self._capture else 0
        while self._steps and size + sum(taken for _, taken in self._steps.values()) > self._most:
            self._steps.popitem(last=False)
        if size <= self._most:
            self._steps[key] = (step, size)


def _tokens(pairs: Pairs) -> int:
    return pairs[0][0].shape[2] if pairs else 0
