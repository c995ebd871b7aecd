"""What a model is asked when it makes a row harder, writes a rarer one, or compares the two (Evol-Instruct).

The six operations are those of Xu et al. 2023 (arXiv:2304.12244), in words of our own. One signature serves the five
in-depth ones: how to make the row harder is its last input, so that all before it stays cached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from limbeck.signatures.rewrite import free_name, noun_of, rewrite_row
from limbeck.signatures.tasks import FieldSpec, build_signature

BREADTH = "breadth"
IN_DEPTH: Mapping[str, str] = {
    "add constraints": "Add one more condition or requirement that the answer has to meet.",
    "deepen": "Ask for more: where it asks about a matter, ask further and about more sides of it.",
    "concretize": "Put particular things, names or situations in the place of general ones.",
    "reasoning steps": "Where little thought is enough, change it so that several steps of reasoning are needed.",
    "complicate input": "Add data that the answer has to use, such as a small table, a list of figures, JSON or code.",
}
OPERATIONS = (*IN_DEPTH, BREADTH)
HOW, ADDED, NOTHING = "how", "added", "nothing"
_LENGTH = "Add 10 to 20 words, no more."


def evolve_row(
    fields: Mapping[str, Any], changed: Sequence[str], task: str, *, labelled: bool, described: bool
) -> type[dspy.Signature]:
    """Return the signature that makes a row somewhat harder in the way that `how` says.

    >>> evolve_row({"text": str}, ["text"], "Answer.", labelled=False, described=False).signature
    'text, how -> new_text'
    """
    noun = noun_of(changed)
    rules = [
        f"Make the {noun} a little harder. It is the input of this task: {task}",
        "Do not answer it: write only the harder version, complete in itself, so that a person understands it and "
        "can answer it.",
        f"Keep what it is about and all that it holds: tables, code, figures, names. {_LENGTH}",
        *_label_rule(noun, labelled),
    ]
    how = FieldSpec(free_name(HOW, fields), str, f"how to make the {noun} harder")
    return rewrite_row(fields, changed, rules, before=_label_fields(fields, labelled, described), after=[how])


def breadth_row(
    fields: Mapping[str, Any], changed: Sequence[str], task: str, *, labelled: bool, described: bool
) -> type[dspy.Signature]:
    """Return the signature that writes a new and rarer row of the same domain.

    >>> breadth_row({"text": str}, ["text"], "Answer.", labelled=False, described=False).signature
    'text -> new_text'
    """
    noun = noun_of(changed)
    rules = [
        f"Write a brand new {noun} for this task: {task}",
        f"It belongs to the same domain as the {noun} shown, but is about something rarer. It is about as long and "
        "as hard, and a person understands it and can answer it.",
        f"Do not answer anything: write only the new {noun}.",
        *_label_rule(noun, labelled),
    ]
    return rewrite_row(fields, changed, rules, before=_label_fields(fields, labelled, described))


def compare_rows(noun: str) -> type[dspy.Signature]:
    """Return the signature that names what a second text asks for beyond the first, so that a gain can be seen.

    >>> compare_rows("question").signature
    'first, second -> added'
    """
    rules = [
        f"Compare two versions of a {noun}: the conditions and requirements they hold to, how deeply and how broadly "
        "they ask.",
        f"Write what the second asks for that the first does not, in a few words. Write {NOTHING} where it only uses "
        "other words.",
    ]
    inputs = [FieldSpec("first"), FieldSpec("second")]
    return build_signature(
        inputs, [FieldSpec(ADDED, str, f"what only the second asks for, or {NOTHING}")], "\n".join(rules)
    )


def _label_rule(noun: str, labelled: bool) -> list[str]:
    return [f"The new {noun} must still belong to the label, and must not name it."] if labelled else []


def _label_fields(fields: Mapping[str, Any], labelled: bool, described: bool) -> list[FieldSpec]:
    label = [FieldSpec(free_name("label", fields), str, "what it belongs to")] if labelled else []
    meaning = [FieldSpec(free_name("meaning", fields), str, "what the label means")] if labelled and described else []
    return [*label, *meaning]
