"""Write texts side by side, the place of one that ends taken by one that waits (continuous batching, Yu et al. 2022).

Rows of one shared prompt see its keys and values without a copy each; of other rows the prompt is their own. Samples of
one input that begin together share its prefill. An answer that goes on with its next field reads that field's header
alone, a token a step beside the others.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.engine.batching import packs
from limbeck.engine.chat import Chat
from limbeck.engine.drafts import Draft, advance
from limbeck.engine.prefix_cache import EMPTY, Context, Ended, KeyValues, PrefixCache, Row, row_length
from limbeck.engine.requests import Generation
from limbeck.engine.tree import TokenForest

# Waiting rows that are taken in together: each admission is a pass of its own.
_ADMITTED = 8
# Late texts a place until a batch takes in no more: what it holds stays bounded, other batches have their turn.
_TURNS = 16
# New tokens that a batch has room for at first, and columns that no row needs any more from which on cutting them pays.
_ROOM, _SLACK = 64, 64

Ids = tuple[int, ...]


def write(
    prefixes: PrefixCache,
    chat: Chat,
    drafts: list[Draft],
    work: Work,
    deliver: Callable[[Draft, Generation], None],
    more: Callable[[], Sequence[Draft]],
) -> None:
    """Write all drafts, and those that `more()` adds while it runs; `deliver(draft, result)` as each one ends.

    A batch that callers keep busy ends all the same.
    """
    batch = _Batch(prefixes, drafts, work)

    def told(i: int, result: Generation) -> None:
        # Before its caller can go on from it.
        batch.keep(i)
        deliver(drafts[i], result)

    # Rows of one input follow one another, the longest inputs first.
    inputs = {ids: n for n, ids in enumerate(dict.fromkeys(draft.prompt.ids for draft in drafts))}
    order = sorted(range(len(drafts)), key=lambda i: (-len(drafts[i].prompt.ids), inputs[drafts[i].prompt.ids], i))
    alive: dict[int, int] = {}
    most = len(drafts) + _TURNS * work.places
    while order or alive:
        free = work.places - len(alive)
        if free >= min(_ADMITTED, work.places) and len(drafts) < most:
            late = more()
            order += range(len(drafts), len(drafts) + len(late))
            drafts.extend(late)
        if order and free >= min(_ADMITTED, work.places, len(order)):
            rows, order = order[:free], order[free:]
            alive |= advance(chat, drafts, rows, batch.admit(rows, list(alive)), told)
        if alive:
            rows = list(alive)
            alive = advance(chat, drafts, rows, batch.step(rows, list(alive.values()), not order), told)


@dataclass(frozen=True)
class Work:
    """How drafts are written: `places` at once, prompts read in packs of so many tokens.

    With `shares` all prompts begin with the same shared tokens, which are read once for all rows.
    """

    places: int
    pack_tokens: int
    shares: bool


@dataclass(frozen=True)
class _Read:
    """A prompt that has been read: the row's keys and values, and the logits [vocabulary] after it."""

    row: Row
    logits: Tensor
    cached_tokens: int


