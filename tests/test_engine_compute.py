from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# In a process of its own: what others have allocated and which threads they have started matters.
FILL = """
import resource
import torch
from limbeck.engine.compute import on_compute_thread

def fill():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(100 << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

on_compute_thread(fill)
print(min(on_compute_thread(fill) for _ in range(12)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is set under glibc alone")
def test_the_memory_of_freed_tensors_serves_the_next_ones() -> None:
    done = subprocess.run([sys.executable, "-c", FILL], capture_output=True, text=True, check=True)
    assert int(done.stdout) < (100 << 20) / 4096 / 10
