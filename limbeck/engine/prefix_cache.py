"""Keys and values of shared prompts, kept between calls; the one module that knows transformers' caches.

Rows that share a prompt are packed into one sequence of batch size 1 behind the prompt's keys and values:
an attention mask lets each token see the prompt and its own ancestors only, so nothing is padded or copied
(tree attention, Miao et al. 2023, https://arxiv.org/abs/2305.09781). For decoding, each row's keys and values
are gathered once into a left-padded batch with room for the new tokens.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicLayer

from limbeck.engine.cascade import cascade_enabled
from limbeck.engine.chat import common_length
from limbeck.engine.graphs import DecodeStep, Graphs

# Below this, one more forward pass costs more than the reused tokens save.
_WORTH_REUSING = 16
# Tokens that a text which goes on may have unread: a field's header, with what is tokenized otherwise before it.
_HEADER = 32
# A full cache grows to half as many times its size, so that one token a step does not copy all every time.
_GROWTH = 3


@dataclass(frozen=True)
class KeyValues:
    """Keys and values of `length` tokens: per layer two tensors of [1, heads, length, head size]."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    length: int

    def first(self, length: int) -> KeyValues:
        """Return those of the first `length` tokens, without copying."""
        cut = tuple((keys[:, :, :length], values[:, :, :length]) for keys, values in self.layers)
        return KeyValues(cut, length)


EMPTY = KeyValues((), 0)

# A row of a batch: parts laid end to end, each some columns of some keys and values.
Row = Sequence[tuple[KeyValues, Tensor]]