class _Batch:
    """Rows padded on the left to one length. A row that has ended stays in its place until another one takes it."""

    def __init__(self, prefixes: PrefixCache, drafts: Sequence[Draft], work: Work) -> None:
        self._prefixes, self._drafts, self._work = prefixes, drafts, work
        # What all rows see before their own tokens.
        self._shared = EMPTY
        # Per place: the row that is there, and how many tokens of its own it has.
        self._rows: list[int] = []
        self._own = torch.zeros(0, dtype=torch.long)
        self._context = Context(prefixes.model)
        self._read: dict[Ids, _Read] = {}

    def admit(self, rows: Sequence[int], alive: Sequence[int]) -> Tensor:
        """Read the prompts of new rows and give them places; return the logits [rows, vocabulary] after them.

        Those of rows that go on from a text that ended say nothing: their prompts have unread tokens.
        """
        going_on = {i: one for i in rows if (one := self._going_on(self._drafts[i])) is not None}
        self._read = self._prefilled([i for i in rows if i not in going_on])
        found = [going_on[i] if i in going_on else self._read[self._drafts[i].prompt.ids] for i in rows]
        lengths = torch.tensor([row_length(one.row) for one in found])
        if alive:
            staying = set(alive)
            free = [place for place, row in enumerate(self._rows) if row not in staying][: len(rows)]
            if missing := len(rows) - len(free):
                free += range(len(self._rows), len(self._rows) + missing)
                self._context.add_rows(missing)
                self._rows += rows[:missing]
                self._own = torch.cat([self._own, self._own.new_zeros(missing)])
            self._context.put(free, [one.row for one in found])
            for place, row in zip(free, rows, strict=True):
                self._rows[place] = row
            self._own[free] = lengths
        else:
            room = min(_ROOM, max(self._drafts[i].max_tokens for i in rows))
            rows_found = [one.row for one in found]
            self._context = Context.of_rows(self._prefixes.model, rows_found, room=room, graphs=self._prefixes.graphs)
            self._rows, self._own = list(rows), lengths
        return torch.stack([one.logits for one in found])

    def step(self, rows: Sequence[int], tokens: Sequence[int], last: bool) -> Tensor:
        """Append one token to each of these rows; return the logits after them. `last`: no row waits any more."""
        place = self._places(rows, last)
        chosen = torch.tensor([place[i] for i in rows])
        ids = torch.zeros(len(self._rows), 1, dtype=torch.long)
        ids[chosen, 0] = torch.tensor(list(tokens))
        positions = self._shared.length + self._own
        self._own = self._own + 1
        columns = torch.arange(self._context.length + 1)
        visible = columns.unsqueeze(0) >= (len(columns) - self._own).unsqueeze(1)
        device = self._prefixes.device
        logits = self._context.forward(
            ids.to(device), positions.unsqueeze(1).to(device), visible.unsqueeze(1).to(device), 1, self._shared
        )
        return logits[chosen.to(device), -1]

    def keep(self, row: int) -> None:
        """Keep what was read for a row that has just ended, where its answer may go on."""
        draft, place = self._drafts[row], self._rows.index(row)
        if 0 < draft.asked < len(draft.prompt.ids):
            own = int(self._own[place])
            ids = (*draft.prompt.ids, *draft.written)[: self._shared.length + own]
            ended = Ended(ids, self._shared.length, self._context.row(place, own))
            self._prefixes.ended.keep(draft.prompt.ids[: draft.asked], ended)

    def _going_on(self, draft: Draft) -> _Read | None:
        """Return what is known of a row whose answer goes on from a text that ended; it is left to read the rest."""
        prompt, model = draft.prompt, self._prefixes.model
        if not draft.asked or (found := self._prefixes.ended.find(prompt.ids, draft.asked)) is None:
            return None
        (ended, known), (prefix, _) = found, self._prefixes.get(prompt.ids[: prompt.shared])
        if self._work.shares:
            self._shared = prefix
        draft.unread.extend(prompt.ids[known:])
        draft.cached_tokens = known
        none = torch.zeros(model.config.vocab_size, dtype=model.dtype, device=self._prefixes.device)
        return _Read(ended.row(prefix, self._shared.length, known), none, known)

    def _places(self, rows: Sequence[int], last: bool) -> dict[int, int]:
        """Return where these rows are, after letting go of what none of them needs."""
        staying, device = set(rows), self._prefixes.device
        ended = torch.tensor([row not in staying for row in self._rows])
        if last and 2 * len(rows) <= len(self._rows):
            kept = (~ended).nonzero().squeeze(1)
            self._context.keep(0, kept.to(device))
            self._rows, self._own = [self._rows[k] for k in kept.tolist()], self._own[kept]
        else:
            # What has ended writes on, unseen: it begins anew each time, so that its positions stay within the context.
            self._own = self._own.masked_fill(ended, 0)
        excess = self._context.length - int(self._own.max())
        if excess >= _SLACK:
            self._context.keep(2, torch.arange(excess, self._context.length, device=device))
        return {row: place for place, row in enumerate(self._rows) if row in staying}

    def _prefilled(self, rows: Sequence[int]) -> dict[Ids, _Read]:
        """Return the rows' prompts, each distinct one read once, and those of the last time where they come again."""
        first = {self._drafts[i].prompt.ids: self._drafts[i] for i in reversed(rows)}
        known = {ids: self._read[ids] for ids in first if ids in self._read}
        new = [draft for ids, draft in first.items() if ids not in known]
        shared = [draft.prompt.ids[: draft.prompt.shared] for draft in new]
        for pack in packs(
            shared, [len(draft.prompt.ids) - draft.prompt.shared for draft in new], self._work.pack_tokens
        ):
            prefix, reused = self._prefixes.get(shared[pack[0]])
            if self._work.shares:
                self._shared = prefix
            for k, one in zip(pack, self._behind(prefix, [new[k] for k in pack], reused), strict=True):
                known[new[k].prompt.ids] = one
        for i in rows:
            ids = self._drafts[i].prompt.ids
            self._drafts[i].cached_tokens = known[ids].cached_tokens if first.get(ids) is self._drafts[i] else len(ids)
        return known

    def _behind(self, prefix: KeyValues, drafts: Sequence[Draft], reused: int) -> list[_Read]:
        """Return prompts that share the prefix, read in one pass; `reused` of its tokens were there before."""
        tails = [draft.prompt.ids[draft.prompt.shared :] for draft in drafts]
        forest = TokenForest(self._prefixes.model, prefix, self._prefixes.device, room=sum(map(len, tails)))
        ends = [forest.append(tail) for tail in tails]
        logits = forest.forward(ends)
        columns = torch.arange(self._shared.length, prefix.length, device=self._prefixes.device)
        before: Row = ((prefix, columns),) if len(columns) else ()
        return [
            _Read((*before, forest.path(end)), after, prefix.length if k else reused)
            for k, (end, after) in enumerate(zip(ends, logits, strict=True))
        ]
