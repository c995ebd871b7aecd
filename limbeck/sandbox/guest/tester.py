"""The side that holds the tests: it asks the worker for values and decides.

The code under test never shares a process with what decides. So nothing that it redefines, prints, patches or
compares with turns a failed test into a passed one; it passes by giving the right answers.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import re
import sys

from limbeck.sandbox.guest.far import Asker, Far, Gone, Undefined
from limbeck.sandbox.guest.wire import LIST, decode

TYPE_CHECKING = False  # `typing` takes longer to load than a test takes to run
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType
    from typing import Any

_SHOWN, _REASON = 80, 300  # characters of a value, and of a reason


# Names that the tests see


def find_names(asker: Asker, job: dict[str, Any]) -> dict[str, Any]:
    """Return the tests' globals: the code's functions, and nothing of the code's under a name of Python's own."""
    names: dict[str, Any] = {"__name__": "tests"}
    entry, sources = job["entry_point"], [job["setup"], *job["tests"]]
    found = asker.ask_names([entry] if entry else _mentioned(sources))
    if entry:
        _define(job["given"], names)
        if not isinstance(found.get(entry), LIST) or found[entry][0] != "far":
            raise Undefined(f"it defines no {entry}")
        return {**names, entry: decode(found[entry], asker.find)}
    text = "\n".join(sources)
    for name, value in found.items():
        if name in sys.stdlib_module_names and (_is_module(value) or re.search(rf"\b{name}\s*\.", text)):
            names[name] = importlib.import_module(name)
        elif name.isidentifier() and not hasattr(builtins, name) and not name.startswith("__"):
            names[name] = None if _is_module(value) else decode(value, asker.find)
    return names


def _mentioned(sources: list[str]) -> list[str]:
    found, pending = set[str](), [code for code in map(_compiled, sources) if code]
    while pending:
        code = pending.pop()
        found.update(code.co_names)
        pending += [inner for inner in code.co_consts if isinstance(inner, type(code))]
    return sorted(found)


def _compiled(source: str) -> CodeType | None:
    try:
        return compile(source, "tests", "exec")
    except SyntaxError:  # it will be said of the test itself
        return None


def _is_module(value: Any) -> bool:
    return isinstance(value, LIST) and value[0] == "module"


def _define(given: str, names: dict[str, Any]) -> None:
    """Run the given head of a program, whose imports and helpers the tests may use; its last body may be missing."""
    for text in (given, given + "\n    pass\n"):
        try:
            code = compile(text, "given", "exec")
        except SyntaxError:
            continue
        exec(code, names)
        return


# The tests


def run_tests(job: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
    """Run the tests in order and say how far they came; the first that fails is the last."""
    asker, source = Asker(), ""
    try:
        names = find_names(asker, job)
        source = job["setup"]
        exec(compile(source, "tests", "exec"), names)
        for index, source in enumerate(job["tests"]):
            say({"begun": index})
            asker.returned = []
            exec(compile(source, "tests", "exec"), names)
            if asker.gone:  # and a test's bare `except:` hid it
                raise Gone
    except BaseException as error:
        gone = isinstance(error, Gone)
        say({"failed": _why(error, asker)[:_REASON], "line": _line(error, source), "gone": gone})
    else:
        say({"passed": len(job["tests"])})


def _why(error: BaseException, asker: Asker) -> str:
    if isinstance(error, Gone):
        return "the code ended its process"
    if isinstance(error, Undefined):
        return str(error)
    if not isinstance(error, AssertionError):
        return f"{type(error).__name__}: {error}"
    text = _show(error.args[0]) if error.args else ""
    returned = f"the code returned {_show(asker.returned[0])}" if asker.returned else ""
    return "; ".join(part for part in (text, returned) if part) or "not so"


def _line(error: BaseException, source: str) -> str:
    """Return the line of the tests that failed."""
    number, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "tests":
            number = trace.tb_lineno
        trace = trace.tb_next
    lines = source.splitlines()
    return lines[number - 1].strip() if 0 < number <= len(lines) else ""


def _show(value: Any) -> str:
    if isinstance(value, Far):
        return "an object of its own"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number too long to print, lists too deep
        return f"a value of type {type(value).__name__} that cannot be shown"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def main() -> None:
    """Run the tests that come on standard input; each message on standard output begins with their secret word."""
    job = json.loads(sys.stdin.buffer.read())

    def say(message: dict[str, Any]) -> None:
        os.write(1, f"\n{job['secret']}{json.dumps(message)}\n".encode())

    run_tests(job, say)


if __name__ == "__main__":
    main()
