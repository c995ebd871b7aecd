"""Run model-written code: always in another process, at the strongest level the machine reaches."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from limbeck.sandbox.host import this_host
from limbeck.sandbox.launch import Program
from limbeck.sandbox.levels import require
from limbeck.sandbox.process import execute
from limbeck.sandbox.values import DEFAULT_LIMITS, Limits, Ran


def run_code(code: str, *, stdin: str = "", limits: Limits = DEFAULT_LIMITS, allow_weak: bool = False) -> Ran:
    """Run a Python program and return what it did; it sees the standard library and an empty folder.

    A run takes some 30 ms of processor time more than the program itself. Raises InputError where only limits
    would hold the code and `allow_weak` is not set, LimbeckError where the sandbox does not start.

    >>> run_code("print(6 * 7)", allow_weak=True).stdout
    '42\\n'
    """
    level = require(allow_weak=allow_weak).level
    return execute([Program(code, stdin)], limits, level, this_host())[0]


def run_pair(
    first: Program, second: Program, *, limits: Limits = DEFAULT_LIMITS, allow_weak: bool = False
) -> tuple[Ran, Ran]:
    """Run two programs that talk to each other, each in its own process, until the first ends.

    Each reads the other on file 4 and writes to it on file 5. Neither sees the other's memory, and only the first
    has outputs. Raises as `run_code`.
    """
    level = require(allow_weak=allow_weak).level
    one, other = execute([first, second], limits, level, this_host())
    return one, other


def run_many(
    codes: Iterable[str], *, threads: int, limits: Limits = DEFAULT_LIMITS, allow_weak: bool = False
) -> list[Ran]:
    """Run programs, `threads` at a time, and return what each did, in order; raises as `run_code`.

    >>> [ran.status for ran in run_many(["pass", "1 / 0"], threads=2, allow_weak=True)]
    ['ok', 'error']
    """
    require(allow_weak=allow_weak)
    run = functools.partial(run_code, limits=limits, allow_weak=allow_weak)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, codes))
