"""Write texts in batches: prefill packed behind the shared prompt, then decode rows side by side."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.engine.batching import batches_by_length, packs
from limbeck.engine.chat import Chat, Prompt
from limbeck.engine.prefix_cache import Context, PrefixCache, Row, row_length
from limbeck.engine.requests import GenerateRequest, Generation
from limbeck.engine.tree import TokenForest

# Candidates of a nucleus kept before the exact sort: almost every nucleus is smaller.
_NUCLEUS = 256


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
    sizes = [len(draft.prompt.ids) + draft.max_tokens for draft in drafts]
    for batch in batches_by_length(sizes, limits.rows, limits.tokens):
        rows = [drafts[i] for i in batch]
        logits, decoding = _start(prefixes, chat, rows, limits.pack_tokens)
        decoding.run(logits, lambda k, g, b=batch: deliver(b[k], g))


def _start(prefixes: PrefixCache, chat: Chat, drafts: Sequence[Draft], pack_tokens: int) -> tuple[Tensor, _Decoding]:
    """Prefill the drafts and lay their rows side by side; the packed keys and values are freed on return."""
    logits, parts = _prefill(prefixes, drafts, pack_tokens)
    return logits, _Decoding(prefixes, chat, drafts, parts)


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


class _Decoding:
    """Rows that write side by side; finished ones leave the batch once half of it has finished."""

    def __init__(self, prefixes: PrefixCache, chat: Chat, drafts: Sequence[Draft], rows: Sequence[Row]) -> None:
        self._chat = chat
        self._drafts = list(drafts)
        self._device = prefixes.device
        self._alive = list(range(len(drafts)))
        lengths = torch.tensor([row_length(row) for row in rows], device=self._device)
        room = max(draft.max_tokens for draft in drafts)
        self._context = Context.of_rows(prefixes.model, rows, room=room)
        self._positions = lengths
        columns = torch.arange(self._context.length, device=self._device)
        self._visible = columns.unsqueeze(0) >= (self._context.length - lengths).unsqueeze(1)

    def run(self, logits: Tensor, deliver: Callable[[int, Generation], None]) -> None:
        """Write until every row has ended; `logits` [rows, vocabulary] choose the first tokens."""
        ended: set[int] = set()
        while True:
            tokens = choose([self._drafts[i] for i in self._alive], logits)
            for i, token in zip(self._alive, tokens, strict=True):
                if i in ended:
                    continue
                self._drafts[i].written.append(token)
                if (result := self._drafts[i].result(self._chat)) is not None:
                    ended.add(i)
                    deliver(i, result)
            if ended.issuperset(self._alive):
                return
            logits = self._step(self._drop(ended, tokens))

    def _drop(self, ended: set[int], tokens: list[int]) -> list[int]:
        """Let finished rows go where half have finished; return the last tokens of those that stay."""
        staying = [k for k, i in enumerate(self._alive) if i not in ended]
        if 2 * len(staying) > len(self._alive):
            return tokens
        rows = torch.tensor(staying, device=self._device)
        self._context.keep_rows(rows)
        self._positions, self._visible = self._positions[rows], self._visible[rows]
        self._alive = [self._alive[k] for k in staying]
        return [tokens[k] for k in staying]

    def _step(self, tokens: list[int]) -> Tensor:
        fresh = torch.ones(len(tokens), 1, dtype=torch.bool, device=self._device)
        self._visible = torch.cat([self._visible, fresh], dim=1)
        ids = torch.tensor(tokens, device=self._device).unsqueeze(1)
        logits = self._context.forward(ids, self._positions.unsqueeze(1), self._visible.unsqueeze(1), 1)
        self._positions = self._positions + 1
        return logits[:, -1]


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
