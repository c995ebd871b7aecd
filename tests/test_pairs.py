"""Sampled answers as preference pairs: which answer is chosen, which is rejected, and what is no pair."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dspy
from scripted import scripted

from limbeck.compile.label import Answer, LabelConfig, Labeler, answer_all, consensus, label_pool
from limbeck.compile.pairs import sampled_preferences
from limbeck.metrics import default_metric
from limbeck.models import CompactAdapter
from limbeck.preferences import Preference
from limbeck.records import Provenance, Record
from limbeck.verifiers import HoldsNumber

VOTE = "verifier:answer holds a number"
RECORD = Record({"question": "3 + 4?"}, {}, Provenance("pool", seed=5, block=2))
SEVEN = Answer({"answer": "7"}, scores={VOTE: 1.0})
REFUSED = Answer({"answer": "seven"}, scores={VOTE: 0.0}, reason=VOTE)


def answer(*samples: Answer) -> Answer:
    return consensus(RECORD.inputs, samples, default_metric({"answer": "short_answer"}))


def test_a_verified_answer_is_preferred_to_a_refused_one() -> None:
    (pair,) = sampled_preferences([RECORD], [answer(SEVEN, REFUSED, SEVEN)])
    wanted = Preference(RECORD.inputs, {"answer": "7"}, {"answer": "seven"}, 1.0, VOTE, RECORD.provenance)
    assert pair == wanted


def test_the_rejected_answer_is_drawn_among_the_refused_by_the_seed() -> None:
    others = [replace(REFUSED, outputs={"answer": word}) for word in ("six", "seven", "eight", "nine")]
    chosen = answer(SEVEN, *others)
    drawn = [sampled_preferences([RECORD], [chosen], seed=seed)[0].rejected["answer"] for seed in range(20)]
    assert len(set(drawn)) > 1
    assert drawn == [sampled_preferences([RECORD], [chosen], seed=seed)[0].rejected["answer"] for seed in range(20)]


def test_what_is_no_pair() -> None:
    nothing = [
        answer(SEVEN, SEVEN),  # equally good
        answer(REFUSED, REFUSED),  # equally bad
        answer(SEVEN, Answer(reason="failed")),  # unreadable
        answer(SEVEN),
        replace(answer(SEVEN, REFUSED), refused=(replace(SEVEN, reason=VOTE),)),  # the same answer
    ]
    assert sampled_preferences([RECORD] * len(nothing), nothing) == []


def test_a_rationale_stands_before_the_answer() -> None:
    right, wrong = replace(SEVEN, rationale="3 + 4 = 7"), replace(REFUSED, rationale="three and four")
    (pair,) = sampled_preferences([RECORD], [answer(right, wrong)])
    assert pair.chosen == {"reasoning": "3 + 4 = 7", "answer": "7"}
    assert pair.rejected == {"reasoning": "three and four", "answer": "seven"}


def test_sampling_keeps_what_verifiers_refused() -> None:
    lm, _ = scripted(lambda request: ["seven", "7"][request.seed % 2])
    asker = Labeler(
        {-1: dspy.Predict("question -> answer")}, lm, CompactAdapter(), ("answer",), "", (HoldsNumber("answer"),)
    )
    config = LabelConfig(samples=8)
    (found,) = answer_all([RECORD.inputs], asker, blocks=[-1], config=config)
    assert {one.outputs["answer"] for one in found.refused} == {"seven"}
    assert len(found.refused) == 8 * (1 - found.scores["usable"])
    seen: list[Any] = []
    records = label_pool([RECORD.inputs], asker, config=config, seen=lambda *told: seen.append(told))
    assert seen == [(records[0], found)]
