"""Local weights through transformers: batched generation and exact scores."""

from __future__ import annotations

import weakref
from pathlib import Path

from limbeck.engine.loading import load_model
from limbeck.engine.requests import GenerateRequest, Generation, ScoreRequest, Scores
from limbeck.engine.seq2seq import Seq2SeqEngine, engine_of
from limbeck.engine.torch_engine import TorchEngine


class TorchBackend:
    """An engine on transformers behind `limbeck.models.LM`: calls of many threads become batches.

    >>> backend = TorchBackend.load("embedded")  # doctest: +SKIP
    """

    supports_score = True
    supports_prefix = True
    score_source = "exact"
    usd_per_token: tuple[float, float] | None = (0.0, 0.0)
    thinking_tokens = 0

    def __init__(self, engine: TorchEngine | Seq2SeqEngine) -> None:
        self.engine = engine
        self.name = engine.name
        # bf16 and fp32 weights answer a little differently.
        self.weights = engine.fingerprint
        self.fingerprint = f"torch/{engine.fingerprint}/{engine.loaded.dtype}"
        # The engine's thread holds the weights until it ends.
        weakref.finalize(self, engine.close).atexit = False

    @classmethod
    def load(cls, name: str, *, adapter: Path | None = None) -> TorchBackend:
        """Load the model called `name`, with a PEFT adapter on top if one is given; raises ModelError."""
        return cls(engine_of(load_model(name, adapter=adapter, merged=True)))

    def generate(self, request: GenerateRequest) -> Generation:
        """Answer one request; blocks while its batch runs. Raises PromptTooLong where the prompt does not fit."""
        return self.engine.generate(request)

    def score(self, request: ScoreRequest) -> Scores:
        """Return log p of every candidate; blocks while its batch runs."""
        return self.engine.score(request)
