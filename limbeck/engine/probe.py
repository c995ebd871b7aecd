"""What this machine computes fast: the number type that pays, and the threads to use."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import cache

import torch

_SIZE = 512
_ROUNDS = 30


def set_threads() -> int:
    """Let torch use every core this process may run on; return how many."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.get_num_threads() != available:
        torch.set_num_threads(available)
    return available


def best_device() -> torch.device:
    """Return the CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    """Return bf16 where its matrix products are clearly faster than fp32's on `device`, else fp32.

    Measured once a process, which takes milliseconds: CPUs with bf16 units gain about 2x, others lose 10x by
    emulation, and the name of a CPU does not say which it is.
    """
    return _measured_dtype(device.type)


@cache
def _measured_dtype(kind: str) -> torch.dtype:
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    seconds = product_seconds((torch.float32, torch.bfloat16))
    # Below 1.2x the coarser numbers are not worth it.
    return torch.bfloat16 if seconds[torch.bfloat16] * 1.2 < seconds[torch.float32] else torch.float32


def product_seconds(dtypes: Sequence[torch.dtype]) -> dict[torch.dtype, float]:
    """Return the best time in seconds of one small matrix product in each number type.

    They take turns, so that other programs on the machine slow all of them alike.
    """
    pairs = {d: (torch.ones(_SIZE // 4, _SIZE, dtype=d), torch.ones(_SIZE, _SIZE, dtype=d)) for d in dtypes}
    best = dict.fromkeys(dtypes, float("inf"))
    for _ in range(_ROUNDS):
        for dtype, (left, right) in pairs.items():
            start = time.perf_counter()
            torch.nn.functional.linear(left, right)
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best
