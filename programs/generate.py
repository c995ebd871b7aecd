"""DSPy modules that write new inputs and propose topics, and the parser of what small models answer."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from limbeck.programs.refusals import declines
from limbeck.signatures.generate import TEXTS, TOPICS, propose_topics, write_row, write_texts

ANY_STYLE = "any"
_NUMBERED = re.compile(r"^\W{0,3}(?:no\.?\s*)?\d{1,3}\s*[.):\]\-]+\s*", re.IGNORECASE)
_BULLET = re.compile(r"^[-*•–—]\s+")
_QUOTES = (('"', '"'), ("“", "”"), ("'", "'"), ("‘", "’"), ("`", "`"), ("**", "**"), ("*", "*"))
_PROMPT_LINE = re.compile(r"^(?:label|meaning|style|count|topics?|texts)\s*:|^\[\[\s*##", re.IGNORECASE)


def parse_lines(text: str, *, limit: int, field: str = "text") -> list[str]:
    """Return at most `limit` texts from a model's list, without numbers, bullets, quotes and field names.

    Where some lines are numbered, or else bulleted, only those count (the others are preambles and remarks).
    A line of the prompt's own ("label: ...", "style: ...") ends the list: the model has begun to repeat it.

    >>> parse_lines('Sure!\\n1. "Where is it?"\\n2) Text: Who came?\\nHope this helps', limit=5)
    ['Where is it?', 'Who came?']
    """
    lines: list[str] = []
    for line in text.strip().splitlines():
        if lines and _PROMPT_LINE.match(line.strip()):
            break
        if line.strip():
            lines.append(line.strip())
    for marker in (_NUMBERED, _BULLET):
        if any(marker.match(line) for line in lines):
            lines = [marker.sub("", line, count=1) for line in lines if marker.match(line)]
            break
    named = rf"^(?:{re.escape(field.replace('_', ' '))}|{re.escape(field)}|text|example|input)\s*\d*\s*:\s+"
    bare = [_unquoted(re.sub(named, "", _unquoted(line), flags=re.IGNORECASE)) for line in lines]
    return [line for line in bare if any(c.isalnum() for c in line)][:limit]


def numbered(texts: Sequence[str]) -> str:
    """Return the texts as numbered lines, the form that `parse_lines` reads.

    >>> numbered(["a", "b c"])
    '1. a\\n2. b c'
    """
    return "\n".join(f"{i}. {' '.join(text.split())}" for i, text in enumerate(texts, 1))


def _unquoted(text: str) -> str:
    text = text.strip()
    for left, right in _QUOTES:
        whole = text.startswith(left) and text.endswith(right) and len(text) > len(left) + len(right)
        inner = text[len(left) : -len(right)]
        if whole and left not in inner and right not in inner:
            return inner.strip()
    return text


@dataclass(frozen=True)
class Condition:
    """What the written inputs must be: their label with its meaning ("" where there is none), and style."""

    label: str = ""
    meaning: str = ""
    style: str = ANY_STYLE


class InputWriter(dspy.Module):
    """Writes new inputs for a task: several texts a call where one short text is the input, else one row.

    `fields` maps the input fields to their types. Demonstrations come with each call, so that one writer
    serves all labels and blocks at once from many threads; those of a compiled prompt stand before them.
    """

    def __init__(self, fields: Mapping[str, Any], task: str, *, labelled: bool, described: bool, several: bool) -> None:
        super().__init__()
        self.fields, self.several = dict(fields), several
        self.labelled, self.described = labelled, described
        name = next(iter(fields))
        self.write = dspy.Predict(
            write_texts(name, task, labelled=labelled, described=described)
            if several
            else write_row(fields, task, labelled=labelled, described=described)
        )

    def demos(self, rows: Sequence[Mapping[str, Any]], condition: Condition) -> list[dspy.Example]:
        """Return real rows as what the writer should answer: one list of texts, or a demonstration a row."""
        given = self._given(condition)
        if not rows:
            return []
        if self.several:
            texts = numbered([str(row[next(iter(self.fields))]) for row in rows])
            given["count"] = str(len(rows))
            return [dspy.Example(**given, **{TEXTS: texts}).with_inputs(*given)]
        return [dspy.Example(**given, **{name: row[name] for name in self.fields}).with_inputs(*given) for row in rows]

    def forward(
        self,
        condition: Condition,
        *,
        count: int = 1,
        demos: Sequence[dspy.Example] = (),
        config: Mapping[str, Any] | None = None,
    ) -> dspy.Prediction:
        """Return a prediction whose `rows` are at most `count` new inputs, as mappings of the fields.

        Where the model declines to write, there are none and `refused` is what it said, else "".
        """
        given, settings = self._given(condition), dict(config or {})
        shown = [*self.write.demos, *demos]
        if not self.several:
            made = self.write(**given, demos=shown, config=settings)
            return _prediction(str(made[next(iter(self.fields))]), [{name: made[name] for name in self.fields}])
        settings["stop"] = [f"\n{count + 1}."]
        made = self.write(**given, count=str(count), demos=shown, config=settings)
        name = next(iter(self.fields))
        return _prediction(made[TEXTS], [{name: t} for t in parse_lines(made[TEXTS], limit=count, field=name)])

    def _given(self, condition: Condition) -> dict[str, str]:
        label = [condition.label] if self.labelled else []
        meaning = [condition.meaning] if self.labelled and self.described else []
        signature: Any = self.write.signature
        return dict(zip(signature.input_fields, [*label, *meaning, condition.style], strict=False))


def _prediction(said: str, rows: Sequence[Mapping[str, Any]]) -> dspy.Prediction:
    refused = " ".join(said.split()) if declines(said) else ""
    return dspy.Prediction(rows=[] if refused else list(rows), refused=refused)


class TopicProposer(dspy.Module):
    """Lists what new inputs of a label could be about."""

    def __init__(self, field: str, task: str, *, labelled: bool, described: bool) -> None:
        super().__init__()
        self.labelled, self.described = labelled, described
        signature = propose_topics(field, task, labelled=labelled, described=described)
        self.propose = dspy.Predict(signature)

    def forward(
        self,
        condition: Condition,
        *,
        examples: Sequence[str],
        count: int = 8,
        config: Mapping[str, Any] | None = None,
    ) -> dspy.Prediction:
        """Return a prediction whose `topics` are at most `count` texts of one to five words."""
        given: dict[str, str] = {"label": condition.label} if self.labelled else {}
        if self.labelled and self.described:
            given["meaning"] = condition.meaning
        settings = {**(config or {}), "stop": [f"\n{count + 1}."]}
        made = self.propose(**given, examples=numbered(examples), count=str(count), config=settings)
        lines = parse_lines(made[TOPICS], limit=count, field="topic")
        # A question or a sentence is not a topic: the model has copied the examples' form.
        short = [line for line in lines if len(line.split()) <= 5 and not line.endswith(("?", "!"))]
        return dspy.Prediction(topics=tuple(dict.fromkeys(line.rstrip(".:;,").casefold() for line in short)))
