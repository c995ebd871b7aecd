"""What a teacher is asked for a chain of abstraction: to rewrite a worked solution, or to write one for a problem.

Chain-of-Abstraction (Gao et al. 2024, arXiv:2401.17464): results are placeholders, so that the model reasons and
tools calculate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from limbeck.signatures.tasks import FieldSpec, build_signature

PROBLEM, SOLUTION, CHAIN, REASONING = "problem", "solution", "chain", "reasoning"
_FORM = (
    "Every calculation is a placeholder [EXPRESSION = NAME]; the names are y1, y2, y3 in their order.",
    "Numbers of the problem stay as they are. A result is never written out: what was calculated before is called by "
    "its name, in placeholders and in words.",
)
_END = 'End with "The answer is NAME."'


def rewrite_solution(tools: Sequence[str] = ()) -> type[dspy.Signature]:
    """Return the signature that rewrites a worked solution as a chain.

    >>> rewrite_solution().signature
    'problem, solution -> chain'
    """
    rules = ["Rewrite the worked solution with placeholders in the place of its results.", *_rules(tools)]
    return build_signature([FieldSpec(PROBLEM), FieldSpec(SOLUTION)], [FieldSpec(CHAIN)], "\n".join(rules))


def write_chain(tools: Sequence[str] = ()) -> type[dspy.Signature]:
    """Return the signature that writes a chain for a problem.

    >>> write_chain(["search"]).signature
    'problem -> chain'
    """
    rules = ["Solve the problem in short steps, with placeholders in the place of results.", *_rules(tools)]
    return build_signature([FieldSpec(PROBLEM)], [FieldSpec(CHAIN)], "\n".join(rules))


def reason_abstractly(fields: Mapping[str, Any], task: str, tools: Sequence[str] = ()) -> type[dspy.Signature]:
    """Return the signature of a program that reasons by a chain and leaves the results to tools.

    >>> reason_abstractly({"question": str}, "Answer with a number.").signature
    'question -> reasoning'
    """
    inputs = [FieldSpec(name, annotation) for name, annotation in fields.items()]
    return build_signature(inputs, [FieldSpec(REASONING)], "\n".join([task, *_rules(tools)]))


def _rules(tools: Sequence[str]) -> list[str]:
    other = [f"What is not calculated is asked for: [TOOL(text) = NAME], with the tool {' or '.join(tools)}."]
    return [*_FORM, *(other if tools else []), _END]
