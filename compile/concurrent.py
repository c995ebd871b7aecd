"""Many calls at once, so that a local engine answers them in batches; results in the order of the items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def concurrently(
    function: Callable[[T], R],
    items: Sequence[T],
    *,
    threads: int = 16,
    done: Callable[[R], None] | None = None,
) -> list[R]:
    """Return `function` of every item, in the items' order.

    `done` gets each result as it arrives, on the calling thread. An exception from either, an interrupt as
    well, drops the calls that have not begun and is raised once those in flight have ended.

    >>> concurrently(lambda n: n * n, [3, 1, 2])
    [9, 1, 4]
    """
    with ThreadPoolExecutor(max(1, min(threads, len(items)))) as pool:
        jobs: list[Future[R]] = [pool.submit(function, item) for item in items]
        try:
            for job in as_completed(jobs):
                result = job.result()
                if done is not None:
                    done(result)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [job.result() for job in jobs]
