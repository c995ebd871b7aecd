"""DSPy modules that turn a task round (the input for an output) and rate pairs, and the reader of a rating.

The fields of the first are the task's own two, the other way about, so that gold rows are its demonstrations.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from limbeck.signatures.backtranslate import rate_pair, write_request

_SCORE = re.compile(r"\b(?:score|rating)\b\W{0,6}(?:is\W{1,3}|of\W{1,3})?(\d+)(?:[.,](\d+))?", re.IGNORECASE)
_BARE = re.compile(r"\W{0,3}([1-5])(?:\s*(?:/|out of)\s*5)?\W{0,3}")
_QUOTES = (('"', '"'), ("“", "”"))


def parse_score(text: str) -> int | None:
    """Return the last score from 1 to 5 that a rating names, a broken one rounded down; None where it names none.

    >>> parse_score("It is complete.\\nScore: 4"), parse_score("**Rating:** 3.5/5"), parse_score("good\\n5")
    (4, 3, 5)
    >>> parse_score("Score: 10") is None, parse_score("I would say it is good.") is None
    (True, True)
    """
    found = list(_SCORE.finditer(text))
    if found:
        score = int(found[-1][1])
        broken = score == 5 and bool((found[-1][2] or "").strip("0"))
        return score if 1 <= score <= 5 and not broken else None
    lines = [line for line in text.splitlines() if line.strip()]
    bare = _BARE.fullmatch(lines[-1].strip()) if lines else None
    return int(bare[1]) if bare else None


class RequestWriter(dspy.Module):
    """Writes the input that an output answers; those of a compiled prompt stand before the call's demonstrations."""

    def __init__(self, field: str, output: str, task: str) -> None:
        super().__init__()
        self.field, self.output = field, output
        self.write = dspy.Predict(write_request(field, output, task))

    def demos(self, rows: Sequence[tuple[str, str]]) -> list[dspy.Example]:
        """Return (input, output) pairs of gold rows turned round."""
        return [dspy.Example(**{self.output: y, self.field: x}).with_inputs(self.output) for x, y in rows]

    def forward(
        self, text: str, *, demos: Sequence[dspy.Example] = (), config: Mapping[str, Any] | None = None
    ) -> dspy.Prediction:
        """Return a prediction whose `text` is the input, without its name and quotes around it; "" for none."""
        shown: dict[str, Any] = {"demos": [*self.write.demos, *demos]} if demos else {}
        made: Any = self.write(**{self.output: text}, **shown, config=dict(config or {}))
        return dspy.Prediction(text=_bare(str(made[self.field]), self.field))


class PairRater(dspy.Module):
    """Rates an output for an input from 1 to 5; demonstrations as for `RequestWriter`."""

    def __init__(self, field: str, output: str, task: str) -> None:
        super().__init__()
        self.field, self.output = field, output
        self.rate = dspy.Predict(rate_pair(field, output, task))
        signature: Any = self.rate.signature
        self.review = next(iter(signature.output_fields))

    def demo(self, request: str, answer: str, review: str) -> dspy.Example:
        """Return a rated pair as a demonstration."""
        given = {self.field: request, self.output: answer}
        return dspy.Example(**given, **{self.review: review}).with_inputs(*given)

    def forward(
        self,
        request: str,
        answer: str,
        *,
        demos: Sequence[dspy.Example] = (),
        config: Mapping[str, Any] | None = None,
    ) -> dspy.Prediction:
        """Return a prediction with `score`, None where the answer names none, and the whole `review`."""
        shown: dict[str, Any] = {"demos": [*self.rate.demos, *demos]} if demos else {}
        given = {self.field: request, self.output: answer}
        made: Any = self.rate(**given, **shown, config=dict(config or {}))
        review = str(made[self.review]).strip()
        return dspy.Prediction(score=parse_score(review), review=review)


def _bare(text: str, field: str) -> str:
    named = rf"^\W{{0,3}}(?:{re.escape(field.replace('_', ' '))}|{re.escape(field)})\W{{0,2}}:\W{{0,2}}\s+"
    text = re.sub(named, "", text.strip(), flags=re.IGNORECASE).strip()
    for left, right in _QUOTES:
        inner = text[1:-1]
        if len(text) > 2 and text.startswith(left) and text.endswith(right) and not {left, right} & set(inner):
            text = inner.strip()
    return text if any(c.isalnum() for c in text) else ""
