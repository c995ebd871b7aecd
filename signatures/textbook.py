"""What a model is asked when it writes textbook passages, grades texts, and writes a task's inputs from a passage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import dspy

from limbeck.signatures.tasks import FieldSpec, build_signature

PASSAGE, REVIEW, TEXTS = "passage", "review", "texts"


def write_passage(task: str, *, labelled: bool, described: bool) -> type[dspy.Signature]:
    """Return the signature that writes a textbook passage on a topic for an audience.

    >>> write_passage("Name the type.", labelled=True, described=False).signature
    'label, topic, audience, form -> passage'
    """
    rules = [
        f"You write a textbook for people who learn this task: {task}",
        "Write one passage of it: correct, clear, self-contained and rich in content, in the language of the task. "
        "Use concrete names, numbers and situations. No heading, no greeting, no list of what comes next.",
    ]
    if labelled:
        rules.append("The passage shows what belongs to the label, and how to tell it from what does not.")
    wishes = [FieldSpec("topic"), FieldSpec("audience"), FieldSpec("form")]
    inputs = [*_label(labelled, described), *wishes]
    return build_signature(inputs, [FieldSpec(PASSAGE, str, "80 to 150 words")], "\n".join(rules))


def grade_passage(task: str) -> type[dspy.Signature]:
    """Return the signature that grades a text's educational value for a task from 1 to 5, the reason first.

    >>> grade_passage("Name the type.").signature
    'passage -> review'
    """
    rules = [
        f"Grade the educational value of a passage for somebody who learns this task: {task}",
        "1: none: advertising, menus, fragments, or nothing to do with the task.",
        "2: little: on the subject, but thin, muddled or full of what does not matter.",
        "3: some: useful facts or examples, yet incomplete or hard to follow.",
        "4: much: clear, correct, with facts or examples that one could make exercises of.",
        "5: very much: as a good textbook would say it, exact, well ordered, and every sentence teaches something.",
        'First give the reason in one sentence. Then end with a line "Score: " and the number.',
    ]
    review = FieldSpec(REVIEW, str, "the reason, then the score")
    return build_signature([FieldSpec(PASSAGE)], [review], "\n".join(rules))


def write_exercises(
    fields: Mapping[str, Any], task: str, *, labelled: bool, described: bool, several: bool
) -> type[dspy.Signature]:
    """Return the signature that writes a task's inputs from a passage: numbered lines, or one row of all fields.

    Its own inputs make way for a column of the same name: a task with a column "passage" has "given_passage".

    >>> write_exercises({"text": str}, "Do.", labelled=False, described=False, several=True).signature
    'examples, passage, count -> texts'
    """
    noun = " and ".join(name.replace("_", " ").strip() for name in fields)
    rules = [
        f"Write new examples of a {noun} for this task: {task}" if several else f"Write a new {noun} for: {task}",
        "Take facts, situations and words from the passage. It is not shown to those who read what you write: "
        "everything they need is in your text.",
        f"Write like the examples, but repeat none: the same kind of {noun}, as people really send it, about what is "
        "in the passage.",
    ]
    if labelled:
        rules.append(f"The {noun} must clearly belong to the label, and must not name the label.")
    if several:
        rules.append(f"Number the lines. Each line is one complete {noun}, different from the others.")
    inputs = [
        *_label(labelled, described),
        FieldSpec("examples", str, f"real examples of a {noun}"),
        FieldSpec(PASSAGE),
        *([FieldSpec("count", str, "how many to write")] if several else []),
    ]
    if several:
        return build_signature(inputs, [FieldSpec(TEXTS, str, "numbered lines")], "\n".join(rules))
    outputs = [FieldSpec(name, annotation) for name, annotation in fields.items()]
    free = [replace(spec, name=f"given_{spec.name}") if spec.name in fields else spec for spec in inputs]
    return build_signature(free, outputs, "\n".join(rules))


def _label(labelled: bool, described: bool) -> list[FieldSpec]:
    label = [FieldSpec("label", str, "what it must belong to")] if labelled else []
    return [*label, *([FieldSpec("meaning", str, "what the label means")] if labelled and described else [])]
