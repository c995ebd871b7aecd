"""Label probabilities from the alternatives of an answer's first token, the one thing chat servers send."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.engine.requests import Message
from limbeck.models.labels import plain


@dataclass(frozen=True)
class TopTokens:
    """The likeliest first tokens with their log-probabilities, and what asking for them cost in tokens."""

    tokens: tuple[tuple[str, float], ...]
    tokens_in: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class LabelMasses:
    """Log-probability of each label; the probability that names one label, and that which names several."""

    logprobs: tuple[float, ...]
    known: float
    ambiguous: float


def label_masses(tokens: Sequence[tuple[str, float]], labels: Sequence[str]) -> LabelMasses:
    """Share the tokens' probability among the labels that begin with them.

    A label that no token begins gets less than the least likely token seen, which bounds it from above.

    >>> label_masses([("sp", -0.1), (" Ham", -2.4)], ["spam", "ham"]).logprobs
    (-0.1, -2.4)
    """
    masses, ambiguous = [0.0] * len(labels), 0.0
    names = [plain(label) for label in labels]
    for token, logprob in tokens:
        start = plain(token)
        if not start:
            continue
        hits = [i for i, name in enumerate(names) if name.startswith(start) or start.startswith(name)]
        if len(hits) == 1:
            masses[hits[0]] += math.exp(logprob)
        elif hits:
            ambiguous += math.exp(logprob)
    floor = min((logprob for _, logprob in tokens), default=0.0) - 1.0
    logprobs = tuple(math.log(mass) if mass > 0 else floor for mass in masses)
    return LabelMasses(tuple(round(value, 6) for value in logprobs), sum(masses), ambiguous)


def letters() -> tuple[str, ...]:
    """Return the letters that can stand for options."""
    return tuple(string.ascii_uppercase)


def lettered(messages: Sequence[Message], labels: Sequence[str]) -> tuple[Message, ...]:
    """Return the messages with the labels as lettered options at the end of the last turn."""
    options = "\n".join(f"{letter}. {label}" for letter, label in zip(letters(), labels, strict=False))
    role, content = messages[-1]
    question = f"{content}\n\nOptions:\n{options}\nAnswer with the letter of one option only."
    return (*messages[:-1], (role, question))
