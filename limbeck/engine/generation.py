"""Write texts in batches: rows that share a prompt in one sequence behind it, other rows side by side.

In one sequence a mask lets each row see the prompt and its own tokens (as `tree` does for closed sets): the prompt's
keys and values are read once a step for all rows, samples of one input share its prefill, and the place of a row that
ends is taken by one that waits.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.engine.batching import batches_by_length, packs
from limbeck.engine.chat import Chat, Prompt
from limbeck.engine.prefix_cache import Context, KeyValues, PrefixCache, Row, row_length
from limbeck.engine.requests import GenerateRequest, Generation
from limbeck.engine.tree import TokenForest

# Candidates of a nucleus kept before the exact sort: almost every nucleus is smaller.
_NUCLEUS = 256
# Rows behind one prompt from which on they run in one sequence, and the mean of their own tokens up to which they do:
# what a mask hides is computed all the same. Others go side by side.
_PACKED_ROWS, _PACKED_TAIL = 4, 128
# Tokens a row, for so many rows, that room is kept for at first; the cache grows where rows write more.
_FIRST_ROOM, _PACKED_ROOM = 32, 32
# Waiting rows that are taken in together, and tokens of finished rows that are worth clearing away.
_ADMITTED, _DEAD_TOKENS = 8, 2048


@dataclass
class Draft:
    """One request on its way: its prompt, the tokens written so far and the draws that choose them."""

    request: GenerateRequest
    prompt: Prompt
    max_tokens: int
    written: list[int] = field(default_factory=list[int])
    cached_tokens: int = 0
    _draws: list[float] = field(default_factory=list[float])

    @property
    def draw(self) -> float:
        """The uniform number for the next token; depends on the seed and the token's position alone."""
        if not self._draws:
            generator = torch.Generator().manual_seed(self.request.seed)
            self._draws = torch.rand(self.max_tokens, generator=generator, dtype=torch.float64).tolist()
        return self._draws[len(self.written)]

    def result(self, chat: Chat) -> Generation | None:
        """Return the finished text, or None while it goes on."""
        ended = bool(self.written) and self.written[-1] in chat.stop_ids
        text = ""
        if ended or self.request.stop or len(self.written) >= self.max_tokens:
            text = chat.text(self.written[:-1] if ended else self.written)
        cuts = [at for at in map(text.find, self.request.stop) if at >= 0]
        if not (ended or cuts or len(self.written) >= self.max_tokens):
            return None
        reason: Literal["stop", "length"] = "stop" if ended or cuts else "length"
        return Generation(
            text[: min(cuts)] if cuts else text,
            len(self.prompt.ids),
            len(self.written),
            reason,
            self.cached_tokens,
        )


@dataclass(frozen=True)
class Limits:
    """How much goes into one batch: rows, tokens kept in memory, tokens packed into one prefill pass."""

    rows: int
    tokens: int
    pack_tokens: int


