"""A backend that answers by a function of the request: what the stages do is then exactly known."""

from __future__ import annotations

import threading
from collections.abc import Callable

from limbeck.engine.requests import GenerateRequest, Generation, ScoreRequest, Scores
from limbeck.models import LM


class Scripted:
    """Answers with `answer(request)`; keeps every request."""

    def __init__(self, answer: Callable[[GenerateRequest], str]) -> None:
        self.name = self.fingerprint = "scripted"
        self.supports_score, self.supports_prefix = False, True
        self.score_source, self.thinking_tokens = "", 0
        self.usd_per_token: tuple[float, float] | None = (0.0, 0.0)
        self.answer, self.lock = answer, threading.Lock()
        self.requests: list[GenerateRequest] = []

    def generate(self, request: GenerateRequest) -> Generation:
        with self.lock:
            self.requests.append(request)
        return Generation(self.answer(request), 1, 1, "stop")

    def score(self, request: ScoreRequest) -> Scores:
        raise NotImplementedError


def scripted(answer: Callable[[GenerateRequest], str]) -> tuple[LM, Scripted]:
    """Return an LM that answers by the function, and its backend."""
    backend = Scripted(answer)
    return LM("scripted", backend), backend
