"""DSPy modules that make programming problems harder, solve them and test them, and the readers of what they write."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from limbeck.programs.rewrite import bare
from limbeck.signatures.evolve_code import (
    CODE_OPERATIONS,
    NEW_FUNCTION,
    NEW_PROBLEM,
    evolve_problem,
    solve_problem,
    write_tests,
)

_HARDER = (
    (
        "Write a function to reverse a string.",
        "def reverse(text):",
        "add requirement",
        "Write a function to reverse a string while every digit in it stays at its place.",
        "def reverse(text):",
    ),
    (
        "Write a function to count the vowels of a word.",
        "def count_vowels(word):",
        "misleading code",
        "Write a function to count the vowels of a word, capital letters included. This attempt is wrong: "
        "sum(word.count(c) for c in 'aeio').",
        "def count_vowels(word):",
    ),
    (
        "Write a function to find the largest of a list of numbers.",
        "def largest(numbers):",
        "more steps",
        "Write a function to find the largest sum of two neighbouring numbers in a list that has been sorted by "
        "absolute value.",
        "def largest(numbers):",
    ),
)
_TESTED = (
    "Write a function to reverse a string while every digit in it stays at its place.",
    "def reverse(text):",
    "4",
    "assert reverse('abc') == 'cba'\nassert reverse('a1b') == 'b1a'\nassert reverse('') == ''\n"
    "assert reverse('12') == '12'",
)


def read_tests(text: str, name: str) -> list[str]:
    """Return the asserts in a model's text that call the function, each once and on one line.

    >>> read_tests("Sure:\\nassert f(1) == 2\\nassert f(1)==2\\nassert True\\nassert f(3", "f")
    ['assert f(1) == 2']
    """
    found: list[str] = []
    for node in _statements(text):
        calls = {n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        if isinstance(node, ast.Assert) and name in calls:
            found.append(ast.unparse(node))
    return list(dict.fromkeys(found))


def is_constant(tests: Sequence[str]) -> bool:
    """Return whether a function that returns one value passes all these asserts, whatever it gets.

    >>> is_constant(["assert f(1) == True", "assert f(2)"]), is_constant(["assert f(1) == 1", "assert f(2) == 2"])
    (True, False)
    """
    values: set[str] = set()
    for node in (statement for test in tests for statement in _statements(test)):
        check = node.test if isinstance(node, ast.Assert) else None
        if isinstance(check, ast.Compare) and isinstance(check.ops[0], (ast.Eq, ast.Is)):
            values.add(ast.unparse(check.comparators[0]))
        else:
            # A bare call wants something true; any other form is one of its own.
            values.add("True" if isinstance(check, ast.Call) else ast.unparse(node))
    return len(values) < 2


def _statements(text: str) -> list[ast.stmt]:
    """Return the statements of a text, of one that is no Python those of its lines that are."""
    body = _parsed(text)
    if body is None:
        body = [statement for line in text.splitlines() for statement in _parsed(line.strip()) or []]
    return body


def _parsed(code: str) -> list[ast.stmt] | None:
    """Return the statements of a program, None for what is no Python; what the compiler warns of is no concern."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(code).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def functions_of(code: str) -> dict[str, str]:
    """Return the first line of every function that a program defines at its top level; {} for what is no Python.

    >>> functions_of("import re\\ndef f(a, b=2):\\n    return a")
    {'f': 'def f(a, b=2):'}
    """
    body = _parsed(code) or []
    return {n.name: f"def {n.name}({ast.unparse(n.args)}):" for n in body if isinstance(n, ast.FunctionDef)}


def read_function(text: str, old: str) -> str:
    """Return the first line of a function in a model's text, the old one where there is none or its name has changed.

    >>> read_function("`def f(a: list, b):`", "def f(a):"), read_function("the same", "def f(a):")
    ('def f(a: list, b):', 'def f(a):')
    """
    match = re.search(r"def\s+\w+\s*\(.*\)\s*(?:->[^:\n]+)?(?=:|$)", text, re.MULTILINE)
    found = functions_of(f"{match[0]}: pass") if match else {}
    return next((line for name, line in found.items() if name in functions_of(f"{old} pass")), old)


class ProblemEvolver(dspy.Module):
    """Makes a programming problem harder in one of five ways."""

    def __init__(self) -> None:
        super().__init__()
        self.evolve = dspy.Predict(evolve_problem())
        self.evolve.demos = [
            dspy.Example(
                problem=problem,
                function=function,
                how=CODE_OPERATIONS[operation],
                **{NEW_PROBLEM: new, NEW_FUNCTION: line},
            )
            for problem, function, operation, new, line in _HARDER
        ]

    def forward(
        self, problem: str, function: str, operation: str, *, config: Mapping[str, Any] | None = None
    ) -> dspy.Prediction:
        """Return a prediction with the new `problem` and the text that names its `function` (`read_function`)."""
        how = CODE_OPERATIONS[operation]
        made: Any = self.evolve(problem=problem, function=function, how=how, config=dict(config or {}))
        return dspy.Prediction(problem=bare(str(made[NEW_PROBLEM]), [NEW_PROBLEM]), function=str(made[NEW_FUNCTION]))


class Solver(dspy.Module):
    """Solves a problem by one function."""

    def __init__(self) -> None:
        super().__init__()
        self.solve = dspy.Predict(solve_problem())

    def forward(self, problem: str, function: str, *, config: Mapping[str, Any] | None = None) -> dspy.Prediction:
        """Return a prediction with the answer's `code`, its Markdown fences included."""
        made: Any = self.solve(problem=problem, function=function, config=dict(config or {}))
        return dspy.Prediction(code=str(made.code))


class CaseWriter(dspy.Module):
    """Writes tests for a problem from its text alone."""

    def __init__(self) -> None:
        super().__init__()
        self.test = dspy.Predict(write_tests())
        problem, function, count, tests = _TESTED
        self.test.demos = [dspy.Example(problem=problem, function=function, count=count, tests=tests)]

    def forward(
        self, problem: str, function: str, *, count: int = 5, config: Mapping[str, Any] | None = None
    ) -> dspy.Prediction:
        """Return a prediction with the text of the `tests`, which `read_tests` reads."""
        made: Any = self.test(problem=problem, function=function, count=str(count), config=dict(config or {}))
        return dspy.Prediction(tests=str(made.tests))
