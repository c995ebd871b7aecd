"""Which calls run together: batches by length, packs by shared prompt, and the thread that gathers calls."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from limbeck.errors import ModelError

Job = TypeVar("Job")

# Callers that got their answer need about this many waiting times to ask again.
_PATIENCE = 20


@dataclass(frozen=True)
class Limits:
    """How much goes into one batch: rows, tokens kept in memory, tokens packed into one prefill pass."""

    rows: int
    tokens: int
    pack_tokens: int


def batches_by_length(sizes: Sequence[int], max_rows: int, max_tokens: int) -> list[list[int]]:
    """Return batches of indices, similar sizes together, longest first, each within rows and padded tokens.

    A row longer than `max_tokens` is a batch of its own.

    >>> batches_by_length([5, 1, 4], max_rows=2, max_tokens=10)
    [[0, 2], [1]]
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        last = batches[-1] if batches else []
        # Sorted, so the first row of a batch is its longest.
        if last and len(last) < max_rows and sizes[last[0]] * (len(last) + 1) <= max_tokens:
            last.append(i)
        else:
            batches.append([i])
    return batches


def packs(keys: Sequence[Hashable], sizes: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Return groups of indices with equal keys whose sizes sum to at most `max_tokens` (or one large one).

    >>> packs(["a", "b", "a"], [3, 3, 3], max_tokens=6)
    [[0, 2], [1]]
    """
    groups: dict[Hashable, list[list[int]]] = {}
    fill: dict[Hashable, int] = {}
    for i, (key, size) in enumerate(zip(keys, sizes, strict=True)):
        if key not in groups or fill[key] + size > max_tokens:
            groups.setdefault(key, []).append([])
            fill[key] = 0
        groups[key][-1].append(i)
        fill[key] += size
    return [pack for found in groups.values() for pack in found]


class Gatherer(Generic[Job]):
    """A thread that gathers calls which arrive within milliseconds and runs them as one batch.

    `run(jobs)` gets (job, future) pairs and sets each future; what it raises goes to the futures left open.
    """

    def __init__(self, run: Callable[[list[tuple[Job, Future[Any]]]], None], *, wait_ms: float, most: int) -> None:
        self._run = run
        self._wait = wait_ms / 1000
        self._most = most
        self._queue: queue.SimpleQueue[tuple[Job, Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether calls are refused."""
        return self._closed

    @property
    def waiting(self) -> int:
        """How many calls wait for a batch."""
        return self._queue.qsize()

    def call(self, job: Job) -> Any:
        """Run one job in some batch and return its result; blocks, from any thread."""
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise ModelError("the engine is closed")
            if self._thread is None:
                # A daemon: a killed or interrupted caller must not hang on work nobody waits for.
                self._thread = threading.Thread(target=self._work, name="limbeck-engine", daemon=True)
                self._thread.start()
            self._queue.put((job, future))
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def take(self) -> list[tuple[Job, Future[Any]]]:
        """Return the calls that wait now, for the batch that is running."""
        found: list[tuple[Job, Future[Any]]] = []
        while True:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return found
            if item is None:
                self._queue.put(None)
                return found
            if not item[1].cancelled():
                found.append(item)

    def close(self) -> None:
        """Finish the running batch, fail what still waits, and join the thread."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            if thread is not threading.current_thread():
                thread.join()
        while not self._queue.empty():
            if (item := self._queue.get()) is not None:
                item[1].set_exception(ModelError("the engine is closed"))

    def _work(self) -> None:
        expected = 1
        while not self._closed and (jobs := self._gather(expected)) is not None:
            # Callers come back together: wait a little longer for as many as came last time.
            expected = len(jobs)
            waiting = [(job, future) for job, future in jobs if not future.cancelled()]
            try:
                self._run(waiting)
            except BaseException as error:
                for _, future in waiting:
                    settle(future, error=error)

    def _gather(self, expected: int) -> list[tuple[Job, Future[Any]]] | None:
        """Return the calls of the next batch, or None at the end."""
        first = self._queue.get()
        if first is None:
            return None
        jobs = [first]
        patience = time.monotonic() + _PATIENCE * self._wait
        while len(jobs) < self._most:
            left = patience - time.monotonic() if len(jobs) < expected else 0.0
            try:
                item = self._queue.get(timeout=max(left, self._wait))
            except queue.Empty:
                break
            if item is None:
                self._queue.put(None)
                break
            jobs.append(item)
        return jobs


def settle(future: Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    """Set a future's outcome unless it has one, or its caller has gone."""
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
