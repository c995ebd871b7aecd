"""What callers ask of an engine and what they get: values without torch, shared by every backend."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Message = tuple[str, str]


@dataclass(frozen=True)
class GenerateRequest:
    """One text to write: `messages` are (role, content) pairs, `max_tokens` counts new tokens.

    `temperature` 0 is greedy; a greedy text that only repeats itself (96 tokens, a period of at most 32) ends as if by
    its limit. Sampling depends only on `seed` and the token's position, never on other requests. `stop` strings end the
    text and are cut off; `assistant_prefix` opens the assistant's turn.

    >>> GenerateRequest((("user", "Hello"),), max_tokens=8).temperature
    0.0
    """

    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    assistant_prefix: str = ""


@dataclass(frozen=True)
class Generation:
    """One written text without its prefix, stop string or end of turn; all counts are tokens.

    `cached_tokens` of the `tokens_in` prompt tokens came from the prefix cache. `ids` are the tokens drawn, the end of
    the turn included; tokenizing `text` again may give others. Empty where an engine does not tell.
    """

    text: str
    tokens_in: int
    tokens_out: int
    finish_reason: Literal["stop", "length"]
    cached_tokens: int = 0
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class ScoreRequest:
    """One closed set to score: each candidate continues `assistant_prefix` in the assistant's turn.

    `suffix` ends every candidate; by default the model's end of turn ends those that another one goes on from,
    so that "card" and "card lost" compete as whole answers.
    """

    messages: tuple[Message, ...]
    assistant_prefix: str
    candidates: tuple[str, ...]
    suffix: str = ""


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of the candidates in the order asked, natural log, summed over tokens, unnormalised.

    `exact` is False where the search stopped early: the best candidate is the true best one, and those the
    search did not reach share the probability that their common beginning has.

    >>> [round(p, 2) for p in Scores((-1.0, -1.0), tokens_in=9).probabilities()]
    [0.5, 0.5]
    """

    logprobs: tuple[float, ...]
    tokens_in: int
    cached_tokens: int = 0
    exact: bool = True

    def probabilities(self) -> tuple[float, ...]:
        """Return the softmax over the candidates, in the order asked."""
        top = max(self.logprobs)
        masses = [math.exp(value - top) for value in self.logprobs]
        total = sum(masses)
        return tuple(mass / total for mass in masses)

    @property
    def best(self) -> int:
        """The index of the likeliest candidate; the first one of a tie."""
        return self.logprobs.index(max(self.logprobs))
