"""Write rows that share a prompt in one sequence behind it, each seeing the prompt, its input and its own tokens.

The prompt's keys and values are read once a step for all rows, samples of one input share its prefill, and the place
of a row that ends is taken by one that waits (continuous batching).
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from limbeck.engine.batching import Limits, packs
from limbeck.engine.chat import Chat
from limbeck.engine.drafts import Draft, advance
from limbeck.engine.prefix_cache import KeyValues, PrefixCache
from limbeck.engine.requests import Generation
from limbeck.engine.tree import TokenForest

# Tokens a row, for so many rows, that room is kept for at first; the cache grows where rows write more.
_FIRST_ROOM, _PACKED_ROOM = 32, 32
# Waiting rows that are taken in together: each admission is a pass of its own.
_ADMITTED = 8

Ids = tuple[int, ...]


def write_packed(
    prefixes: PrefixCache,
    chat: Chat,
    drafts: Sequence[Draft],
    limits: Limits,
    deliver: Callable[[int, Generation], None],
) -> None:
    """Write drafts of one shared prompt; `deliver(index, result)` as each one ends."""
    prefix, reused = prefixes.get(drafts[0].prompt.ids[: drafts[0].prompt.shared])
    for k, draft in enumerate(drafts):
        draft.cached_tokens = prefix.length if k else reused
    packed = _Rows(prefixes, prefix, drafts, limits.pack_tokens)
    # Rows of one input follow one another, so that its tokens are there when the last of them begins.
    inputs = {ids: n for n, ids in enumerate(dict.fromkeys(draft.prompt.ids for draft in drafts))}
    waiting = sorted(range(len(drafts)), key=lambda i: (inputs[drafts[i].prompt.ids], i), reverse=True)
    alive: dict[int, int] = {}
    while waiting or alive:
        if waiting and len(alive) <= limits.rows - min(_ADMITTED, len(waiting), limits.rows):
            rows = _next_rows(packed, alive, waiting, limits)
            if rows:
                alive |= advance(chat, drafts, rows, packed.admit(rows), deliver)
        if alive:
            rows = list(alive)
            alive = advance(chat, drafts, rows, packed.step(rows, list(alive.values())), deliver)


def _next_rows(packed: _Rows, alive: Iterable[int], waiting: list[int], limits: Limits) -> list[int]:
    """Take from the end of `waiting` what the limits leave room for; one row goes in alone, whatever its size."""
    tokens = sum(map(packed.size, alive))
    free = limits.rows - len(list(alive))
    rows: list[int] = []
    while waiting and len(rows) < free:
        tokens += packed.size(waiting[-1])
        if tokens > limits.tokens and (free < limits.rows or rows):
            break
        rows.append(waiting.pop())
    return rows


class _Rows:
    """The rows as branches of one forest: inputs grow from the prompt, answers from their inputs."""

    def __init__(self, prefixes: PrefixCache, prefix: KeyValues, drafts: Sequence[Draft], pack_tokens: int) -> None:
        self._drafts, self._shared, self._pack_tokens = drafts, prefix.length, pack_tokens
        room = pack_tokens + _FIRST_ROOM * min(len(drafts), _PACKED_ROOM)
        self._forest = TokenForest(prefixes.model, prefix, prefixes.device, room=room)
        # The last token of each row, and of each input admitted last, with the logits after it.
        self._ends: dict[int, int] = {}
        self._inputs: dict[Ids, tuple[int, Tensor]] = {}

    def size(self, row: int) -> int:
        """Return how many tokens a row may come to hold behind the prompt."""
        return len(self._drafts[row].prompt.ids) - self._shared + self._drafts[row].max_tokens

    def admit(self, rows: Sequence[int]) -> Tensor:
        """Run the inputs of new rows, each distinct one once; return the logits [rows, vocabulary] after them."""
        fresh = list(dict.fromkeys(self._drafts[i].prompt.ids for i in rows))
        known = {ids: self._inputs[ids] for ids in fresh if ids in self._inputs}
        new = [ids for ids in fresh if ids not in known]
        for pack in packs([0] * len(new), [len(ids) - self._shared for ids in new], self._pack_tokens):
            ends = [self._forest.append(new[k][self._shared :]) for k in pack]
            logits = self._forest.forward(ends)
            known |= {new[k]: (end, after) for k, end, after in zip(pack, ends, logits, strict=True)}
        self._inputs = known
        found = [known[self._drafts[i].prompt.ids] for i in rows]
        self._ends |= {i: end for i, (end, _) in zip(rows, found, strict=True)}
        return torch.stack([logits for _, logits in found])

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Append one token to each of these rows; return the logits after them."""
        self._keep(rows)
        ends = [self._forest.append([token], self._ends[i]) for i, token in zip(rows, tokens, strict=True)]
        self._ends = dict(zip(rows, ends, strict=True))
        return self._forest.forward(ends)

    def _keep(self, rows: Sequence[int]) -> None:
        """Let go of the branches that no row will look at any more."""
        places = self._forest.prune([*(self._ends[i] for i in rows), *(end for end, _ in self._inputs.values())])
        self._ends = dict(zip(rows, places[: len(rows)], strict=True))
        inputs = zip(self._inputs.items(), places[len(rows) :], strict=True)
        self._inputs = {ids: (end, logits) for (ids, (_, logits)), end in inputs}
