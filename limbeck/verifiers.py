"""Verifiers: checks of one candidate row that need no model.

A verifier is anything with a name that takes inputs and outputs and returns a verdict. Verdicts are votes in
curation and in rejection sampling.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from pydantic import TypeAdapter, ValidationError

from limbeck.errors import BudgetExceeded
from limbeck.metrics import parse_number


@dataclass(frozen=True)
class Verdict:
    """Whether a row passes, and why not."""

    ok: bool
    reason: str = ""


class Verifier(Protocol):
    """A check of one row."""

    @property
    def name(self) -> str:
        """The verifier's name in records and reports."""
        ...

    def __call__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Verdict:
        """Return the verdict on one row; must not change it."""
        ...


@dataclass(frozen=True)
class NonEmpty:
    """Passes if the field holds something: an empty list is an answer, blanks are not.

    >>> NonEmpty("answer")({}, {"answer": " "}).reason
    'answer is empty'
    """

    field: str

    @property
    def name(self) -> str:
        """The verifier's name."""
        return f"{self.field} is not empty"

    def __call__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Verdict:
        """Return the verdict."""
        value = outputs.get(self.field)
        empty = value is None or (isinstance(value, str) and not value.strip())
        return Verdict(not empty, f"{self.field} is empty" if empty else "")


@dataclass(frozen=True)
class OfType:
    """Passes if the field has its declared type: a Literal, a number, a typed list or object.

    >>> OfType("tags", list[str])({}, {"tags": "a, b"}).ok
    False
    """

    field: str
    annotation: Any

    @property
    def name(self) -> str:
        """The verifier's name."""
        return f"{self.field} has its type"

    def __call__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Verdict:
        """Return the verdict."""
        try:
            TypeAdapter(self.annotation).validate_python(outputs.get(self.field))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in (self.field, *first["loc"]))
            return Verdict(False, f"{place}: {first['msg']}")
        return Verdict(True)


@dataclass(frozen=True)
class HoldsNumber:
    """Passes if a finite number can be read from the field."""

    field: str

    @property
    def name(self) -> str:
        """The verifier's name."""
        return f"{self.field} holds a number"

    def __call__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Verdict:
        """Return the verdict."""
        value = outputs.get(self.field)
        ok = parse_number(value) is not None
        return Verdict(ok, "" if ok else f"{self.field} holds no number: {str(value)[:40]!r}")


@dataclass(frozen=True)
class Grounded:
    """Passes if every extracted text occurs in an input, but for case and blanks; `keys` () means all."""

    field: str
    keys: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The verifier's name."""
        return f"{self.field} is in the input"

    def __call__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Verdict:
        """Return the verdict."""
        text = _fold(" ".join(str(v) for v in inputs.values()))
        for key, value in leaves(outputs.get(self.field)):
            if (not self.keys or key in self.keys) and _fold(value) not in text:
                return Verdict(False, f"{self.field}: {value[:40]!r} is not in the input")
        return Verdict(True)


def _fold(text: str) -> str:
    return " ".join(text.split()).casefold()


def leaves(value: Any, key: str = "") -> list[tuple[str, str]]:
    """Return every text in nested lists and objects with its nearest key.

    >>> leaves([{"slot": "time", "value": "7 pm"}])
    [('slot', 'time'), ('value', '7 pm')]
    """
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return [leaf for k, v in items for leaf in leaves(v, str(k))]
    if isinstance(value, (list, tuple)):
        return [leaf for v in cast("Sequence[Any]", value) for leaf in leaves(v, key)]
    return [(key, value)] if isinstance(value, str) else []


def grounded_keys(rows: Iterable[tuple[Mapping[str, Any], Any]]) -> tuple[str, ...]:
    """Return the keys whose gold texts all occur in their inputs; () if no key does."""
    found: dict[str, bool] = {}
    for inputs, value in rows:
        text = _fold(" ".join(str(v) for v in inputs.values()))
        for key, leaf in leaves(value):
            found[key] = found.get(key, True) and _fold(leaf) in text
    return tuple(k for k, ok in found.items() if ok)


def votes(
    verifiers: Iterable[Verifier], inputs: Mapping[str, Any], outputs: Mapping[str, Any]
) -> Mapping[str, Verdict]:
    """Return every verifier's verdict by name; one that raises votes against the row and says why.

    BudgetExceeded passes through.
    """
    verdicts: dict[str, Verdict] = {}
    for verifier in verifiers:
        try:
            verdicts[verifier.name] = verifier(inputs, outputs)
        except BudgetExceeded:  # a verifier that asks a model: the row is not to blame
            raise
        except Exception as error:  # a user's own code, run on whatever a model wrote
            verdicts[verifier.name] = Verdict(False, f"{type(error).__name__}: {error}")
    return types.MappingProxyType(verdicts)
