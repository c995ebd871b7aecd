# pyright: reportPrivateUsage=false
from __future__ import annotations

import os

import pytest
import torch

from limbeck.engine import best_dtype, probe, set_threads


@pytest.fixture(autouse=True)
def _measure_again():  # pyright: ignore[reportUnusedFunction]
    probe._measured_dtype.cache_clear()
    yield
    probe._measured_dtype.cache_clear()


@pytest.mark.parametrize(("bf16", "expected"), [(0.4, torch.bfloat16), (0.95, torch.float32), (9.0, torch.float32)])
def test_bf16_is_chosen_where_it_is_clearly_faster(monkeypatch: pytest.MonkeyPatch, bf16: float, expected: torch.dtype):
    monkeypatch.setattr(probe, "product_seconds", lambda _: {torch.float32: 1.0, torch.bfloat16: bf16})
    assert best_dtype(torch.device("cpu")) is expected


def test_the_machine_is_measured_once(monkeypatch: pytest.MonkeyPatch):
    first = best_dtype(torch.device("cpu"))
    monkeypatch.setattr(probe, "product_seconds", lambda _: pytest.fail("measured twice"))
    assert best_dtype(torch.device("cpu")) is first


def test_every_number_type_is_timed():
    seconds = probe.product_seconds((torch.float32, torch.bfloat16))
    assert set(seconds) == {torch.float32, torch.bfloat16}
    assert all(0 < value < float("inf") for value in seconds.values())


def test_all_cores_of_this_process_are_used():
    assert set_threads() == torch.get_num_threads()
    assert 1 <= torch.get_num_threads() <= (os.cpu_count() or 1)
