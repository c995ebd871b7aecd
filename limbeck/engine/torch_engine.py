"""The transformers engine: thread-safe generation and scoring over one loaded model."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

from limbeck.engine.batching import Limits, settle
from limbeck.engine.callers import LanguageEngine
from limbeck.engine.cascade import sliding_window, supports_sharing
from limbeck.engine.drafts import Draft
from limbeck.engine.generation import generate_batch
from limbeck.engine.graphs import Graphs
from limbeck.engine.loading import LoadedModel
from limbeck.engine.prefix_cache import PrefixCache
from limbeck.engine.requests import GenerateRequest, Message, ScoreRequest
from limbeck.engine.scoring import Query, make_query, make_trie, score_batch
from limbeck.errors import ModelError

# Tokens of one packed pass: enough to keep the cores busy, few enough that tokens of different rows, which a
# mask hides from each other, cost little.
_PACK_TOKENS = {"cpu": 256}
_PACK_TOKENS_GPU = 4096


Job = Draft | Query


class TorchEngine(LanguageEngine[Job]):
    """Runs a decoder; calls that come while others are written join their batch.

    A batch has at most `max_batch` rows and `max_batch_tokens` tokens of keys and values (0.03 MB each for
    135M to 1.5B models); `prefix_cache_tokens` tokens of shared prompts are kept between calls, and half as many of
    texts that ended, from which an answer's next field goes on.

    >>> # TorchEngine(load_model("embedded")).generate(GenerateRequest((("user", "Hello"),))).text
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_batch: int = 64,
        max_batch_tokens: int = 65536,
        wait_ms: float = 5.0,
        prefix_cache_tokens: int = 16384,
    ) -> None:
        super().__init__(loaded, _context_tokens(loaded.model.config), wait_ms=wait_ms, most=4 * max_batch)
        pack_tokens = _PACK_TOKENS.get(loaded.device.type, _PACK_TOKENS_GPU)
        self._limits = Limits(max_batch, max_batch_tokens, pack_tokens)
        on_gpu = loaded.device.type == "cuda" and supports_sharing(loaded.model.config)
        graphs = Graphs(loaded.model) if on_gpu else None
        self._prefixes = PrefixCache(loaded.model, loaded.device, prefix_cache_tokens, graphs)
        self._tries = lru_cache(maxsize=256)(self._make_trie)
        # One forward pass at a time: the cores are shared, and the prefix cache is not thread-safe.
        self._running = threading.Lock()

    def count_tokens(self, messages: Sequence[Message], assistant_prefix: str = "") -> int:
        """Return how many prompt tokens the messages are."""
        return len(self.chat.prompt(messages).ids) + len(self._begun(assistant_prefix))

    def forget(self) -> None:
        """Empty the prefix cache; needed after the model's weights changed."""
        with self._running:
            self._prefixes.clear()

    def _run(self, jobs: Sequence[tuple[Job, Future[Any]]]) -> None:
        """Run queries, then drafts: a score is a fraction of a generation, and its caller goes on sooner.

        Calls that come while drafts are written are run as well.
        """
        futures: dict[int, Future[Any]] = {}

        def started(jobs: Sequence[tuple[Job, Future[Any]]]) -> list[Draft]:
            futures.update((id(job), future) for job, future in jobs)
            queries = [job for job, _ in jobs if isinstance(job, Query)]
            if queries:
                tokens = self._limits.pack_tokens
                score_batch(self._prefixes, queries, tokens, lambda i, scores: deliver(queries[i], scores))
            return [job for job, _ in jobs if isinstance(job, Draft)]

        def deliver(job: Job, result: Any) -> None:
            settle(futures.pop(id(job)), result)

        def more() -> list[Draft]:
            return started(self._gatherer.take())

        with self._running:
            try:
                generate_batch(self._prefixes, self.chat, started(jobs), self._limits, deliver, more)
            except BaseException as error:
                # Those that came late are known here alone.
                for future in futures.values():
                    settle(future, error=error)
                raise

    def _draft(self, request: GenerateRequest) -> Draft:
        asked, begun = self.chat.prompt(request.messages), self._begun(request.assistant_prefix)
        prompt = replace(asked, ids=asked.ids + begun)
        self._check_length(len(prompt.ids) + 1)
        room = self.context_tokens - len(prompt.ids)
        return Draft(request, prompt, max(1, min(request.max_tokens, room)), len(asked.ids))

    def _begun(self, assistant_prefix: str) -> tuple[int, ...]:
        return self.chat.ids(assistant_prefix) if assistant_prefix else ()

    def _query(self, request: ScoreRequest) -> Query:
        if not request.candidates:
            raise ModelError("no candidates to score", valid="at least one candidate")
        trie = self._tries(request.assistant_prefix, request.candidates, request.suffix)
        query = make_query(request, self.chat.prompt(request.messages), trie)
        self._check_length(len(query.prompt.ids) + query.trie.depth)
        return query

    def _make_trie(self, assistant_prefix: str, candidates: tuple[str, ...], suffix: str) -> Any:
        return make_trie(self.chat, assistant_prefix, candidates, suffix)


def _context_tokens(config: Any) -> int:
    """Return how many tokens the model can see; a sliding window counts, for its cache is not cut here."""
    limit = cast(int, getattr(config, "max_position_embeddings", None) or 1 << 20)
    return min(limit, sliding_window(config) or limit)
