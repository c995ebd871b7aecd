"""The transformers engine: thread-safe generation and scoring over one loaded model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

from limbeck.engine.batching import Gatherer, Limits, settle
from limbeck.engine.chat import Chat, Prompt
from limbeck.engine.compute import on_compute_thread
from limbeck.engine.drafts import Draft
from limbeck.engine.generation import generate_batch
from limbeck.engine.loading import LoadedModel
from limbeck.engine.prefix_cache import PrefixCache
from limbeck.engine.requests import GenerateRequest, Generation, Message, ScoreRequest, Scores
from limbeck.engine.scoring import Query, make_query, make_trie, score_batch
from limbeck.errors import ModelError, PromptTooLong

# Tokens of one packed pass: enough to keep the cores busy, few enough that tokens of different rows, which a
# mask hides from each other, cost little.
_PACK_TOKENS = {"cpu": 256}
_PACK_TOKENS_GPU = 4096


Jobs = list[tuple[Draft | Query, Future[Any]]]


class TorchEngine:
    """Runs one model for many callers.

    `generate` and `score` block and may be called from any thread: calls that arrive within `wait_ms`
    milliseconds run as one batch. `generate_many` and `score_many` run a list at once in this thread.
    A batch has at most `max_batch` rows and `max_batch_tokens` tokens of keys and values (0.03 MB each for
    135M to 1.5B models); `prefix_cache_tokens` tokens of shared prompts are kept between calls.

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
        self.loaded = loaded
        self.chat = Chat(loaded.tokenizer)
        self.context_tokens = _context_tokens(loaded.model.config)
        pack_tokens = _PACK_TOKENS.get(loaded.device.type, _PACK_TOKENS_GPU)
        self._limits = Limits(max_batch, max_batch_tokens, pack_tokens)
        self._prefixes = PrefixCache(loaded.model, loaded.device, prefix_cache_tokens)
        self._tries = lru_cache(maxsize=256)(self._make_trie)
        # One forward pass at a time: the cores are shared, and the prefix cache is not thread-safe.
        self._running = threading.Lock()
        self._gatherer: Gatherer[Draft | Query] = Gatherer(self._compute, wait_ms=wait_ms, most=4 * max_batch)

    @property
    def name(self) -> str:
        """The model's limbeck name."""
        return self.loaded.name

    @property
    def fingerprint(self) -> str:
        """Changes with the weights or the adapter."""
        return self.loaded.fingerprint

    def generate(self, request: GenerateRequest) -> Generation:
        """Write one text; blocks. Raises PromptTooLong where the prompt does not fit the model's context."""
        return self._gatherer.call(self._draft(request))

    def score(self, request: ScoreRequest) -> Scores:
        """Score one closed set; blocks. Raises PromptTooLong where the prompt does not fit."""
        return self._gatherer.call(self._query(request))

    def generate_many(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """Write many texts in this thread, in the order asked."""
        return self._many([self._draft(request) for request in requests])

    def score_many(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        """Score many closed sets in this thread, in the order asked."""
        return self._many([self._query(request) for request in requests])

    def count_tokens(self, messages: Sequence[Message], assistant_prefix: str = "") -> int:
        """Return how many prompt tokens the messages are."""
        return len(self._prompt(messages, assistant_prefix).ids)

    def forget(self) -> None:
        """Empty the prefix cache; needed after the model's weights changed."""
        with self._running:
            self._prefixes.clear()

    def close(self) -> None:
        """End the gathering thread; calls that still wait get a ModelError."""
        self._gatherer.close()

    def _many(self, jobs: Sequence[Any]) -> list[Any]:
        futures: list[Future[Any]] = [Future() for _ in jobs]
        on_compute_thread(self._run, list(zip(jobs, futures, strict=True)), list)
        return [future.result() for future in futures]

    def _compute(self, jobs: Jobs) -> None:
        on_compute_thread(self._run, jobs, self._gatherer.take)

    def _run(self, jobs: Jobs, take: Callable[[], Jobs]) -> None:
        """Run queries, then drafts: a score is a fraction of a generation, and its caller goes on sooner.

        What `take` gives while drafts are written is run as well.
        """
        futures: dict[int, Future[Any]] = {}

        def started(jobs: Jobs) -> list[Draft]:
            futures.update((id(job), future) for job, future in jobs)
            queries = [job for job, _ in jobs if isinstance(job, Query)]
            if queries:
                tokens = self._limits.pack_tokens
                score_batch(self._prefixes, queries, tokens, lambda i, scores: deliver(queries[i], scores))
            return [job for job, _ in jobs if isinstance(job, Draft)]

        def deliver(job: Draft | Query, result: Any) -> None:
            settle(futures.pop(id(job)), result)

        with self._running:
            try:
                drafts = started(jobs)
                generate_batch(self._prefixes, self.chat, drafts, self._limits, deliver, lambda: started(take()))
            except BaseException as error:
                # Those that were taken late are known here alone.
                for future in futures.values():
                    settle(future, error=error)
                raise

    def _prompt(self, messages: Sequence[Message], assistant_prefix: str) -> Prompt:
        prompt = self.chat.prompt(messages)
        return replace(prompt, ids=prompt.ids + self.chat.ids(assistant_prefix)) if assistant_prefix else prompt

    def _draft(self, request: GenerateRequest) -> Draft:
        prompt = self._prompt(request.messages, request.assistant_prefix)
        self._check_length(len(prompt.ids) + 1)
        room = self.context_tokens - len(prompt.ids)
        return Draft(request, prompt, max(1, min(request.max_tokens, room)))

    def _query(self, request: ScoreRequest) -> Query:
        if not request.candidates:
            raise ModelError("no candidates to score", valid="at least one candidate")
        trie = self._tries(request.assistant_prefix, request.candidates, request.suffix)
        query = make_query(request, self.chat.prompt(request.messages), trie)
        self._check_length(len(query.prompt.ids) + query.trie.depth)
        return query

    def _make_trie(self, assistant_prefix: str, candidates: tuple[str, ...], suffix: str) -> Any:
        return make_trie(self.chat, assistant_prefix, candidates, suffix)

    def _check_length(self, tokens: int) -> None:
        if tokens > self.context_tokens:
            raise PromptTooLong(
                f"a prompt of {tokens} tokens does not fit {self.name!r}",
                valid=f"at most {self.context_tokens} tokens, the answer included",
                hint="fewer demonstrations, or a shorter input",
            )


def _context_tokens(config: Any) -> int:
    """Return how many tokens the model can see; a sliding window counts, for its cache is not cut here."""
    limit = cast(int, getattr(config, "max_position_embeddings", None) or 1 << 20)
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        limit = min(limit, cast(int, config.sliding_window))
    return limit
