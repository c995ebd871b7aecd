"""What a model is asked when it writes new inputs: several short texts a call, one row a call, or topics.

Everything that stays the same from call to call (the task, the rules) is in the instructions, which adapters
put first, so that engines keep it cached; what changes (style, count) comes last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import dspy

from limbeck.signatures.tasks import FieldSpec, build_signature

TEXTS, TOPICS = "texts", "topics"


def write_texts(field: str, task: str, *, labelled: bool, described: bool) -> type[dspy.Signature]:
    """Return the signature that writes `count` new values of one input field, as numbered lines.

    >>> write_texts("question", "Name the type.", labelled=True, described=False).signature
    'label, style, count -> texts'
    """
    noun = _noun(field)
    rules = [
        f"Write new examples of a {noun} for this task: {task}",
        f"Each line is one complete and realistic {noun}, like those that people send.",
        *_label_rules(noun, labelled),
        f"Number the lines. Make every {noun} different in topic and wording.",
    ]
    count = FieldSpec("count", str, "how many to write")
    outputs = [FieldSpec(TEXTS, str, "numbered lines")]
    return build_signature([*_conditions(labelled, described), count], outputs, "\n".join(rules))


def write_row(fields: Mapping[str, Any], task: str, *, labelled: bool, described: bool) -> type[dspy.Signature]:
    """Return the signature that writes one new row of several input fields (name to type).

    Its own inputs make way for a column of the same name: a task with a column "style" has "wanted_style".

    >>> write_row({"passage": str, "question": str}, "Answer.", labelled=False, described=False).signature
    'style -> passage, question'
    """
    noun = " and ".join(_noun(name) for name in fields)
    rules = [
        f"Write a new {noun} for this task: {task}",
        "It is complete and realistic, like those that people send, and new in topic and wording.",
        *_label_rules(noun, labelled),
    ]
    outputs = [FieldSpec(name, annotation) for name, annotation in fields.items()]
    conditions = [
        replace(spec, name=f"wanted_{spec.name}") if spec.name in fields else spec
        for spec in _conditions(labelled, described)
    ]
    return build_signature(conditions, outputs, "\n".join(rules))


def propose_topics(field: str, task: str, *, labelled: bool, described: bool) -> type[dspy.Signature]:
    """Return the signature that lists what new inputs could be about.

    >>> propose_topics("text", "Name the type.", labelled=False, described=False).signature
    'examples, count -> topics'
    """
    noun = _noun(field)
    rules = [
        f"List topics for new examples of a {noun}, for this task: {task}",
        "Each line is one topic of one to four words. Number the lines. Make all topics different.",
    ]
    inputs = [
        *_conditions(labelled, described)[:-1],
        FieldSpec("examples", str, f"real examples of a {noun}"),
        FieldSpec("count", str, "how many to list"),
    ]
    return build_signature(inputs, [FieldSpec(TOPICS, str, "numbered lines")], "\n".join(rules))


def _noun(field: str) -> str:
    return field.replace("_", " ").strip()


def _label_rules(noun: str, labelled: bool) -> list[str]:
    return [f"The {noun} must clearly belong to the label, and must not name the label."] if labelled else []


def _conditions(labelled: bool, described: bool) -> list[FieldSpec]:
    label = [FieldSpec("label", str, "what it must belong to")] if labelled else []
    meaning = [FieldSpec("meaning", str, "what the label means")] if labelled and described else []
    return [*label, *meaning, FieldSpec("style", str, "length, tone and topic to write in")]
