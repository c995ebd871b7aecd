from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.engine.batching import Gatherer, batches_by_length, packs, settle
from limbeck.errors import ModelError

Jobs = list[tuple[int, Future[Any]]]
sizes_lists = st.lists(st.integers(min_value=1, max_value=50), max_size=40)


@given(sizes=sizes_lists, rows=st.integers(1, 8), tokens=st.integers(1, 120))
def test_batches_hold_every_row_once_within_limits(sizes: list[int], rows: int, tokens: int):
    batches = batches_by_length(sizes, rows, tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) <= rows
        assert len(batch) == 1 or max(sizes[i] for i in batch) * len(batch) <= tokens
    assert [sizes[i] for batch in batches for i in batch] == sorted(sizes, reverse=True)


@given(rows=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), max_size=40), most=st.integers(1, 99))
def test_packs_hold_every_row_once_with_one_key_each(rows: list[tuple[str, int]], most: int):
    keys, sizes = [key for key, _ in rows], [size for _, size in rows]
    found = packs(keys, sizes, most)
    assert sorted(i for pack in found for i in pack) == list(range(len(rows)))
    for pack in found:
        assert len({keys[i] for i in pack}) == 1
        assert len(pack) == 1 or sum(sizes[i] for i in pack) <= most


@pytest.fixture
def gatherers() -> Iterator[Callable[..., Gatherer[int]]]:
    made: list[Gatherer[int]] = []

    def make(run: Callable[[Jobs], None], **options: Any) -> Gatherer[int]:
        given: dict[str, Any] = {"wait_ms": 5.0, "most": 64, **options}
        made.append(Gatherer(run, **given))
        return made[-1]

    yield make
    for gatherer in made:
        gatherer.close()


def double(jobs: Jobs) -> None:
    for job, future in jobs:
        settle(future, 2 * job)


def test_calls_that_come_together_run_together(gatherers: Callable[..., Gatherer[int]]):
    batches: list[int] = []

    def run(jobs: Jobs) -> None:
        batches.append(len(jobs))
        double(jobs)

    gatherer = gatherers(run, wait_ms=500.0)
    ready = threading.Barrier(8)

    def call(job: int) -> int:
        ready.wait()
        return gatherer.call(job)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, range(8))) == [2 * i for i in range(8)]
    assert batches == [8]


def test_a_batch_has_at_most_so_many_calls(gatherers: Callable[..., Gatherer[int]]):
    batches: list[int] = []

    def run(jobs: Jobs) -> None:
        batches.append(len(jobs))
        double(jobs)

    gatherer = gatherers(run, most=3)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(gatherer.call, range(8)))
    assert sum(batches) == 8
    assert max(batches) <= 3


def test_an_error_goes_to_the_callers_it_belongs_to_and_the_thread_goes_on(
    gatherers: Callable[..., Gatherer[int]],
):
    def run(jobs: Jobs) -> None:
        if any(job == 13 for job, _ in jobs):
            raise OverflowError("thirteen")
        double(jobs)

    gatherer = gatherers(run)
    with pytest.raises(OverflowError, match="thirteen"):
        gatherer.call(13)
    assert gatherer.call(4) == 8


def test_a_result_that_is_set_survives_a_later_error_of_its_batch(gatherers: Callable[..., Gatherer[int]]):
    def run(jobs: Jobs) -> None:
        double(jobs[:1])
        raise OverflowError("late")

    assert gatherers(run).call(4) == 8


def test_a_closed_gatherer_refuses_calls_and_fails_those_that_wait(
    gatherers: Callable[..., Gatherer[int]],
):
    started, go_on = threading.Event(), threading.Event()

    def run(jobs: Jobs) -> None:
        started.set()
        go_on.wait()
        double(jobs)

    gatherer = gatherers(run, most=1)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(gatherer.call, 1)
        started.wait()
        second = pool.submit(gatherer.call, 2)
        while not gatherer.waiting:
            time.sleep(0.001)
        closing = pool.submit(gatherer.close)
        while not gatherer.closed:
            time.sleep(0.001)
        go_on.set()
        closing.result()
        assert first.result() == 2
        with pytest.raises(ModelError, match="closed"):
            second.result()
    with pytest.raises(ModelError, match="closed"):
        gatherer.call(3)


def test_closing_an_unused_gatherer_twice_is_fine(gatherers: Callable[..., Gatherer[int]]):
    gatherer = gatherers(double)
    gatherer.close()
    gatherer.close()
    with pytest.raises(ModelError, match="closed"):
        gatherer.call(1)


def test_settle_leaves_an_outcome_alone():
    future: Future[int] = Future()
    settle(future, 1)
    settle(future, error=ValueError())
    assert future.result() == 1
    gone: Future[int] = Future()
    gone.cancel()
    settle(gone, 1)
    assert gone.cancelled()