def generate_batch(
    prefixes: PrefixCache,
    chat: Chat,
    drafts: Sequence[Draft],
    limits: Limits,
    deliver: Callable[[int, Generation], None],
) -> None:
    """Write all drafts, in batches of similar length; `deliver(index, result)` as each one ends."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, draft in enumerate(drafts):
        groups.setdefault(draft.prompt.ids[: draft.prompt.shared], []).append(i)
    together = [group for group in groups.values() if _packs(drafts, group)]
    single = [i for group in groups.values() if not _packs(drafts, group) for i in group]
    for group in together:
        rows = [drafts[i] for i in group]
        _write_packed(prefixes, chat, rows, limits, lambda k, g, group=group: deliver(group[k], g))
    for batch in _batches(drafts, single, limits):
        rows = [drafts[i] for i in batch]
        logits, beside = _start_beside(prefixes, rows, limits.pack_tokens)
        _write_beside(chat, rows, beside, logits, lambda k, g, b=batch: deliver(b[k], g))


def _packs(drafts: Sequence[Draft], group: Sequence[int]) -> bool:
    """Whether rows of one shared prompt are enough, and short enough, to run in one sequence."""
    tails = sum(len(drafts[i].prompt.ids) - drafts[i].prompt.shared for i in group)
    return len(group) >= _PACKED_ROWS and tails <= _PACKED_TAIL * len(group)


def _batches(drafts: Sequence[Draft], chosen: Sequence[int], limits: Limits) -> list[list[int]]:
    sizes = [len(drafts[i].prompt.ids) + drafts[i].max_tokens for i in chosen]
    return [[chosen[k] for k in batch] for batch in batches_by_length(sizes, limits.rows, limits.tokens)]


def _chosen(
    chat: Chat, drafts: Sequence[Draft], rows: Sequence[int], logits: Tensor, deliver: Callable[[int, Generation], None]
) -> dict[int, int]:
    """Give each of these rows its next token; deliver those that end, return {row: token} of the others."""
    staying: dict[int, int] = {}
    for i, token in zip(rows, choose([drafts[i] for i in rows], logits), strict=True):
        drafts[i].written.append(token)
        if (result := drafts[i].result(chat)) is not None:
            deliver(i, result)
        else:
            staying[i] = token
    return staying


# -- in one sequence ---------------------------------------------------------------------------------------------


def _write_packed(
    prefixes: PrefixCache,
    chat: Chat,
    drafts: Sequence[Draft],
    limits: Limits,
    deliver: Callable[[int, Generation], None],
) -> None:
    """Write drafts of one shared prompt; where rows end, waiting ones take their place (continuous batching)."""
    shared = drafts[0].prompt.ids[: drafts[0].prompt.shared]
    prefix, reused = prefixes.get(shared)
    for k, draft in enumerate(drafts):
        draft.cached_tokens = prefix.length if k else reused
    packed = _Packed(prefixes, prefix, drafts, limits.pack_tokens)
    most = limits.rows
    # Rows of one input follow one another, so that its tokens are there when the last of them begins.
    waiting = sorted(range(len(drafts)), key=lambda i: (packed.input[i], i), reverse=True)
    alive: dict[int, int] = {}
    while waiting or alive:
        # A few at a time: each admission is a pass of its own.
        if waiting and len(alive) <= most - min(_ADMITTED, len(waiting), most):
            sizes = packed.live_tokens(alive)
            chosen: list[int] = []
            while waiting and len(alive) + len(chosen) < most:
                sizes += len(drafts[waiting[-1]].prompt.ids) - prefix.length + drafts[waiting[-1]].max_tokens
                if sizes > limits.tokens and (alive or chosen):
                    break
                chosen.append(waiting.pop())
            if chosen:
                alive |= _chosen(chat, drafts, chosen, packed.admit(chosen), deliver)
        if alive:
            rows = list(alive)
            alive = _chosen(chat, drafts, rows, packed.step(rows, list(alive.values())), deliver)


class _Packed:
    """Rows in one sequence behind one prompt; a token sees the prompt, its input's tokens and its own row's."""

    def __init__(self, prefixes: PrefixCache, prefix: KeyValues, drafts: Sequence[Draft], pack_tokens: int) -> None:
        self._drafts, self._pack_tokens = drafts, pack_tokens
        self._context = Context(prefixes.model, prefix, room=pack_tokens + _FIRST_ROOM * min(len(drafts), _PACKED_ROOM))
        self._start, self._device = prefix.length, prefixes.device
        # Who each token behind the prompt belongs to: an input (from 0 on), or a row (below 0).
        self._owners = torch.empty(0, dtype=torch.long, device=prefixes.device)
        inputs = {ids: n for n, ids in enumerate(dict.fromkeys(draft.prompt.ids for draft in drafts))}
        self.input = [inputs[draft.prompt.ids] for draft in drafts]
        self._after: dict[int, Tensor] = {}

    def live_tokens(self, rows: Iterable[int]) -> int:
        """Return how many tokens these rows may come to hold behind the prompt."""
        return sum(len(self._drafts[i].prompt.ids) - self._start + self._drafts[i].max_tokens for i in rows)

    def admit(self, rows: Sequence[int]) -> Tensor:
        """Run the inputs of new rows, each distinct one once; return the logits [rows, vocabulary] after them."""
        fresh = {self.input[i]: self._drafts[i].prompt.ids[self._start :] for i in rows}
        known = self._after
        self._after = {n: known[n] for n in fresh if n in known}
        new = [n for n in fresh if n not in known]
        for pack in packs([0] * len(new), [len(fresh[n]) for n in new], self._pack_tokens):
            names = [new[k] for k in pack]
            lengths = [len(fresh[n]) for n in names]
            owners = [n for n in names for _ in fresh[n]]
            places = [self._start + p for length in lengths for p in range(length)]
            ends = (torch.tensor(lengths).cumsum(0) - 1).tolist()
            logits = self._forward([token for n in names for token in fresh[n]], places, owners, owners, ends)
            self._after |= dict(zip(names, logits, strict=True))
        return torch.stack([self._after[self.input[i]] for i in rows])

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Append one token to each of these rows; return the logits after them."""
        self._forget(rows)
        places = [len(self._drafts[i].prompt.ids) + len(self._drafts[i].written) - 1 for i in rows]
        own = [-1 - i for i in rows]
        return self._forward(tokens, places, own, [self.input[i] for i in rows], range(len(rows)))

    def _forget(self, rows: Sequence[int]) -> None:
        """Drop the tokens that no row looks at any more, once they are many."""
        live = {-1 - i for i in rows} | {self.input[i] for i in rows} | set(self._after)
        keep = torch.isin(self._owners, torch.tensor(sorted(live), device=self._device))
        if int((~keep).sum()) < _DEAD_TOKENS:
            return
        self._owners = self._owners[keep]
        columns = keep.nonzero().squeeze(1) + self._start
        self._context.keep_columns(torch.cat([torch.arange(self._start, device=self._device), columns]))

    def _forward(
        self, ids: Sequence[int], places: Sequence[int], own: Sequence[int], of: Sequence[int], keep: Sequence[int]
    ) -> Tensor:
        """Append tokens at their places; `own` and `of` name the owners that each may look at."""
        before = len(self._owners)
        mine = torch.tensor(own, device=self._device)
        self._owners = torch.cat([self._owners, mine])
        seen = self._owners.unsqueeze(0)
        looks = (seen == mine.unsqueeze(1)) | (seen == torch.tensor(of, device=self._device).unsqueeze(1))
        columns = torch.arange(len(self._owners), device=self._device)
        looks &= columns.unsqueeze(0) <= columns[before:].unsqueeze(1)
        prompt = torch.ones(len(ids), self._start, dtype=torch.bool, device=self._device)
        logits = self._context.forward(
            torch.tensor([list(ids)], device=self._device),
            torch.tensor([list(places)], device=self._device),
            torch.cat([prompt, looks], dim=1).unsqueeze(0),
            torch.tensor(list(keep), device=self._device),
        )
        return logits[0]


