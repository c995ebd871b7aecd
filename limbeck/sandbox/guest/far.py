"""The tester's end of the wire: it asks the worker, and holds a `Far` where an answer is not a plain value."""

from __future__ import annotations

from limbeck.sandbox.guest.wire import DICT, Wire, as_error, as_exception, decode, encode

TYPE_CHECKING = False  # `typing` takes longer to load than a test takes to run
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


class Gone(BaseException):
    """The worker has ended; no `except Exception` of a test may hide that."""


class Far:
    """Stands for an object of the worker's; equal to itself alone, as its own comparison has no say in a test."""

    __slots__ = ("_ask", "_number")
    _ask: Callable[..., Any]
    _number: int

    def __init__(self, ask: Callable[..., Any], number: int) -> None:
        object.__setattr__(self, "_ask", ask)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the object where it is."""
        return self._ask("call", self, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("setitem", self, key, value)

    def __contains__(self, value: Any) -> bool:
        return value in self._ask("list", self)  # compared here

    def __len__(self) -> int:
        return self._ask("len", self)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ask("list", self))

    def __next__(self) -> Any:
        return self._ask("next", self)

    def __bool__(self) -> bool:
        return self._ask("bool", self) is True

    def __str__(self) -> str:
        return str(self._ask("str", self))

    def __repr__(self) -> str:
        return str(self._ask("repr", self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Far) and other._number == self._number

    def __hash__(self) -> int:
        return hash(self._number)


class Undefined(Exception):
    """The code does not define what the tests are about."""


class Asker:
    """Asks the worker, and remembers the last answer for the reason of a failure."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.gone = False
        self.returned: list[Any] = []
        self._functions: list[Any] = []

    def hear(self) -> dict[str, Any]:
        """Return the worker's next message; raises Gone, now and ever after, if none comes that can be read."""
        try:
            message: Any = None if self.gone else self.wire.receive()
            if isinstance(message, DICT):
                return message
        except (EOFError, OSError, ValueError, RecursionError):
            pass
        self.gone = True
        raise Gone

    def ask(self, deed: str, *args: Any, **kwargs: Any) -> Any:
        """Have a deed done with the worker's objects and return the value; raises what the code raised."""
        sent = [encode(arg, self._refer) for arg in args]
        named = {name: encode(arg, self._refer) for name, arg in kwargs.items()}
        self.returned = []
        self._send({"do": deed, "args": sent, "kwargs": named})
        while "back" in (answer := self.hear()):
            self._send(self._call_back(answer))
        if "error" in answer:
            raise _raised(deed, *answer["error"])
        value = decode(answer["value"], self.find)
        for place, content in answer["after"].items():
            _update(args[int(place)], decode(content, self.find))
        self.returned = [value] if deed == "call" else []
        return value

    def ask_names(self, wanted: list[str]) -> dict[str, Any]:
        """Return what the code defines under these names, as it came; raises Undefined if the code does not run."""
        self._send(wanted)
        hello = self.hear()
        if "error" in hello:
            raise Undefined(": ".join(hello["error"]))
        return hello["names"]

    def find(self, tag: str, number: int) -> Any:
        """Return what stands for an object of the worker's, or the tests' own function that came back."""
        return self._functions[number] if tag == "tests" else Far(self.ask, number)

    def _send(self, message: Any) -> None:
        try:
            self.wire.send(message)
        except OSError:
            self.gone = True

    def _call_back(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            function = self._functions[request["back"]]
            return {"value": encode(function(*(decode(arg, self.find) for arg in request["args"])), self._refer)}
        except Exception as error:
            return as_error(error)

    def _refer(self, value: Any) -> list[Any]:
        if isinstance(value, Far):
            return ["far", value._number]  # pyright: ignore[reportPrivateUsage]
        if not callable(value):
            raise TypeError(f"a test passes a {type(value).__name__}, which is not a plain value")
        self._functions.append(value)
        return ["tests", len(self._functions) - 1]


def _raised(deed: str, name: str, text: str) -> Exception:
    if name == "StopIteration" and deed != "next":  # it would end a test's loop over cases as if all were done
        return RuntimeError(f"{name}: {text}")
    return as_exception(name, text)


def _update(old: Any, new: Any) -> None:
    """Give a test's own list, dict, set or bytearray the content that the code under test left in it."""
    kind = type(old).__name__
    if kind != type(new).__name__:
        return
    if kind in ("list", "bytearray"):
        old[:] = new
    elif kind in ("dict", "set"):
        old.clear()
        old.update(new)
