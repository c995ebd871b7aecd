"""Preference pairs of sampled answers: of several answers to one input the accepted one, against one that was refused.

The form of UltraFeedback's pairs (Cui et al. 2023, arXiv:2310.01377) as DPO is trained on them: the best answer is
chosen, and one of the others, drawn at random, is rejected. Here verifiers rate, so the best are those that none
refuses; answers that cannot be read are no answers, and two that are equally good are no pair.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.compile.label import Answer
from limbeck.preferences import Preference
from limbeck.records import Record, stable_hash


def sampled_preferences(records: Sequence[Record], answers: Sequence[Answer], *, seed: int = 0) -> list[Preference]:
    """Return one preference a row whose answers verifiers told apart, the same for the same seed.

    `answers` are those that `answer_all` chose for the records. A preference's principle is the vote that the rejected
    answer failed, `p` is 1, and its provenance the record's.
    """
    found: list[Preference] = []
    for record, answer in zip(records, answers, strict=True):
        chosen = whole(answer)
        others = [one for one in answer.refused if whole(one) != chosen]
        if answer.reason or not others:
            continue
        worse = random.Random(f"{seed}:{stable_hash(dict(record.inputs))}").choice(others)
        found.append(Preference(dict(record.inputs), chosen, whole(worse), 1.0, worse.reason, record.provenance))
    return found


def whole(answer: Answer) -> Mapping[str, Any]:
    """Return an answer's outputs, with its rationale as `reasoning` where it has one.

    >>> whole(Answer({"answer": 4}, rationale="2 + 2 = 4"))
    {'reasoning': '2 + 2 = 4', 'answer': 4}
    """
    return {**({"reasoning": answer.rationale} if answer.rationale else {}), **answer.outputs}
