"""What a judge is asked: a rating on a scale with its reasons first, whether an answer will do, which of two is better.

Grading on a described scale with the reasons before the number follows self-curation (Li et al. 2023,
arXiv:2308.06259); comparing two answers follows Zheng et al. 2023 (arXiv:2306.05685), who also show that judges
prefer an answer for its place. The values are closed sets, so that a model that gives probabilities is scored.
"""

from __future__ import annotations

from collections.abc import Mapping

import dspy

from limbeck.signatures.tasks import FieldSpec, build_signature, literal

REASONS, RATING, ACCEPTABLE, BETTER = "reasons", "rating", "acceptable", "better"
REQUEST, ANSWER, FIRST, SECOND = "request", "answer", "answer_a", "answer_b"
YES, NO, A, B = "yes", "no", "A", "B"

SCALE: Mapping[int, str] = {
    1: "wrong, off topic or empty",
    2: "touches the request but misses most of it",
    3: "answers the main part, with faults or gaps",
    4: "complete and right, but could be clearer or shorter",
    5: "complete, right and well put, with nothing to improve",
}


def grade_answer(criteria: str = "", *, scale: Mapping[int, str] = SCALE) -> type[dspy.Signature]:
    """Return the signature that rates one answer on a scale (number to meaning), reasons first.

    >>> grade_answer("It must be polite.").signature
    'request, answer -> reasons, rating'
    """
    low, high = min(scale), max(scale)
    rules = ["Judge the answer to the request.", *_criteria(criteria), "Give short reasons first, then the rating."]
    meanings = "\n".join(f"{number}: {scale[number]}" for number in sorted(scale))
    outputs = [
        FieldSpec(REASONS, str, f"one or two sentences, which speak for a rating from {low} to {high}"),
        FieldSpec(RATING, literal([str(number) for number in sorted(scale)]), meanings),
    ]
    return build_signature(_given(ANSWER), outputs, "\n".join(rules))


def accept_answer(criteria: str = "", *, reasons: bool = False) -> type[dspy.Signature]:
    """Return the signature that says whether one answer is acceptable, by default without reasons.

    >>> accept_answer().signature
    'request, answer -> acceptable'
    """
    rules = ["Say whether the answer to the request is acceptable: right, complete and on topic.", *_criteria(criteria)]
    outputs = [*_reasons(reasons), FieldSpec(ACCEPTABLE, literal([YES, NO]))]
    return build_signature(_given(ANSWER), outputs, "\n".join(rules))


def compare_answers(criteria: str = "", *, reasons: bool = False) -> type[dspy.Signature]:
    """Return the signature that says which of two answers is better, by default without reasons.

    >>> compare_answers(reasons=True).signature
    'request, answer_a, answer_b -> reasons, better'
    """
    rules = [
        "Say which answer to the request is better: the one that is right, complete and does what is asked.",
        "Neither the order of the answers nor their length matters.",
        *_criteria(criteria),
    ]
    outputs = [*_reasons(reasons), FieldSpec(BETTER, literal([A, B]))]
    return build_signature(_given(FIRST, SECOND), outputs, "\n".join(rules))


def _given(*answers: str) -> list[FieldSpec]:
    return [FieldSpec(name) for name in (REQUEST, *answers)]


def _criteria(criteria: str) -> list[str]:
    return [f"What counts: {' '.join(criteria.split())}"] if criteria.strip() else []


def _reasons(asked: bool) -> list[FieldSpec]:
    return [FieldSpec(REASONS, str, "one or two sentences")] if asked else []
