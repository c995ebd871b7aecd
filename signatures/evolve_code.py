"""What a model is asked when it makes a programming problem harder, solves it, and writes tests for it.

The five ways are those of Code Evol-Instruct (Luo et al. 2023, arXiv:2306.08568), in words of our own.
"""

from __future__ import annotations

from collections.abc import Mapping

import dspy

from limbeck.signatures.tasks import FieldSpec, build_signature

CODE_OPERATIONS: Mapping[str, str] = {
    "add requirement": "Add one requirement or condition, in about ten words.",
    "rarer requirement": "Put a less usual and more particular requirement in the place of a usual one.",
    "more steps": "Where a few steps are enough, change it so that more of them are needed.",
    "misleading code": "Add two or three lines of wrong code as a reference that misleads, and say that it is wrong.",
    "complexity": "Demand that it takes less time or less memory than the plain solution does.",
}
# The problem's own name is never a field: tasks call it prompt, text or question.
NEW_PROBLEM, NEW_FUNCTION = "new_problem", "new_function"


def evolve_problem() -> type[dspy.Signature]:
    """Return the signature that makes a problem harder and names the function that solves it.

    >>> evolve_problem().signature
    'problem, function, how -> new_problem, new_function'
    """
    rules = [
        "Make a programming problem a little harder, so that one Python function still solves it.",
        "Do not solve it. Say clearly what the function gets and returns, so that its result can be tested: it prints "
        "nothing, reads no file and is not random.",
        "Then write the first line of the function; its name stays, its parameters change only where they must.",
    ]
    inputs = [
        FieldSpec("problem"),
        FieldSpec("function", str, "the first line of its solution"),
        FieldSpec("how", str, "how to make the problem harder"),
    ]
    outputs = [FieldSpec(NEW_PROBLEM), FieldSpec(NEW_FUNCTION, str, "as in def name(a, b):")]
    return build_signature(inputs, outputs, "\n".join(rules))


def solve_problem() -> type[dspy.Signature]:
    """Return the signature that solves a problem by one function.

    >>> solve_problem().signature
    'problem, function -> code'
    """
    rules = [
        "Solve the programming problem in Python. Write the whole function, which begins as shown, with the imports "
        "it needs.",
        "Write code only: no explanation, no examples, no tests.",
    ]
    inputs = [FieldSpec("problem"), FieldSpec("function", str, "how the function begins")]
    return build_signature(inputs, [FieldSpec("code", str, "Python")], "\n".join(rules))


def write_tests() -> type[dspy.Signature]:
    """Return the signature that writes asserts for a problem without seeing a solution.

    >>> write_tests().signature
    'problem, function, count -> tests'
    """
    rules = [
        "Write tests for the function that solves the programming problem. Work out each expected value from the "
        "problem by hand.",
        "Each line is one Python assert that calls the function with literal arguments and compares its result, as in "
        "assert name(1, 2) == 3. Include an unusual case. Do not write the function.",
    ]
    inputs = [
        FieldSpec("problem"),
        FieldSpec("function", str, "how the function begins"),
        FieldSpec("count", str, "how many tests"),
    ]
    return build_signature(inputs, [FieldSpec("tests", str, "one assert a line")], "\n".join(rules))
