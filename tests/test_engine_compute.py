from __future__ import annotations

import platform
import resource

import pytest
import torch

from limbeck.engine.compute import on_compute_thread

_PAGES = (64 << 20) // 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is set under glibc alone")
def test_the_memory_of_freed_tensors_serves_the_next_ones() -> None:
    def fill() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(_PAGES * 1024)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert min(on_compute_thread(fill) for _ in range(6)) < _PAGES / 10
