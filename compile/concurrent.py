"""Many calls at once, so that a local engine answers them in batches; results in the order of the items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
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
    workers = max(1, min(threads, len(items)))
    results: dict[int, R] = {}
    # Few calls wait ahead of the threads: when `done` ends the work, what has not begun costs nothing.
    waiting, running = iter(enumerate(items)), dict[Future[R], int]()
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                for at, item in islice(waiting, 2 * workers - len(running)):
                    running[pool.submit(function, item)] = at
                if not running:
                    break
                for job in wait(running, return_when=FIRST_COMPLETED).done:
                    at = running.pop(job)
                    results[at] = job.result()
                    if done is not None:
                        done(results[at])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [results[at] for at in range(len(items))]