# -- side by side ------------------------------------------------------------------------------------------------


def _write_beside(
    chat: Chat, drafts: Sequence[Draft], beside: _Beside, logits: Tensor, deliver: Callable[[int, Generation], None]
) -> None:
    """Write until every row has ended; `logits` [drafts, vocabulary] choose the first tokens."""
    alive = _chosen(chat, drafts, range(len(drafts)), logits, deliver)
    while alive:
        rows = list(alive)
        alive = _chosen(chat, drafts, rows, beside.step(rows, list(alive.values())), deliver)


def _start_beside(prefixes: PrefixCache, drafts: Sequence[Draft], pack_tokens: int) -> tuple[Tensor, _Beside]:
    """Prefill the drafts and lay their rows side by side; the packed keys and values are freed on return."""
    logits, parts = _prefill(prefixes, drafts, pack_tokens)
    return logits, _Beside(prefixes, drafts, parts)


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


class _Beside:
    """Rows side by side in a left-padded batch; finished ones leave it once half of it has finished."""

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
        self._context.keep_rows(staying)
        self._positions, self._visible = self._positions[staying], self._visible[staying]
        self._alive = list(rows)


def choose(drafts: Sequence[Draft], logits: Tensor) -> list[int]:
    """Return each draft's next token: the likeliest at temperature 0, else by its own draw."""
    greedy = logits.argmax(dim=-1).tolist()
    return [
        token if draft.request.temperature <= 0 or len(draft.written) >= draft.max_tokens else _sample(draft, row)
        for draft, row, token in zip(drafts, logits, greedy, strict=True)
    ]


def _sample(draft: Draft, logits: Tensor) -> int:
    """Draw one token by inverting the cumulative distribution at the draft's uniform number."""
    weights = torch.softmax(logits.double() / draft.request.temperature, dim=-1)
    ids: Any = None
    if draft.request.top_p < 1:
        weights, ids = _nucleus(weights, draft.request.top_p)
    edges = weights.cumsum(0)
    at = min(int(torch.searchsorted(edges, edges[-1] * draft.draw, right=True)), len(edges) - 1)
    return at if ids is None else int(ids[at])


def _nucleus(weights: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Return the likeliest tokens whose mass reaches `top_p`, and their ids."""
    values, ids = weights.topk(min(_NUCLEUS, len(weights)))
    if float(values.sum()) < top_p:
        values, ids = weights.sort(descending=True)
    kept = int((values.cumsum(0) - values < top_p).sum())
    return values[:kept], ids[:kept]
