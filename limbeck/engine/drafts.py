"""Texts on their way: what each has written, how it draws its next token, and when it ends."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from limbeck.engine.chat import Chat, Prompt
from limbeck.engine.requests import GenerateRequest, Generation

# Candidates of a nucleus kept before the exact sort: almost every nucleus is smaller.
_NUCLEUS = 256
# Tokens before a stop string that are read with it: a text's first token may lose its blank.
_MARGIN = 4
# A greedy text goes round in circles where its last tokens, so many of them, have a period of at most so many.
_CIRCLES, _PERIOD, _LOOK_EVERY = 96, 32, 8


@dataclass
class Draft:
    """One request on its way: its prompt, the tokens written so far and the draws that choose them.

    The first `asked` tokens of the prompt ask, the others begin the answer; `unread` are those that are still to be
    read, one a step.
    """

    request: GenerateRequest
    prompt: Prompt
    max_tokens: int
    asked: int = 0
    unread: deque[int] = field(default_factory=deque[int])
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

    def _may_stop(self, chat: Chat) -> bool:
        """Whether the last tokens, more of them than a stop string can have, show one."""
        if not self.request.stop:
            return False
        most = max(len(stop.encode()) for stop in self.request.stop)
        tail = chat.text(self.written[-most - _MARGIN :])
        return any(stop in tail for stop in self.request.stop)

    def _circles(self) -> bool:
        """Whether a greedy text only repeats itself: small models do so until the limit ends them."""
        if self.request.temperature > 0 or len(self.written) < _CIRCLES or len(self.written) % _LOOK_EVERY:
            return False
        last = self.written[-_CIRCLES:]
        return any(last[period:] == last[:-period] for period in range(1, _PERIOD + 1))

    def result(self, chat: Chat) -> Generation | None:
        """Return the finished text, or None while it goes on."""
        ended = bool(self.written) and self.written[-1] in chat.stop_ids
        full = len(self.written) >= self.max_tokens or self._circles()
        if not (ended or full or self._may_stop(chat)):
            return None
        text = chat.text(self.written[:-1] if ended else self.written)
        cuts = [at for at in map(text.find, self.request.stop) if at >= 0]
        if not (ended or cuts or full):
            return None
        reason: Literal["stop", "length"] = "stop" if ended or cuts else "length"
        return Generation(
            text[: min(cuts)] if cuts else text,
            len(self.prompt.ids),
            len(self.written),
            reason,
            self.cached_tokens,
            tuple(self.written),
        )


def advance(
    chat: Chat, drafts: Sequence[Draft], rows: Sequence[int], logits: Tensor, deliver: Callable[[int, Generation], None]
) -> dict[int, int]:
    """Give each of these rows its next token; deliver those that end, return {row: token} of the others.

    `logits` [rows, vocabulary] choose it, but for rows whose prompt has unread tokens.
    """
    staying = {i: drafts[i].unread.popleft() for i in rows if drafts[i].unread}
    if staying:
        writing = [k for k, i in enumerate(rows) if i not in staying]
        rows, logits = [rows[k] for k in writing], logits[writing]
    for i, token in zip(rows, choose([drafts[i] for i in rows], logits), strict=True):
        drafts[i].written.append(token)
        if (result := drafts[i].result(chat)) is not None:
            deliver(i, result)
        else:
            staying[i] = token
    return staying


def choose(drafts: Sequence[Draft], logits: Tensor) -> list[int]:
    """Return each draft's next token: the likeliest at temperature 0, else by its own draw."""
    chosen: list[int] = logits.argmax(dim=-1).tolist()
    kinds: dict[tuple[float, float], list[int]] = {}
    for k, draft in enumerate(drafts):
        if draft.request.temperature > 0 and len(draft.written) < draft.max_tokens:
            kinds.setdefault((draft.request.temperature, draft.request.top_p), []).append(k)
    for (temperature, top_p), rows in kinds.items():
        some = logits if len(rows) == len(drafts) else logits[rows]
        for k, token in zip(rows, _drawn(some, temperature, top_p, [drafts[k].draw for k in rows]), strict=True):
            chosen[k] = token
    return chosen


def _drawn(logits: Tensor, temperature: float, top_p: float, draws: Sequence[float]) -> list[int]:
    """Draw a token a row of logits [n, vocabulary], by inverting the cumulative distribution at the row's number."""
    weights = torch.softmax(logits.double() / temperature, dim=-1)
    if top_p < 1:
        return [_in_nucleus(row, top_p, draw) for row, draw in zip(weights, draws, strict=True)]
    return _inverted(weights, draws)


def _inverted(weights: Tensor, draws: Sequence[float]) -> list[int]:
    edges = weights.cumsum(-1)
    at = edges[:, -1:] * torch.tensor(draws, dtype=edges.dtype, device=edges.device).unsqueeze(1)
    return torch.searchsorted(edges, at, right=True).squeeze(1).clamp_max(edges.shape[-1] - 1).tolist()


def _in_nucleus(weights: Tensor, top_p: float, draw: float) -> int:
    kept, ids = _nucleus(weights, top_p)
    return int(ids[_inverted(kept.unsqueeze(0), [draw])[0]])


def _nucleus(weights: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Return the likeliest tokens whose mass reaches `top_p`, and their ids."""
    values, ids = weights.topk(min(_NUCLEUS, len(weights)))
    if float(values.sum()) < top_p:
        values, ids = weights.sort(descending=True)
    kept = int((values.cumsum(0) - values < top_p).sum())
    return values[:kept], ids[:kept]
