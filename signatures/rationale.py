"""What a teacher is asked when it is told the answer: reason to it, as if nobody had told.

The rationalization of STaR (Zelikman et al. 2022, arXiv:2203.14465): the answer stands behind the inputs, and what is
kept of the call is the rationale alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy

from limbeck.signatures.rewrite import free_name

KNOWN = "known_answer"
_RULE = (
    "The {name} is right. Reason to it from the other fields step by step, as somebody would who does not know it "
    "yet: never say that it was given, and never reason from it."
)


def known_name(signature: Any) -> str:
    """Return the name of the field that tells the answer, one that the signature leaves free."""
    return free_name(KNOWN, list(signature.fields))


def with_known_answer(signature: Any, answer: str) -> type[dspy.Signature]:
    """Return the signature with one more input that tells the answer; calls need not name it.

    >>> with_known_answer(dspy.Signature("question -> answer"), "4").signature
    'question, known_answer -> answer'
    """
    name, make = known_name(signature), dspy
    field: Any = make.InputField(default=answer, desc="the right answer, which the rationale must not mention")
    told = signature.append(name, field, str)
    return told.with_instructions(f"{signature.instructions.strip()}\n{_RULE.format(name=name)}")


def answer_text(outputs: Mapping[str, Any]) -> str:
    """Return outputs as the one text that tells them.

    >>> answer_text({"answer": 4}), answer_text({"city": "Rome", "year": 1960})
    ('4', 'city: Rome; year: 1960')
    """
    if len(outputs) == 1:
        return str(next(iter(outputs.values())))
    return "; ".join(f"{name}: {value}" for name, value in outputs.items())
