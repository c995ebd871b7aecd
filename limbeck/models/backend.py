"""What a model must be able to do to stand behind `limbeck.models.LM`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from limbeck.engine.requests import GenerateRequest, Generation, ScoreRequest, Scores
from limbeck.errors import ModelError


@runtime_checkable
class Backend(Protocol):
    """One model: local weights or a server.

    `fingerprint` names all that changes its answers beside the request (weights, adapter, endpoint).
    `supports_score` says that `score` gives probabilities; `score_source` says of what kind, "exact" or
    "logprobs". `supports_prefix` says that an answer can be continued from `assistant_prefix`.
    `usd_per_token` is the price of (input, output), (0, 0) for local weights, None where it is not known;
    `thinking_tokens` is how many tokens the model may spend beyond a request's `max_tokens`.
    """

    name: str
    fingerprint: str
    supports_prefix: bool
    score_source: str
    usd_per_token: tuple[float, float] | None
    thinking_tokens: int

    @property
    def supports_score(self) -> bool:
        """Whether `score` gives probabilities; may turn False when a server proves to send none."""
        ...

    def generate(self, request: GenerateRequest) -> Generation:
        """Answer one request; raises Transient where trying again may help, else ModelError."""
        ...

    def score(self, request: ScoreRequest) -> Scores:
        """Return log p(candidate | prompt) of every candidate; raises also ScoresUnavailable."""
        ...


@dataclass(frozen=True)
class LabelScores:
    """The probability of each label, and where the numbers come from.

    `source` is "exact" (every token of every label scored), "logprobs" (a server's top log-probabilities) or
    "votes:K" (K sampled answers).
    """

    probabilities: Mapping[str, float]
    source: str

    @property
    def best(self) -> str:
        """The most probable label; the first one wins a tie."""
        return max(self.probabilities, key=lambda label: self.probabilities[label])


class Transient(Exception):
    """A failure that trying again may mend: a full server, a timeout, a broken connection.

    `retry_after` is the server's own wish in seconds, if it has one.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ScoresUnavailable(ModelError):
    """This model gives no probabilities for these labels; votes or generation can still answer.

    `tokens_in` are the tokens of the calls that were made, and paid, to find that out.
    """

    def __init__(self, message: str, *, valid: str = "", hint: str = "", tokens_in: int = 0) -> None:
        super().__init__(message, valid=valid, hint=hint)
        self.tokens_in = tokens_in
