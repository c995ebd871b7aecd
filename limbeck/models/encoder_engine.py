"""Sentence encoders behind the same LM: they score closed sets and write nothing."""

from __future__ import annotations

import weakref
from pathlib import Path

from limbeck.engine.encoder import EncoderEngine, load_classifier
from limbeck.engine.loading import load_encoder
from limbeck.engine.requests import GenerateRequest, Generation, ScoreRequest, Scores
from limbeck.errors import InputError


class EncoderBackend:
    """An `EncoderEngine` behind `limbeck.models.LM`: calls of many threads become batches.

    >>> backend = EncoderBackend.load("encoder")  # doctest: +SKIP
    """

    supports_score = True
    supports_prefix = False
    score_source = "exact"
    usd_per_token: tuple[float, float] | None = (0.0, 0.0)
    thinking_tokens = 0

    def __init__(self, engine: EncoderEngine) -> None:
        self._engine = engine
        self.name = engine.loaded.name
        self.weights = engine.loaded.fingerprint
        self.fingerprint = f"encoder/{engine.loaded.fingerprint}"
        # The engine's thread holds the weights until it ends.
        weakref.finalize(self, engine.close).atexit = False

    @classmethod
    def load(cls, name: str, *, adapter: Path | None = None) -> EncoderBackend:
        """Load the encoder called `name`, trained where a classifier's folder is given; raises ModelError."""
        return cls(EncoderEngine(load_encoder(name) if adapter is None else load_classifier(name, adapter)))

    def generate(self, request: GenerateRequest) -> Generation:
        """Raise InputError: an encoder writes no text."""
        raise InputError(
            f"{self.name} is an encoder and writes no text",
            valid="a program with one closed output field (Literal, bool or enum) under limbeck.CompactAdapter",
            hint="a language model for open answers: embedded, gguf:PATH, hf:NAME_OR_PATH",
        )

    def score(self, request: ScoreRequest) -> Scores:
        """Return log p of every candidate; blocks while its batch runs."""
        return self._engine.score(request)
