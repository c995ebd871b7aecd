"""The side that holds the code under test: it defines what the code defines and does with it what it is asked."""

from __future__ import annotations

import itertools
import json
import operator
import re
import sys
import textwrap
import types

from limbeck.sandbox.guest.wire import Wire, as_error, as_exception, decode, encode

TYPE_CHECKING = False  # `typing` takes longer to load than a test takes to run
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_LISTED = 100_000  # values taken from an iterator; one may have no end


def _listed(values: Any) -> list[Any]:
    return list(itertools.islice(values, _LISTED))


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


_DEEDS: dict[str, Callable[..., Any]] = {
    "call": _call,
    "getattr": getattr,
    "setattr": setattr,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "len": len,
    "list": _listed,
    "next": next,
    "bool": bool,
    "str": str,
    "repr": repr,
}


class Worker:
    """Runs the code under test and does to its objects what the tester asks for."""

    def __init__(self) -> None:
        self.wire = Wire()
        self._kept: list[Any] = []
        self._numbers: dict[int, int] = {}

    def work(self, job: dict[str, Any]) -> None:
        """Define what the code defines, say so, and serve until the tester is gone."""
        module = types.ModuleType("solution")
        sys.modules["solution"] = module
        try:
            exec(compile(assemble(**job), "solution", "exec"), module.__dict__)
            wanted = [name for name in self.wire.receive() if name in vars(module)]
            self.wire.send({"names": {name: self._name(vars(module)[name]) for name in wanted}})
        except BaseException as error:  # SystemExit too
            self.wire.send(as_error(error))
        while True:
            self._serve(self.wire.receive())

    def _serve(self, request: dict[str, Any]) -> None:
        try:
            answer = self._do(request)
        except BaseException as error:
            answer = as_error(error)
        self.wire.send(answer)

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        args: list[Any] = [decode(arg, self._find) for arg in request["args"]]
        before = [json.dumps(arg) for arg in request["args"]]
        kwargs = {name: decode(arg, self._find) for name, arg in request["kwargs"].items()}
        value = encode(_DEEDS[request["do"]](*args, **kwargs), self._refer)
        after = [encode(arg, self._refer) for arg in args]
        return {"value": value, "after": {i: a for i, a in enumerate(after) if json.dumps(a) != before[i]}}

    def _name(self, value: Any) -> Any:
        return ["module", value.__name__] if isinstance(value, types.ModuleType) else encode(value, self._refer)

    def _refer(self, value: Any) -> list[Any]:
        if isinstance(value, _TestsFunction):
            return ["tests", value.number]
        if id(value) not in self._numbers:  # kept, so that no other object takes over its id
            self._numbers[id(value)] = len(self._kept)
            self._kept.append(value)
        return ["far", self._numbers[id(value)]]

    def _find(self, tag: str, number: int) -> Any:
        return _TestsFunction(self, number) if tag == "tests" else self._kept[number]

    def ask_back(self, number: int, args: tuple[Any, ...]) -> Any:
        """Call a function of the tests'; while it runs, the tester may ask for something in turn."""
        self.wire.send({"back": number, "args": [encode(arg, self._refer) for arg in args]})
        while "do" in (message := self.wire.receive()):
            self._serve(message)
        if "error" in message:
            raise as_exception(*message["error"])
        return decode(message["value"], self._find)


class _TestsFunction:
    """Stands for a function that a test passes to the code."""

    def __init__(self, worker: Worker, number: int) -> None:
        self._worker, self.number = worker, number

    def __call__(self, *args: Any) -> Any:
        return self._worker.ask_back(self.number, args)


def assemble(code: str, given: str, entry_point: str) -> str:
    """Return the program of an answer: a whole program, or the body that continues the given text.

    >>> assemble("return 1", given="def f():\\n", entry_point="f")
    'def f():\\n    return 1'
    """
    if not given:
        return code
    if re.search(rf"^def\s+{re.escape(entry_point)}\b", code, re.M):
        # The given text's imports and helpers, and its own head of the function, which the answer replaces.
        choices = [f"{given}\n    pass\n{code}", code]
    else:
        choices = [given + code, f"{given}    {code}", given + textwrap.indent(code, "    ")]
    for choice in choices:
        try:
            compile(choice, "solution", "exec")
        except (SyntaxError, ValueError):
            continue
        return choice
    return choices[-1] if choices[-1] == code else choices[0]


def main() -> None:
    """Serve the tester with the code that comes on standard input."""
    job = json.loads(sys.stdin.buffer.read())
    try:
        Worker().work(job)
    except (EOFError, OSError):
        sys.exit()  # the tester is done


if __name__ == "__main__":
    main()
