"""What a solver is asked: go on with a solution, one step a line, and give the answer."""

from __future__ import annotations

import dspy

from limbeck.signatures.tasks import FieldSpec, build_signature

PROBLEM, FIRST, NEXT, ANSWER = "problem", "first_steps", "next_steps", "answer"
_RULES = (
    "Solve the problem step by step. The first steps may be there already: go on from them, whatever they say, and do "
    "not repeat them. Write one short step a line."
)


def continue_solution() -> type[dspy.Signature]:
    """Return the signature that goes on with a solution from its first steps ("" for none) to the answer.

    >>> continue_solution().signature
    'problem, first_steps -> next_steps, answer'
    """
    inputs = [FieldSpec(PROBLEM, str), FieldSpec(FIRST, str, "numbered lines, empty where nothing is done yet")]
    outputs = [FieldSpec(NEXT, str, "the steps that are left, one a line"), FieldSpec(ANSWER, str, "the result alone")]
    return build_signature(inputs, outputs, _RULES)
