"""DSPy modules that rewrite one row a call: repaired, in other words, or adapted from another data set."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from limbeck.programs.generate import numbered
from limbeck.signatures.rewrite import adapt_row, free_name, new_names, repair_row, rephrase_row

# A longer text is a document that a question is about: it is shown, and rewritten in no call.
MAX_WORDS = 80
_PAIRS = {'"': '"', "“": "”", "'": "'", "‘": "’", "`": "`"}


def changed_fields(fields: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the fields that a rewriting changes: texts of 80 words at the median or fewer, else the shortest.

    Without a text field there is none.

    >>> changed_fields({"passage": str, "question": str}, [{"passage": "word " * 200, "question": "Who came?"}])
    ('question',)
    """
    texts = [name for name, annotation in fields.items() if annotation is str]
    lengths = {name: sorted(len(str(row.get(name, "")).split()) for row in rows) or [0] for name in texts}
    medians = {name: found[len(found) // 2] for name, found in lengths.items()}
    short = tuple(name for name in texts if medians[name] <= MAX_WORDS)
    return short or tuple(sorted(texts, key=lambda name: medians[name])[:1])


def bare(text: str, names: Sequence[str] = ()) -> str:
    """Return a model's text without its field's name before it and quotation marks around it.

    >>> bare('new_text: "Where is my card?"', ["new_text"])
    'Where is my card?'
    """
    text = text.strip()
    for name in names:
        text = re.sub(rf"^\W{{0,4}}{re.escape(name)}\W{{0,4}}?:\W{{0,2}}\s+", "", text, count=1, flags=re.IGNORECASE)
    inner = text[1:-1]
    quoted = len(text) > 2 and _PAIRS.get(text[0]) == text[-1] and text[0] not in inner and text[-1] not in inner
    return (inner if quoted else text).strip()


class RowRewriter(dspy.Module):
    """Rewrites the `changed` fields of a row by one signature; the others are shown and stay as they are."""

    def __init__(self, signature: type[dspy.Signature], fields: Mapping[str, Any], changed: Sequence[str]) -> None:
        super().__init__()
        self.fields, self.names = dict(fields), new_names(fields, changed)
        self.rewrite = dspy.Predict(signature)

    def forward(
        self,
        row: Mapping[str, Any],
        *,
        wishes: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> dspy.Prediction:
        """Return a prediction whose `row` is the new row; `wishes` are the signature's own inputs by name."""
        given = {free_name(name, self.fields): text for name, text in (wishes or {}).items()}
        made = self.rewrite(**row, **given, config=dict(config or {}))
        new = {name: bare(str(made[output]), [output, name]) for name, output in self.names.items()}
        return dspy.Prediction(row={**row, **new})


class Repairer(RowRewriter):
    """Corrects spelling and format."""

    def __init__(self, fields: Mapping[str, Any], changed: Sequence[str]) -> None:
        super().__init__(repair_row(fields, changed), fields, changed)


class Rephraser(RowRewriter):
    """Says the same in other words."""

    def __init__(self, fields: Mapping[str, Any], changed: Sequence[str], task: str) -> None:
        super().__init__(rephrase_row(fields, changed, task), fields, changed)


class Adapter(RowRewriter):
    """Brings a row of another data set into the form of the task's real rows."""

    def __init__(self, fields: Mapping[str, Any], changed: Sequence[str], task: str) -> None:
        super().__init__(adapt_row(fields, changed, task), fields, changed)

    def forward(
        self,
        row: Mapping[str, Any],
        *,
        examples: Sequence[str] = (),
        words: int = 10,
        wishes: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> dspy.Prediction:
        """Return a prediction whose `row` is written like the examples, in about as many words."""
        own = {"examples": numbered(examples), "length": f"{words} words", **(wishes or {})}
        return super().forward(row, wishes=own, config=config)
