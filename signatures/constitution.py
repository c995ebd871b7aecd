"""What a model is asked under a constitution: to criticise an answer, to revise it, to say whether it has a fault.

After Bai et al. 2022 (arXiv:2212.08073), in words of our own.
"""

from __future__ import annotations

import dspy

from limbeck.signatures.tasks import FieldSpec, build_signature, literal

REQUEST, ANSWER, LOOK_FOR, CRITIQUE, DO, REVISION, VIOLATES = (
    "request",
    "answer",
    "look_for",
    "critique",
    "do",
    "revision",
    "violates",
)
YES, NO = "yes", "no"


def criticise_answer() -> type[dspy.Signature]:
    """Return the signature that says what is wrong with an answer by one principle.

    >>> criticise_answer().signature
    'request, answer, look_for -> critique'
    """
    rules = [
        "Criticise the answer to the request by what to look for, and by that alone. Name the words that are meant.",
        "Write one to three sentences. Do not answer the request.",
    ]
    inputs = [FieldSpec(name) for name in (REQUEST, ANSWER, LOOK_FOR)]
    return build_signature(inputs, [FieldSpec(CRITIQUE)], "\n".join(rules))


def revise_answer() -> type[dspy.Signature]:
    """Return the signature that revises an answer after a critique.

    >>> revise_answer().signature
    'request, answer, critique, do -> revision'
    """
    rules = [
        "Write a better answer to the request, in which what the critique names is mended as it says what to do.",
        "Keep what is good. Write the better answer only, and do not speak of the critique or of the changes.",
    ]
    inputs = [FieldSpec(name) for name in (REQUEST, ANSWER, CRITIQUE, DO)]
    return build_signature(inputs, [FieldSpec(REVISION)], "\n".join(rules))


def judge_violation() -> type[dspy.Signature]:
    """Return the signature that says whether an answer has the fault that a principle looks for.

    >>> judge_violation().signature
    'request, answer, look_for -> violates'
    """
    rules = (
        "Read the answer to the request for what to look for. "
        f"{YES}: there is something of the kind in the answer. {NO}: there is nothing of the kind."
    )
    inputs = [FieldSpec(name) for name in (REQUEST, ANSWER, LOOK_FOR)]
    return build_signature(inputs, [FieldSpec(VIOLATES, literal([YES, NO]))], rules)
