"""What a model is asked when it rewrites a row: to repair it, to say it in other words, to adapt a foreign one.

A row goes in under its own field names and comes back under names of its own (text, then new_text). What is the same
for all rows comes first, so that engines keep it cached; wishes for the one row come last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from limbeck.signatures.tasks import FieldSpec, build_signature


def free_name(name: str, taken: Mapping[str, Any] | Sequence[str]) -> str:
    """Return a field name that a task's columns leave free.

    >>> free_name("label", ["text"]), free_name("label", ["text", "label"])
    ('label', 'wanted_label')
    """
    while name in taken:
        name = f"wanted_{name}"
    return name


def new_names(fields: Mapping[str, Any], changed: Sequence[str]) -> dict[str, str]:
    """Return the output field that holds the new value of each changed field.

    >>> new_names({"text": str, "new_text": str}, ["text"])
    {'text': 'wanted_new_text'}
    """
    return {name: free_name(f"new_{name}", fields) for name in changed}


def noun_of(fields: Sequence[str]) -> str:
    """Return how prompts name these fields.

    >>> noun_of(["customer_message", "subject"])
    'customer message and subject'
    """
    return " and ".join(name.replace("_", " ").strip() for name in fields)


def rewrite_row(
    fields: Mapping[str, Any],
    changed: Sequence[str],
    rules: Sequence[str],
    *,
    before: Sequence[FieldSpec] = (),
    after: Sequence[FieldSpec] = (),
) -> type[dspy.Signature]:
    """Return the signature that reads a row of `fields` and writes its `changed` fields anew.

    >>> rewrite_row({"text": str, "tags": list[str]}, ["text"], ["Shorten it."]).signature
    'text, tags -> new_text'
    """
    names = new_names(fields, changed)
    kept = noun_of([name for name in fields if name not in names])
    rules = [*rules, *([f"The {kept} stays as it is."] if kept else [])]
    inputs = [*before, *(FieldSpec(name, annotation) for name, annotation in fields.items()), *after]
    return build_signature(inputs, [FieldSpec(names[name], fields[name]) for name in changed], "\n".join(rules))


def repair_row(fields: Mapping[str, Any], changed: Sequence[str]) -> type[dspy.Signature]:
    """Return the signature that corrects spelling and format and changes nothing else.

    >>> repair_row({"text": str}, ["text"]).signature
    'text -> new_text'
    """
    noun = noun_of(changed)
    rules = [
        f"Copy the {noun} with its spelling mistakes, doubled or missing letters, grammar and punctuation corrected.",
        "Keep every other word, every name and every number. Do not answer it and add nothing.",
        f"Where nothing is wrong, copy the {noun} as it is.",
    ]
    return rewrite_row(fields, changed, rules)


def rephrase_row(fields: Mapping[str, Any], changed: Sequence[str], task: str) -> type[dspy.Signature]:
    """Return the signature that says the same in other words.

    >>> rephrase_row({"text": str}, ["text"], "Name the type.").signature
    'text -> new_text'
    """
    noun = noun_of(changed)
    rules = [
        f"Say the {noun} in other words, as another person would write it who wants exactly the same.",
        "Keep the meaning, every name and every number, and about the length. Do not answer it and add nothing.",
        f"It is the input of this task, whose answer must stay the same: {task}",
    ]
    return rewrite_row(fields, changed, rules)


def adapt_row(fields: Mapping[str, Any], changed: Sequence[str], task: str) -> type[dspy.Signature]:
    """Return the signature that brings a row of another data set into the form of real rows of the task.

    >>> adapt_row({"text": str}, ["text"], "Name the type.").signature
    'examples, text, length -> new_text'
    """
    noun = noun_of(changed)
    rules = [
        f"The examples are real inputs of this task: {task}",
        f"The {noun} comes from elsewhere. Rewrite it so that it could stand among the examples: their kind of "
        "writer, tone, spelling and length.",
        "Keep what it is about and what it wants. Do not answer it and do not copy an example.",
    ]
    examples = FieldSpec(free_name("examples", fields), str, "real inputs, to write like")
    length = FieldSpec(free_name("length", fields), str, f"about how long the new {noun} is")
    return rewrite_row(fields, changed, rules, before=[examples], after=[length])
