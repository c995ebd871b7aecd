"""Verifiers that run model-written code against unit tests, for the rows of HumanEval and of MBPP.

The code and the tests run in two processes of one sandbox, see limbeck.sandbox.guest.tester: a verdict comes from the
process that holds the tests, under a secret word that the code never sees, and a run that ends early has failed.

HumanEval: Chen et al. 2021, arXiv:2107.03374. MBPP: Austin et al. 2021, arXiv:2108.07732.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

from limbeck.errors import InputError
from limbeck.sandbox import DEFAULT_LIMITS, Limits, Program, Ran, Status, compile_own, run_pair
from limbeck.verifiers import Verdict

_FENCE = re.compile(r"\s*(```+|~~~+)")
_DEFINED = re.compile(r"^\s*(?:async\s+)?(?:def|class)\s+(\w+)", re.M)
_SHOWN = 120  # characters of a test in a reason


@dataclass(frozen=True)
class Suite:
    """The tests of one task.

    `tests` are pieces of Python run in order. With `entry_point` they may also call `check`, and `given` is the head
    of the program that the answer continues or replaces; `setup` is run before the tests.
    """

    tests: tuple[str, ...]
    entry_point: str = ""
    given: str = ""
    setup: str = ""

    @classmethod
    def humaneval(cls, prompt: str, test: str, entry_point: str) -> Suite:
        """Return the suite of a HumanEval row, whose `test` defines `check(candidate)`."""
        return cls((f"{test}\n\ncheck({entry_point})\n",), entry_point=entry_point, given=prompt)

    @classmethod
    def mbpp(cls, tests: Sequence[str], setup: str = "") -> Suite:
        """Return the suite of an MBPP row, whose `tests` are assert statements."""
        return cls(tuple(tests), setup=setup)


@dataclass(frozen=True)
class Checked:
    """What became of one answer: `passed` tests of `total`, the status of its run, and seconds of wall time."""

    ok: bool
    reason: str
    status: Status
    passed: int
    total: int
    seconds: float


def check_code(answer: str, suite: Suite, *, limits: Limits = DEFAULT_LIMITS, allow_weak: bool = False) -> Checked:
    """Run one answer, code or Markdown with code, against its tests; raises as `limbeck.sandbox.run_code`.

    >>> suite = Suite.mbpp(["assert double(2) == 4", "assert double(-1) == -2"])
    >>> check_code("def double(n): return n * n", suite, allow_weak=True).reason
    'test 2 of 2 failed: assert double(-1) == -2: the code returned 1'
    """
    secret = secrets.token_hex(16)
    code = unfence(answer, "\n".join((suite.entry_point, suite.setup, *suite.tests)))
    order = {"secret": secret, "tests": suite.tests, "entry_point": suite.entry_point}
    order |= {"given": suite.given, "setup": suite.setup}
    tester = Program(compile_own("wire", "far", "tester"), json.dumps(order))
    answered = json.dumps({"code": code, "given": suite.given, "entry_point": suite.entry_point})
    worker = Program(compile_own("wire", "worker"), answered)
    tests, own = run_pair(tester, worker, limits=limits, allow_weak=allow_weak)
    return _read(tests, own, secret, len(suite.tests), limits)


def check_many(
    answers: Iterable[tuple[str, Suite]],
    *,
    threads: int,
    limits: Limits = DEFAULT_LIMITS,
    allow_weak: bool = False,
) -> list[Checked]:
    """Check answers, `threads` at a time, and return what became of each, in order; raises as `check_code`."""
    check = functools.partial(check_code, limits=limits, allow_weak=allow_weak)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(check, *zip(*answers, strict=True)))


def unfence(text: str, wanted: str = "") -> str:
    """Return the code of an answer: what its Markdown fences hold, or all of it where there are none.

    Of several blocks it is the first that defines a name found in `wanted`, else the longest.

    >>> unfence("Sure!\\n```python\\nx = 1\\n```\\nDone.")
    'x = 1'
    """
    blocks = _blocks(text)
    if not blocks:
        return text
    names = set(re.findall(r"\w+", wanted))
    useful = [block for block in blocks if names & set(_DEFINED.findall(block))]
    return useful[0] if useful else max(blocks, key=len)


def _blocks(text: str) -> list[str]:
    blocks, fence, lines = list[str](), "", list[str]()
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if not fence and mark:
            fence, lines = mark[1], []
        elif fence and mark and line.strip() == fence:
            blocks.append("\n".join(lines))
            fence = ""
        elif fence:
            lines.append(line)
    return [*blocks, "\n".join(lines)] if fence else blocks  # the last one may be cut off


def _read(tests: Ran, own: Ran, secret: str, total: int, limits: Limits) -> Checked:
    """Return the verdict that the tester gave, or why it gave none."""
    messages = _messages(tests.stdout, secret)
    begun = [int(message["begun"]) for message in messages if "begun" in message]
    last = messages[-1] if messages else {}
    if tests.status == "ok" and last.get("passed") == total:
        return Checked(True, "", "ok", total, total, tests.wall_seconds)
    status, why = _failure(tests, own, last, limits)
    where = f"test {begun[-1] + 1} of {total}" if begun else "the code"
    line = str(last.get("line", ""))[:_SHOWN]
    reason = f"{where} failed: {line}: {why}" if line else f"{where} failed: {why}"
    return Checked(False, reason, status, begun[-1] if begun else 0, total, tests.wall_seconds)


def _messages(text: str, secret: str) -> list[dict[str, Any]]:
    messages = list[dict[str, Any]]()
    for line in text.split("\n"):
        if line.startswith(secret):
            with contextlib.suppress(ValueError):  # cut where the tests print too much
                messages.append(json.loads(line.removeprefix(secret)))
    return messages


def _failure(tests: Ran, own: Ran, last: Mapping[str, Any], limits: Limits) -> tuple[Status, str]:
    if tests.status == "timeout":
        return "timeout", f"no answer in {limits.seconds:g} s"
    if "failed" not in last:
        return tests.status if tests.status != "ok" else "error", f"the tests ended with {tests.status}"
    why = str(last["failed"])
    if not last.get("gone"):
        return "memory" if why.startswith("MemoryError") else "error", why
    if own.status == "timeout":
        return "timeout", f"the code used {limits.cpu_seconds} s of processor time"
    return own.status if own.status != "ok" else "error", f"{why} (exit code {own.exit_code})"


@dataclass(frozen=True)
class UnitTests:
    """Passes if the code in `field` passes the tests in the row's inputs.

    `tests` names the input with the tests, a list of asserts or, with `entry_point`, a text that defines
    `check(candidate)`; `prompt` names the head of the program, `setup` what runs before the asserts. "" stands for a
    column that there is none of. `votes` counts what is raised against the row, so call `limbeck.sandbox.require`
    before a run over many.

    >>> verifier = UnitTests.mbpp("code", allow_weak=True)
    >>> verifier({"test_list": ["assert f(1) == 2"]}, {"code": "def f(x): return x + 1"}).ok
    True
    """

    field: str
    tests: str
    entry_point: str = ""
    prompt: str = ""
    setup: str = ""
    limits: Limits = DEFAULT_LIMITS
    allow_weak: bool = False

    @classmethod
    def humaneval(cls, field: str = "completion", **options: Any) -> UnitTests:
        """Return the verifier for rows with HumanEval's columns; options are `limits` and `allow_weak`."""
        return cls(field, "test", entry_point="entry_point", prompt="prompt", **options)

    @classmethod
    def mbpp(cls, field: str = "code", **options: Any) -> UnitTests:
        """Return the verifier for rows with MBPP's columns; options are `limits` and `allow_weak`."""
        return cls(field, "test_list", setup="test_setup", **options)

    @property
    def name(self) -> str:
        """The verifier's name."""
        return f"{self.field} passes its tests"

    def __call__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Verdict:
        """Return the verdict; raises InputError for a row without tests or where the sandbox is too weak."""
        answer = outputs.get(self.field)
        if not isinstance(answer, str) or not answer.strip():
            return Verdict(False, f"{self.field} is empty")
        checked = check_code(answer, self.suite(inputs), limits=self.limits, allow_weak=self.allow_weak)
        return Verdict(checked.ok, checked.reason)

    def suite(self, inputs: Mapping[str, Any]) -> Suite:
        """Return the tests of a row; raises InputError if it has none."""
        tests = inputs.get(self.tests)
        if self.entry_point:
            if not isinstance(tests, str) or not tests.strip() or not inputs.get(self.entry_point):
                raise self._missing(inputs, f"{self.tests} and {self.entry_point}")
            return Suite.humaneval(_text(inputs, self.prompt), tests, _text(inputs, self.entry_point))
        if isinstance(tests, str) or not isinstance(tests, Sequence) or not tests:
            raise self._missing(inputs, f"{self.tests}, a list of asserts")
        return Suite.mbpp([str(test) for test in cast("Sequence[Any]", tests)], _text(inputs, self.setup))

    def _missing(self, inputs: Mapping[str, Any], wanted: str) -> InputError:
        return InputError(f"a row has no tests: its columns are {', '.join(inputs) or 'none'}", valid=wanted)


def _text(inputs: Mapping[str, Any], column: str) -> str:
    """Return a column's text; "" where there is none."""
    return str(inputs.get(column) or "")
