"""What passes between two programs of one run: plain values as JSON, a line a message.

Values are built anew on the other side, so nothing of a sender's classes comes along.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
from collections import deque

TYPE_CHECKING = False  # `typing` takes longer to load than a test takes to run
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LIST: type = list  # declared so that a check says nothing of what is inside
DICT: type = dict
_SHOWN = 200  # characters of an error's text
_JSON_INT = 1 << 63
_KINDS: dict[str, type] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}
_PARTS: dict[str, Callable[[Any], list[Any]]] = {  # how to make a value of the standard library anew
    "decimal.Decimal": lambda v: [str(v)],
    "fractions.Fraction": lambda v: [v.numerator, v.denominator],
    "datetime.date": lambda v: [v.year, v.month, v.day],
    "datetime.time": lambda v: [v.hour, v.minute, v.second, v.microsecond],
    "datetime.datetime": lambda v: [v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond],
    "datetime.timedelta": lambda v: [v.days, v.seconds, v.microseconds],
}


def encode(value: Any, refer: Callable[[Any], list[Any]]) -> Any:
    """Return a value as JSON can hold it; `refer` gives what stands for one that is not plain, or raises TypeError.

    >>> encode((1, {"a": {2.5}}), refer=repr)
    ['tuple', [1, ['dict', [['a', ['set', [2.5]]]]]]]
    """
    if value is None or isinstance(value, (bool, str, float)):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < _JSON_INT else ["int", hex(value)]
    for name, kind in _KINDS.items():
        if isinstance(value, kind):
            return [name, [encode(item, refer) for item in value]]
    if isinstance(value, DICT):
        return ["dict", [[encode(k, refer), encode(v, refer)] for k, v in value.items()]]
    if isinstance(value, (bytes, bytearray)):
        return [type(value).__name__, value.hex()]
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, range):
        return ["range", [value.start, value.stop, value.step]]
    if isinstance(value, type) and getattr(builtins, value.__name__, None) is value:
        return ["type", value.__name__]
    name = f"{type(value).__module__}.{type(value).__name__}"
    return [name, _PARTS[name](value)] if name in _PARTS else refer(value)


def decode(value: Any, find: Callable[[str, int], Any]) -> Any:
    """Return the value that `encode` was given; `find` gives what a tag and a number stand for.

    >>> decode(encode([1, {"a": {2.5}}], refer=repr), find=divmod)
    [1, {'a': {2.5}}]
    """
    if not isinstance(value, LIST):
        return value
    tag, content = value
    if tag in _KINDS:
        return _KINDS[tag](decode(item, find) for item in content)
    if tag == "dict":
        return {decode(k, find): decode(v, find) for k, v in content}
    if tag == "int":
        return int(content, 16)
    if tag in ("bytes", "bytearray"):
        return (bytes if tag == "bytes" else bytearray).fromhex(content)
    if tag in ("complex", "range"):
        return (complex if tag == "complex" else range)(*content)
    if tag in _PARTS:
        module, _, name = tag.partition(".")
        return getattr(importlib.import_module(module), name)(*content)
    if tag == "type":
        kind = getattr(builtins, content)
        return kind if isinstance(kind, type) else None
    return find(tag, content)


def as_error(error: BaseException) -> dict[str, Any]:
    """Return an error as a message."""
    return {"error": [type(error).__name__, str(error)[:_SHOWN]]}


def as_exception(name: str, text: str) -> Exception:
    """Return the error of a message: of Python's own class, or a RuntimeError that names its class."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:  # one that wants more than a text
            pass
    return RuntimeError(f"{name}: {text}")


class Wire:
    """One side of the pipes between two programs of a run: JSON, a line a message."""

    def __init__(self) -> None:
        self._read, self._write = os.fdopen(4, "rb"), os.fdopen(5, "wb")

    def send(self, message: Any) -> None:
        """Send a message; raises OSError if the other side is gone."""
        self._write.write(json.dumps(message).encode() + b"\n")
        self._write.flush()

    def receive(self) -> Any:
        """Return the next message; raises EOFError if the other side is gone."""
        line = self._read.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return json.loads(line)
