"""A constitution: the principles that answers are criticised and revised by, read from a TOML file.

Constitutional AI (Bai et al. 2022, arXiv:2212.08073) trains on a model's own revisions under written principles. The
file that ships with the package holds principles of our own; a user's file takes its place.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from limbeck.errors import InputError

_TABLE = "principle"
_TEXTS = ("name", "critique", "revision")
_KEYS = (*_TEXTS, "weight", "toxicity")
_HEADER = re.compile(rf"^\s*\[\[\s*[\"']?{_TABLE}[\"']?\s*\]\]")
_PLACE = re.compile(r"\(at line (\d+)")
_EXAMPLE = '[[principle]] with name = "...", critique = "...", revision = "..." and, if wanted, weight = 1'


@dataclass(frozen=True)
class Principle:
    """One principle: what to look for in an answer, what to do about it, and how often it is drawn.

    With `toxicity` the rule "toxic" of curation looks for it in written rows.
    """

    name: str
    critique: str
    revision: str
    weight: float = 1.0
    toxicity: bool = False


def read_principles(path: str | Path = "") -> tuple[Principle, ...]:
    """Return the principles of a TOML file, "" for those that ship with the package.

    Raises InputError, with the line, for a file that cannot be read, has no principles, a key that is not known, a
    text that is missing or empty, a weight that is no number above 0, or a name twice.

    >>> len(read_principles()) == len({p.name for p in read_principles()}) > 5
    True
    """
    if not path:
        return parse_principles((files("limbeck") / "principles.toml").read_text("utf-8"), "principles.toml")
    try:
        text = Path(path).expanduser().read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8 text"
        raise InputError(f"{path} cannot be read: {reason}", valid="a TOML file", hint="--constitution FILE") from error
    return parse_principles(text, str(path))


def parse_principles(text: str, where: str) -> tuple[Principle, ...]:
    """Return the principles of a TOML text; `where` names it in errors, which are InputErrors with the line."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = _PLACE.search(str(error))
        place = f"{where}, line {line[1]}" if line else where
        raise InputError(f"{place} is not TOML: {error}", valid=_EXAMPLE) from error
    lines = text.splitlines()
    for key in raw:
        if key != _TABLE:
            raise _unknown(f"{where}, line {_line(lines, key)}", key, [_TABLE])
    entries: Any = raw.get(_TABLE)
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in cast("list[Any]", entries)):
        raise InputError(
            f"{where} holds no principles", valid=_EXAMPLE, hint="leave --constitution out for the own ones"
        )
    found: list[Principle] = []
    for number, entry in enumerate(cast("list[dict[str, Any]]", entries)):
        place = _Place(where, lines, number)
        one = _principle(entry, place)
        if one.name in [other.name for other in found]:
            raise InputError(
                f"{place.of('name')}: two principles are named {one.name!r}", valid="a name of its own each"
            )
        found.append(one)
    return tuple(found)


@dataclass(frozen=True)
class _Place:
    """Where one principle stands: the `number`-th table of a file, counted from 0."""

    where: str
    lines: Sequence[str]
    number: int

    def of(self, key: str = "") -> str:
        """Return the file and line of a key, of the table where it has no such line of its own."""
        starts = [i for i, line in enumerate(self.lines) if _HEADER.match(line)]
        if self.number >= len(starts):  # written as an array of inline tables
            return f"{self.where}, principle {self.number + 1}"
        start = starts[self.number]
        end = starts[self.number + 1] if self.number + 1 < len(starts) else len(self.lines)
        at = _line(self.lines[start + 1 : end], key) if key else 0
        return f"{self.where}, line {start + 1 + at}"


def _principle(entry: Mapping[str, Any], place: _Place) -> Principle:
    for key in entry:
        if key not in _KEYS:
            raise _unknown(place.of(key), key, _KEYS)
    for key in _TEXTS:
        value = entry.get(key)
        if not isinstance(value, str) or not value.strip():
            what = "is missing" if key not in entry else f"is {value!r}"
            raise InputError(f"{place.of(key)}: {key} {what}", valid="a text that says something")
    weight = entry.get("weight", 1.0)
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not number or not 0 < weight < math.inf:
        raise InputError(f"{place.of('weight')}: weight is {weight!r}", valid="a number above 0")
    toxicity = entry.get("toxicity", False)
    if not isinstance(toxicity, bool):
        raise InputError(f"{place.of('toxicity')}: toxicity is {toxicity!r}", valid="true or false")
    texts = (" ".join(str(entry[key]).split()) for key in _TEXTS)
    return Principle(*texts, weight=float(weight), toxicity=toxicity)


def _line(lines: Sequence[str], key: str) -> int:
    """Return the number, from 1, of the line that sets a key or opens its table; 0 where none does."""
    sets = re.compile(rf"^\s*\[*\s*[\"']?{re.escape(key)}[\"']?\s*[=.\]]")
    return next((i for i, line in enumerate(lines, 1) if sets.match(line)), 0)


def _unknown(place: str, key: str, valid: Sequence[str]) -> InputError:
    close = difflib.get_close_matches(key, valid, n=1)
    hint = f"write {close[0]}" if close else ""
    return InputError(f"{place}: unknown key {key!r}", valid=", ".join(valid), hint=hint)
