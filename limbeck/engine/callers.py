"""What engines of language models share: one model for callers of many threads, whose calls run in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from limbeck.engine.batching import Gatherer
from limbeck.engine.chat import Chat
from limbeck.engine.compute import on_compute_thread
from limbeck.engine.loading import LoadedModel
from limbeck.engine.requests import GenerateRequest, Generation, ScoreRequest, Scores
from limbeck.errors import PromptTooLong

Job = TypeVar("Job")


class LanguageEngine(ABC, Generic[Job]):
    """Runs one model for many callers.

    `generate` and `score` block and may be called from any thread: calls that arrive within `wait_ms` milliseconds
    run as one batch. `generate_many` and `score_many` run a list at once in this thread. `context_tokens` is how many
    tokens a prompt and its answer may have.
    """

    def __init__(self, loaded: LoadedModel, context_tokens: int, *, wait_ms: float, most: int) -> None:
        self.loaded = loaded
        self.chat = Chat(loaded.tokenizer)
        self.context_tokens = context_tokens
        self._gatherer: Gatherer[Job] = Gatherer(self._compute, wait_ms=wait_ms, most=most)

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

    def close(self) -> None:
        """End the gathering thread; calls that still wait get a ModelError."""
        self._gatherer.close()

    @abstractmethod
    def _draft(self, request: GenerateRequest) -> Job:
        """Return the job of a text; raises PromptTooLong."""

    @abstractmethod
    def _query(self, request: ScoreRequest) -> Job:
        """Return the job of a closed set; raises PromptTooLong, and ModelError for an empty set."""

    @abstractmethod
    def _run(self, jobs: Sequence[tuple[Job, Future[Any]]]) -> None:
        """Run jobs on the compute thread and settle their futures."""

    def _compute(self, jobs: Sequence[tuple[Job, Future[Any]]]) -> None:
        on_compute_thread(self._run, jobs)

    def _many(self, jobs: Sequence[Job]) -> list[Any]:
        futures: list[Future[Any]] = [Future() for _ in jobs]
        self._compute(list(zip(jobs, futures, strict=True)))
        return [future.result() for future in futures]

    def _check_length(self, tokens: int) -> None:
        """Raise PromptTooLong where a prompt with the least answer has more tokens than the context."""
        if tokens > self.context_tokens:
            raise PromptTooLong(
                f"a prompt of {tokens} tokens does not fit {self.name!r}",
                valid=f"at most {self.context_tokens} tokens, the answer included",
                hint="fewer demonstrations, or a shorter input",
            )
