"""Closed sets of values: what a Literal, bool or enum may be, how it is written and how it is recognised."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

_QUOTES = "\"'`“”‘’*"


def closed_values(annotation: Any) -> tuple[Any, ...] | None:
    """Return the values that an annotation allows, None where they cannot be listed.

    >>> closed_values(Literal["spam", "ham"]), closed_values(bool), closed_values(str)
    (('spam', 'ham'), (True, False), None)
    """
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if annotation is bool:
        return (True, False)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return tuple(annotation)
    return None


def label_text(value: Any) -> str:
    """Return the text that stands for a value in a prompt: an enum's value, else the value itself.

    >>> label_text(True), label_text("card lost"), label_text(2)
    ('True', 'card lost', '2')
    """
    return str(value.value if isinstance(value, enum.Enum) else value)


def match_label(text: str, values: Sequence[Any]) -> Any:
    """Return the value that a model's text names; raises ValueError where it names none.

    Case, blanks, quotes and a closing full stop do not count; of several lines the first and the last are
    tried. Nothing is looked for inside a sentence: "not spam" is not "spam".

    >>> match_label(' "Card  Lost".', ["card lost", "card arrival"])
    'card lost'
    """
    lines = [line for line in text.strip().splitlines() if line.strip()] or [""]
    for candidate in (text, lines[0], lines[-1]):
        for value in values:
            if candidate.strip() == label_text(value):
                return value
        for value in values:
            if plain(candidate) in _names(value):
                return value
    raise ValueError(f"{text.strip()[:80]!r} is not one of {'; '.join(map(label_text, values))}")


def plain(text: str) -> str:
    """Return a text without what does not tell labels apart.

    >>> plain(' **Card  Lost**. ')
    'card lost'
    """
    bare = text.strip().strip(_QUOTES).rstrip(".").strip(_QUOTES)
    return re.sub(r"\s+", " ", bare).casefold().strip()


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, bool):
        return ("true", "yes") if value else ("false", "no")
    if isinstance(value, enum.Enum):
        return plain(label_text(value)), plain(value.name)
    return (plain(label_text(value)),)


def sharpen(probabilities: Mapping[str, float], temperature: float) -> dict[str, float]:
    """Return p^(1/T), normalised: what sampling at a temperature draws from. `temperature` is above 0."""
    top = max(probabilities.values())
    weights = {label: (p / top) ** (1 / temperature) for label, p in probabilities.items()}
    total = sum(weights.values())
    return {label: weight / total for label, weight in weights.items()}