class _GrowingLayer(DynamicLayer):
    """A cache layer with spare room: appending writes in place instead of copying everything before it."""

    def __init__(self, buffers: tuple[Tensor, Tensor] | None = None, length: int = 0) -> None:
        super().__init__()
        self._buffers = buffers
        self._length = length
        if buffers is not None:
            self.lazy_initialization(*buffers)
            self._show()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the new states; return all states so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self._length = self._length, self._length + key_states.shape[2]
        if self._buffers is None or self._length > self._buffers[0].shape[2]:
            size = (
                self._length if self._buffers is None else max(self._length, _GROWTH * self._buffers[0].shape[2] // 2)
            )
            self._buffers = _widened(self._buffers, key_states, start, size)
        self._buffers[0][:, :, start : self._length] = key_states
        self._buffers[1][:, :, start : self._length] = value_states
        return self._show()

    @property
    def buffers(self) -> tuple[Tensor, Tensor]:
        """Where keys and values lie, room for further ones included."""
        if self._buffers is None:
            raise RuntimeError("nothing has been written")
        return self._buffers

    def move(self, buffers: tuple[Tensor, Tensor]) -> None:
        """Go on in these buffers, with all states so far."""
        for new, old in zip(buffers, self.buffers, strict=True):
            new[:, :, : self._length] = old[:, :, : self._length]
        self._buffers = buffers
        self._show()

    def wrote(self, tokens: int) -> None:
        """Count states that were written into the buffers."""
        self._length += tokens
        self._show()

    def keep(self, dim: int, index: Tensor) -> None:
        """Keep only these rows of the batch (`dim` 0) or these tokens (`dim` 2)."""
        if self._buffers is not None:
            self._buffers = (self._buffers[0].index_select(dim, index), self._buffers[1].index_select(dim, index))
            self._length = int(index.numel()) if dim == 2 else self._length
            self._show()

    def add_rows(self, rows: int) -> None:
        """Add rows to the batch, of zeros."""
        if self._buffers is not None:
            keys, values = (pad(buffer, (0, 0, 0, 0, 0, 0, 0, rows)) for buffer in self._buffers)
            self._buffers = (keys, values)
            self._show()

    def put(self, places: Tensor, states: tuple[Tensor, ...]) -> None:
        """Overwrite these rows of the batch by left-padded others, of as many tokens as there are or more."""
        if self._buffers is None:
            raise RuntimeError("no rows to overwrite")
        missing = states[0].shape[2] - self._length
        if missing > 0:
            keys, values = (pad(buffer[:, :, : self._length], (0, 0, missing, 0)) for buffer in self._buffers)
            self._buffers, self._length = (keys, values), self._length + missing
        for buffer, new in zip(self._buffers, states, strict=True):
            buffer[places, :, : self._length] = new
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = (buffer[:, :, : self._length] for buffer in cast(Any, self._buffers))
        self.keys, self.values = keys, values
        return keys, values


class Context:
    """Forward passes over a growing cache: the model, its keys and values so far, and the right mask.

    `room` is how many tokens will be appended, to reserve their memory once. `graphs` take passes of a token a row.
    """

    _graphs: Graphs | None = None

    def __init__(self, model: Any, start: KeyValues = EMPTY, *, room: int = 0) -> None:
        buffers = [tuple(_reserved(states, start.length, room) for states in layer) for layer in start.layers]
        self._take(model, buffers, start.length)

    @classmethod
    def of_rows(cls, model: Any, rows: Sequence[Row], *, room: int, graphs: Graphs | None = None) -> Context:
        """Return the context of a left-padded batch, each row laid end to end from its parts."""
        context = cls.__new__(cls)
        longest = max(map(row_length, rows))
        layers = range(len(rows[0][0][0].layers))
        buffers = [tuple(_gathered(rows, layer, which, longest, room) for which in (0, 1)) for layer in layers]
        context._take(model, buffers, longest)
        context._graphs = graphs
        return context

    def _take(self, model: Any, buffers: Sequence[tuple[Tensor, ...]], length: int) -> None:
        self._model = model
        self.length = length
        if buffers:
            self._cache = Cache(layers=[_GrowingLayer((keys, values), length) for keys, values in buffers])
        else:
            self._cache = Cache(layer_class_to_replicate=_GrowingLayer)

    @torch.inference_mode()
    def forward(
        self, ids: Tensor, positions: Tensor, visible: Tensor, keep: Tensor | int, shared: KeyValues = EMPTY
    ) -> Tensor:
        """Append tokens [batch, n] and return the logits [batch, kept, vocabulary] at the kept ones.

        `visible` [batch, n, length + n] is True where a token may look; `keep` is an index of positions,
        or how many of the last ones. All rows see `shared` before their own tokens. Logits of a graph are good until
        the next pass.
        """
        if self._graphs and ids.shape[1] == 1:
            step = self._entered(self._graphs, len(ids), shared)
            if step is not None:
                logits = step(ids, positions, visible, self.length)
                for layer in self._layers:
                    layer.wrote(1)
                self.length += 1
                return logits
        with cascade_enabled(self._model) if shared.length else nullcontext():
            output = self._model(
                input_ids=ids,
                position_ids=positions,
                attention_mask=_mask(self._model, visible),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=keep,
                **({"shared": shared.layers} if shared.length else {}),
            )
        self.length += ids.shape[1]
        return output.logits

    @property
    def _layers(self) -> list[_GrowingLayer]:
        return cast("list[_GrowingLayer]", self._cache.layers)

    def _entered(self, graphs: Graphs, rows: int, shared: KeyValues) -> DecodeStep | None:
        """Return the graph's step for the next token, whose buffers hold the states so far; None: there is none."""
        like = [layer.buffers for layer in self._layers]
        step = graphs.decode(like, rows, self.length, shared.layers)
        if step is not None and like[0][0].data_ptr() != step.buffers[0][0].data_ptr():
            for layer, (keys, values) in zip(self._layers, step.buffers, strict=True):
                layer.move((keys[:rows], values[:rows]))
        return step

    @torch.inference_mode()
    def add_rows(self, rows: int) -> None:
        """Add rows to a batch; `put` fills them."""
        for layer in self._layers:
            layer.add_rows(rows)

    @torch.inference_mode()
    def put(self, places: Sequence[int], rows: Sequence[Row]) -> None:
        """Overwrite these rows of a batch by others, each laid end to end from its parts."""
        longest = max(self.length, *map(row_length, rows))
        index = torch.tensor(places, device=rows[0][0][1].device)
        for layer, kept in enumerate(self._layers):
            kept.put(index, tuple(_gathered(rows, layer, which, longest, 0) for which in (0, 1)))
        self.length = longest

    def keep(self, dim: int, index: Tensor) -> None:
        """Keep only these rows of the batch (`dim` 0) or these tokens (`dim` 2)."""
        for layer in self._layers:
            layer.keep(dim, index)
        self.length = int(index.numel()) if dim == 2 else self.length

    @torch.inference_mode()
    def row(self, place: int, length: int) -> KeyValues:
        """Return a copy of the last `length` states of a row of a batch."""
        columns = slice(self.length - length, self.length)
        states = ((cast(Tensor, x.keys)[place, None], cast(Tensor, x.values)[place, None]) for x in self._layers)
        return KeyValues(tuple((k[:, :, columns].clone(), v[:, :, columns].clone()) for k, v in states), length)

    def key_values(self) -> KeyValues:
        """Return the keys and values so far."""
        return KeyValues(tuple((cast(Tensor, x.keys), cast(Tensor, x.values)) for x in self._layers), self.length)


def joined(row: Row) -> KeyValues:
    """Return a row's keys and values end to end."""
    layers = range(len(row[0][0].layers))
    length = row_length(row)
    return KeyValues(
        tuple((_gathered([row], k, 0, length, 0), _gathered([row], k, 1, length, 0)) for k in layers), length
    )


def row_length(row: Row) -> int:
    """Return how many tokens a row's parts have together."""
    return sum(int(columns.numel()) for _, columns in row)


def causal(start: int, stop: int, device: torch.device) -> Tensor:
    """Return the mask [1, stop - start, stop] with which each token sees itself and all before it."""
    queries = torch.arange(start, stop, device=device).unsqueeze(1)
    return (torch.arange(stop, device=device).unsqueeze(0) <= queries).unsqueeze(0)


def _mask(model: Any, visible: Tensor) -> Tensor:
    """Return [batch, 1, n, total]: booleans for SDPA, numbers to add for the plain attention."""
    mask = visible.unsqueeze(1)
    if model.config._attn_implementation == "sdpa":
        return mask
    lowest = torch.finfo(model.dtype).min
    return torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(~mask, lowest)


def _reserved(states: Tensor, length: int, room: int) -> Tensor:
    """Return a copy of the first `length` states with room for more behind them."""
    batch, heads, _, width = states.shape
    buffer = states.new_empty(batch, heads, length + room, width)
    buffer[:, :, :length] = states[:, :, :length]
    return buffer


def _widened(buffers: tuple[Tensor, Tensor] | None, like: Tensor, length: int, size: int) -> tuple[Tensor, Tensor]:
    """Return buffers of `size` tokens that begin with the first `length` states of the old ones."""
    if buffers is None:
        batch, heads, _, width = like.shape
        return like.new_empty(batch, heads, size, width), like.new_empty(batch, heads, size, width)
    return _reserved(buffers[0], length, size - length), _reserved(buffers[1], length, size - length)


def _gathered(rows: Sequence[Row], layer: int, which: int, longest: int, room: int) -> Tensor:
    like = rows[0][0][0].layers[layer][which]
    # Zeros, not garbage: a masked NaN would still poison the row.
    out = like.new_zeros(len(rows), like.shape[1], longest + room, like.shape[3])
    for i, row in enumerate(rows):
        stop = longest
        for part, columns in reversed(row):
            start = stop - int(columns.numel())
            out[i, :, start:stop] = part.layers[layer][which][0].index_select(1, columns)
            stop = start
    return out


@dataclass(frozen=True)
class Ended:
    """A text that has ended: the tokens read for it, and the states of those from `start` on."""

    ids: tuple[int, ...]
    start: int
    states: KeyValues

    def row(self, prefix: KeyValues, start: int, stop: int) -> Row:
        """Return the states of the tokens from `start` to `stop`, those before its own from the prompt's prefix."""
        device = self.states.layers[0][0].device
        before = torch.arange(start, max(start, self.start), device=device)
        columns = torch.arange(max(0, start - self.start), stop - self.start, device=device)
        return ((prefix, before), (self.states, columns)) if len(before) else ((self.states, columns),)


class EndedTexts:
    """Texts that ended last, at most `capacity` tokens: a call for the next field of the same answer goes on there."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: list[tuple[tuple[int, ...], Ended]] = []

    def keep(self, asked: tuple[int, ...], text: Ended) -> None:
        """Keep a text that answers the prompt `asked`; the oldest leave."""
        self._entries.append((asked, text))
        while self._entries and sum(one.states.length for _, one in self._entries) > self._capacity:
            self._entries.pop(0)

    def find(self, ids: tuple[int, ...], asked: int) -> tuple[Ended, int] | None:
        """Return the text with which an answer begins, and how many of its tokens they share.

        `ids` are the prompt's `asked` tokens and the answer so far; one of them at least stays to be read. None where
        more than a header would be left.
        """
        best, most = None, max(asked, len(ids) - 1 - _HEADER)
        for prompt, text in self._entries:
            if prompt == ids[:asked] and (length := min(common_length(text.ids, ids), len(ids) - 1)) > most:
                best, most = text, length
        return (best, most) if best else None

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()


@dataclass
class PrefixCache:
    """Keys and values of the prompts seen last, at most `capacity` tokens of them, the oldest leave first.

    A new prompt that begins like a kept one is computed from where they part. `ended` holds half as many tokens of
    texts that ended. `graphs` take the steps of batches that are written.
    """

    model: Any
    device: torch.device
    capacity: int
    graphs: Graphs | None = None
    _entries: OrderedDict[tuple[int, ...], KeyValues] = field(default_factory=OrderedDict[tuple[int, ...], KeyValues])
    ended: EndedTexts = field(init=False)

    def __post_init__(self) -> None:
        self.ended = EndedTexts(self.capacity // 2)

    def get(self, ids: tuple[int, ...]) -> tuple[KeyValues, int]:
        """Return the prefix's keys and values, and how many of its tokens were kept from earlier."""
        if not ids:
            return EMPTY, 0
        if ids in self._entries:
            self._entries.move_to_end(ids)
            return self._entries[ids], len(ids)
        start, reused = self._nearest(ids)
        context = Context(self.model, start)
        context.forward(
            torch.tensor([ids[reused:]], device=self.device),
            torch.arange(reused, len(ids), device=self.device).unsqueeze(0),
            causal(reused, len(ids), self.device),
            1,
        )
        entry = context.key_values()
        self._entries[ids] = entry
        self._evict()
        return entry, reused

    def clear(self) -> None:
        """Forget everything, as after a change of the weights."""
        self._entries.clear()
        self.ended.clear()
        if self.graphs:
            self.graphs.clear()

    @property
    def tokens(self) -> int:
        """How many tokens are kept."""
        return sum(entry.length for entry in self._entries.values())

    def _nearest(self, ids: tuple[int, ...]) -> tuple[KeyValues, int]:
        best, length = EMPTY, 0
        for known, entry in self._entries.items():
            shared = min(common_length(known, ids), len(ids) - 1)
            if shared > length:
                best, length = entry, shared
        return (best.first(length), length) if length >= _WORTH_REUSING else (EMPTY, 0)

    def _evict(self) -> None:
        while len(self._entries) > 1 and self.tokens > self.capacity:
            self._entries.popitem(last=False)
