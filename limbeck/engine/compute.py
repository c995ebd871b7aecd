"""One thread for all of torch's work in this process.

Every thread that runs a torch operation gets a pool of OpenMP threads of its own. With more such threads than cores
libgomp stops spinning between operations and wakes its threads through the kernel instead, which halves the speed
of models with thousands of small operations a step. Engines, training and embedding therefore share one thread.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# glibc's mallopt (malloc.h): no mmap for large blocks, no trimming, one arena, and the heap grows by 64 MB.
_M_MMAP_MAX, _M_TRIM_THRESHOLD, _M_ARENA_MAX, _M_TOP_PAD = -4, -1, -8, -2
_MALLOC = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 << 20))
_NAME = "limbeck-compute"
_thread = ThreadPoolExecutor(1, thread_name_prefix=_NAME)


@cache
def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones; nothing happens under other C libraries.

    Given back after every pass it came anew, page by page: 270,000 page faults a training step of 8 rows (none now),
    and 2.0 rows/s where 2.5 are possible (2 cores). A run with a 1.5B teacher peaked at 12.1 GB instead of 10.4. It has
    to be said before the compute thread starts.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in _MALLOC:
            mallopt(option, value)


def on_compute_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what the function returns, run on the process's compute thread; exceptions pass through.

    Called on that thread it simply calls the function. An interrupt waits for the call's end, so that nothing
    goes on behind the caller's back.

    >>> on_compute_thread(max, 1, 2)
    2
    """
    if threading.current_thread().name.startswith(_NAME):
        return function(*args, **kwargs)
    keep_freed_memory()
    job = _thread.submit(function, *args, **kwargs)
    try:
        return job.result()
    except BaseException:
        wait([job])
        raise
