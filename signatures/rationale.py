"""What a teacher is asked when it is told the answer, and what a student is asked for a rationale alone.

In the rationalization of STaR (Zelikman et al. 2022, arXiv:2203.14465) the answer stands behind the inputs, to be
reasoned to as if nobody had told, and what is kept of the call is the rationale alone. Distilling step-by-step (Hsieh
et al. 2023, arXiv:2305.02301) teaches rationales under a prompt of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy

from limbeck.signatures.rewrite import free_name

KNOWN, RATIONALE = "known_answer", "rationale"
_RULE = (
    "The {name} is right. Reason to it from the other fields step by step, as somebody would who does not know it "
    "yet: never say that it was given, and never reason from it."
)

_EXPLAIN = "Do not answer yet: write the {name} that leads to the {outputs}, step by step."


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


def explain(signature: Any) -> type[dspy.Signature]:
    """Return the signature that asks for the rationale in the place of the outputs.

    >>> explain(dspy.Signature("question -> answer")).signature
    'question -> rationale'
    """
    name, outputs, make = free_name(RATIONALE, list(signature.fields)), list(signature.output_fields), dspy
    asked = signature.append(name, make.OutputField(), str)
    for output in outputs:
        asked = asked.delete(output)
    told = f"{signature.instructions.strip()}\n{_EXPLAIN.format(outputs=' and the '.join(outputs), name=name)}"
    return asked.with_instructions(told)


def answer_text(outputs: Mapping[str, Any]) -> str:
    """Return outputs as the one text that tells them.

    >>> answer_text({"answer": 4}), answer_text({"city": "Rome", "year": 1960})
    ('4', 'city: Rome; year: 1960')
    """
    if len(outputs) == 1:
        return str(next(iter(outputs.values())))
    return "; ".join(f"{name}: {value}" for name, value in outputs.items())
