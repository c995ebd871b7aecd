"""One thread for all of torch's work in this process.

Every thread that runs a torch operation gets a pool of OpenMP threads of its own. With more such threads than cores
libgomp stops spinning between operations and wakes its threads through the kernel instead, which halves the speed
of models with thousands of small operations a step. Engines, training and embedding therefore share one thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_NAME = "limbeck-compute"
_thread = ThreadPoolExecutor(1, thread_name_prefix=_NAME)


def on_compute_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what the function returns, run on the process's compute thread; exceptions pass through.

    Called on that thread it simply calls the function. An interrupt waits for the call's end, so that nothing
    goes on behind the caller's back.

    >>> on_compute_thread(max, 1, 2)
    2
    """
    if threading.current_thread().name.startswith(_NAME):
        return function(*args, **kwargs)
    job = _thread.submit(function, *args, **kwargs)
    try:
        return job.result()
    except BaseException:
        wait([job])
        raise
