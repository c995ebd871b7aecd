"""Write rows side by side: a left-padded batch, for few rows, long inputs and prompts that differ."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from limbeck.engine.batching import packs
from limbeck.engine.chat import Chat
from limbeck.engine.drafts import Draft, advance
from limbeck.engine.prefix_cache import Context, PrefixCache, Row, row_length
from limbeck.engine.requests import Generation
from limbeck.engine.tree import TokenForest


def write_beside(
    prefixes: PrefixCache,
    chat: Chat,
    drafts: Sequence[Draft],
    pack_tokens: int,
    deliver: Callable[[int, Generation], None],
) -> None:
    """Write all drafts at once; `deliver(index, result)` as each one ends."""
    logits, batch = _start(prefixes, drafts, pack_tokens)
    alive = advance(chat, drafts, range(len(drafts)), logits, deliver)
    while alive:
        rows = list(alive)
        alive = advance(chat, drafts, rows, batch.step(rows, list(alive.values())), deliver)


def _start(prefixes: PrefixCache, drafts: Sequence[Draft], pack_tokens: int) -> tuple[Tensor, _Batch]:
    """Prefill the drafts and lay their rows side by side; the packed keys and values are freed on return."""
    logits, parts = _prefill(prefixes, drafts, pack_tokens)
    return logits, _Batch(prefixes, drafts, parts)


def _prefill(prefixes: PrefixCache, drafts: Sequence[Draft], pack_tokens: int) -> tuple[Tensor, list[Row]]:
    """Return each draft's next-token logits [drafts, vocabulary] and where its keys and values lie."""
    logits: list[Tensor] = [torch.empty(0)] * len(drafts)
    rows: list[Row] = [()] * len(drafts)
    shared = [draft.prompt.ids[: draft.prompt.shared] for draft in drafts]
    lengths = [len(draft.prompt.ids) - draft.prompt.shared for draft in drafts]
    for group in packs(shared, lengths, pack_tokens):
        prefix, reused = prefixes.get(shared[group[0]])
        room = sum(lengths[i] for i in group)
        forest = TokenForest(prefixes.model, prefix, prefixes.device, room=room)
        ends = [forest.append(drafts[i].prompt.ids[len(shared[i]) :]) for i in group]
        after = forest.forward(ends)
        columns = torch.arange(prefix.length, device=prefixes.device)
        for k, i in enumerate(group):
            drafts[i].cached_tokens = reused if k == 0 else prefix.length
            logits[i] = after[k]
            path = forest.path(ends[k])
            rows[i] = ((prefix, columns), path) if prefix.length else (path,)
    return torch.stack(logits), rows


class _Batch:
    """Rows of one length by padding on the left; finished ones leave it once half of it has finished."""

    def __init__(self, prefixes: PrefixCache, drafts: Sequence[Draft], rows: Sequence[Row]) -> None:
        self._device = prefixes.device
        self._alive = list(range(len(drafts)))
        lengths = torch.tensor([row_length(row) for row in rows], device=self._device)
        room = max(draft.max_tokens for draft in drafts)
        self._context = Context.of_rows(prefixes.model, rows, room=room)
        self._positions = lengths
        columns = torch.arange(self._context.length, device=self._device)
        self._visible = columns.unsqueeze(0) >= (self._context.length - lengths).unsqueeze(1)

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Append one token to each of these rows; return the logits after them."""
        self._drop(rows)
        place = {i: k for k, i in enumerate(self._alive)}
        # A finished row that is still in the batch writes anything.
        ids = torch.zeros(len(self._alive), 1, dtype=torch.long, device=self._device)
        chosen = torch.tensor([place[i] for i in rows], device=self._device)
        ids[chosen, 0] = torch.tensor(list(tokens), device=self._device)
        fresh = torch.ones(len(self._alive), 1, dtype=torch.bool, device=self._device)
        self._visible = torch.cat([self._visible, fresh], dim=1)
        logits = self._context.forward(ids, self._positions.unsqueeze(1), self._visible.unsqueeze(1), 1)
        self._positions = self._positions + 1
        return logits[chosen, -1]

    def _drop(self, rows: Sequence[int]) -> None:
        if 2 * len(rows) > len(self._alive):
            return
        staying = torch.tensor([k for k, i in enumerate(self._alive) if i in set(rows)], device=self._device)
        self._context.keep(0, staying)
        self._positions, self._visible = self._positions[staying], self._visible[staying]
        self._alive = list(rows)
