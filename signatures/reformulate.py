"""What a teacher is asked when a problem is put into another form: an expression, statements, questions, a gap to fill.

Each form has a question forth, which solves it, and one back, which must lead to the problem again.
"""

from __future__ import annotations

from collections.abc import Sequence

import dspy

from limbeck.signatures.tasks import FieldSpec, build_signature, literal

PROBLEM, TEXT, STATEMENT, QUESTION, VALUE = "problem", "text", "statement", "question", "value"
ANSWER, EXPRESSION, EQUATION = "answer", "expression", "equation"
HOLDS, FITS, SLOT, FILLING = "holds", "fits", "slot", "filling"
FIRST, SECOND = "option_a", "option_b"
YES, NO, A, B = "yes", "no", "A", "B"
GAP = "____"


def write_expression() -> type[dspy.Signature]:
    """Return the signature that puts a word problem into one arithmetic expression.

    >>> write_expression().signature
    'problem -> expression'
    """
    rules = [
        "Write the one arithmetic expression whose value answers the problem.",
        "Use the numbers of the problem and + - * / ( ). Do not calculate: no equals sign, no result, no words.",
    ]
    return build_signature([FieldSpec(PROBLEM)], [FieldSpec(EXPRESSION)], "\n".join(rules))


def write_equation() -> type[dspy.Signature]:
    """Return the signature that puts a problem whose answer is known, and one number not, into an equation.

    >>> write_equation().signature
    'problem, answer -> equation'
    """
    rules = [
        "One number of the problem is not known and called x; the answer to the problem is known.",
        "Write the problem as one equation with x: what has to be calculated, an equals sign, the answer. Do not solve "
        "it, and write no words.",
    ]
    return build_signature([FieldSpec(PROBLEM), FieldSpec(ANSWER)], [FieldSpec(EQUATION)], "\n".join(rules))


def judge_statement() -> type[dspy.Signature]:
    """Return the signature that says whether a statement about a text is true.

    >>> judge_statement().signature
    'text, statement -> holds'
    """
    rules = "Say whether the statement about the text is true. Judge what the text says, not what could also be."
    return build_signature([FieldSpec(TEXT), FieldSpec(STATEMENT)], [FieldSpec(HOLDS, literal([YES, NO]))], rules)


def choose_option(task: str) -> type[dspy.Signature]:
    """Return the signature that says which of two answers to the original task fits a text better.

    >>> choose_option("Name the type.").signature
    'text, option_a, option_b -> fits'
    """
    rules = f"Say which of the two options answers this task better for the text: {task}"
    inputs = [FieldSpec(name) for name in (TEXT, FIRST, SECOND)]
    return build_signature(inputs, [FieldSpec(FITS, literal([A, B]))], rules)


def answer_question() -> type[dspy.Signature]:
    """Return the signature that answers a question with words of a text.

    >>> answer_question().signature
    'text, question -> value'
    """
    rules = [
        "Answer the question with words copied from the text, exactly as they stand there.",
        'Several answers stand on lines of their own. Write "none" where the text does not say it.',
    ]
    return build_signature([FieldSpec(TEXT), FieldSpec(QUESTION)], [FieldSpec(VALUE)], "\n".join(rules))


def name_slot(slots: Sequence[str]) -> type[dspy.Signature]:
    """Return the signature that says what some words of a text are.

    >>> name_slot(["time", "people"]).signature
    'text, value -> slot'
    """
    rules = "Say what the value stands for in the text."
    return build_signature([FieldSpec(TEXT), FieldSpec(VALUE)], [FieldSpec(SLOT, literal(list(slots)))], rules)


def state_gap() -> type[dspy.Signature]:
    """Return the signature that turns a question into a statement with a gap where its answer belongs.

    >>> state_gap().signature
    'problem -> statement'
    """
    rules = f"Turn the question into one statement that answers it, with {GAP} in the place of the answer."
    return build_signature([FieldSpec(PROBLEM)], [FieldSpec(STATEMENT)], rules)


def fill_gap() -> type[dspy.Signature]:
    """Return the signature that fills the gap of a statement.

    >>> fill_gap().signature
    'problem, statement -> filling'
    """
    rules = f"Fill the gap {GAP} of the statement. Answer with the words for the gap only."
    return build_signature([FieldSpec(PROBLEM), FieldSpec(STATEMENT)], [FieldSpec(FILLING)], rules)
