"""What a model is asked when it writes the input that a given text answers, and when it rates such a pair.

The five points say in this house's words what those of Li et al. 2023 (arXiv:2308.06259, table 1) say.
"""

from __future__ import annotations

import dspy

from limbeck.signatures.tasks import FieldSpec, build_signature

REVIEW = "review"


def write_request(field: str, output: str, task: str) -> type[dspy.Signature]:
    """Return the signature that writes the input to which a text would be the output.

    >>> write_request("question", "answer", "Answer the question.").signature
    'answer -> question'
    """
    noun, text = _noun(field), _noun(output)
    rules = [
        f"Somebody did this task: {task}",
        f"From the {text} that was given, find out the {noun}: write what a person sent to get exactly this {text}.",
        f"The person has not seen the {text}. So the {noun} stands on its own: it says what is wanted with every "
        f"detail that is needed, and mentions no text or passage.",
    ]
    return build_signature([FieldSpec(output)], [FieldSpec(field, str, "one, complete")], "\n".join(rules))


def rate_pair(field: str, output: str, task: str) -> type[dspy.Signature]:
    """Return the signature that rates an output for its input from 1 to 5, the reason first.

    Its own output field makes way for a field of the task's of the same name.

    >>> rate_pair("question", "answer", "Answer the question.").signature
    'question, answer -> review'
    """
    noun, text = _noun(field), _noun(output)
    rules = [
        f"Rate how good the {text} is for the {noun}, in this task: {task}",
        f"1: it misses the {noun}, breaks off or stays vague, or it carries what does not belong there, such as "
        "advertising, menus or somebody's private story.",
        f"2: it touches most of what the {noun} asks, but does not answer it directly.",
        f"3: it gives what the {noun} asks, but reads like a piece of something else, such as a web page or a book.",
        f"4: it was clearly written for the {noun}: complete, clear, well ordered and without anything foreign; "
        "little could be better.",
        "5: it could not be better: nothing is missing, nothing is too much, and it shows knowledge of the subject.",
        'First give the reason in one or two sentences. Then end with a line "Score: " and the number.',
    ]
    name = REVIEW
    while name in (field, output):
        name = f"its_{name}"
    inputs = [FieldSpec(field), FieldSpec(output)]
    return build_signature(inputs, [FieldSpec(name, str, "the reason, then the score")], "\n".join(rules))


def _noun(field: str) -> str:
    return field.replace("_", " ").strip()
