"""Trying again: exponential backoff with jitter, at the server's own pace where it names one."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from limbeck.errors import CallFailed
from limbeck.models.backend import Transient

T = TypeVar("T")
LONGEST_WAIT = 120.0  # seconds; a server that asks for more is down for this run
_LONGEST_BACKOFF = 60.0


def retrying(
    call: Callable[[], T],
    model: str,
    *,
    retries: int,
    sleep: Callable[[float], None],
    report: Callable[[Transient, float], None],
) -> T:
    """Return what `call` returns, after up to `retries` more attempts; raises CallFailed after the last.

    Only Transient is tried again. Waits are about 1, 2, 4 ... seconds, halved at random so that threads that
    failed together do not come back together. `report` hears of each wait.
    """
    for attempt in range(retries + 1):
        try:
            return call()
        except Transient as error:
            wait = error.retry_after
            if attempt == retries or (wait is not None and wait > LONGEST_WAIT):
                asked = f"; it asks to wait {wait:.0f} s" if wait is not None else ""
                raise CallFailed(
                    f"{model} failed {attempt + 1} times in a row: {error}{asked}",
                    hint="run the same command again later: every finished call is kept",
                ) from error
            if wait is None:
                wait = min(_LONGEST_BACKOFF, 2.0**attempt) * random.uniform(0.5, 1.0)
            report(error, wait)
            sleep(wait)
    raise ValueError(f"retries must be at least 0, not {retries}")
