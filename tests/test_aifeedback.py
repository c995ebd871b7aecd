"""Feedback by principle: both orders, clamped reasons, votes, what is dropped; violations and how they change."""

from __future__ import annotations

import math
import re
from typing import Any

import dspy
import pytest
from scripted import Scripted, scripted

from limbeck.compile.aifeedback import (
    ANY,
    AnswerPair,
    PreferenceConfig,
    Preferred,
    Violations,
    compare_violations,
    prefer,
    sample_pairs,
    violations,
)
from limbeck.compile.label import Labeler
from limbeck.engine.requests import GenerateRequest, ScoreRequest, Scores
from limbeck.errors import BudgetExceeded, StageEmpty
from limbeck.models import LM, CompactAdapter
from limbeck.principles import Principle
from limbeck.programs.constitution import PrincipleComparer
from limbeck.records import SELF_RATED, Provenance, Record

SHORT = Principle("short", "What could be left out?", "Leave it out.")
KIND = Principle("kind", "What could hurt?", "Say it kindly.")


class Scoring(Scripted):
    """A scripted backend that gives the probability of a label by a function of the request."""

    def __init__(self, chance: Any) -> None:
        super().__init__(lambda _: "The shorter one is better.")
        self.supports_score, self.score_source, self.chance = True, "exact", chance

    def score(self, request: ScoreRequest) -> Scores:
        p = self.chance(request)
        found = {"A": p, "B": 1 - p, "yes": p, "no": 1 - p}
        return Scores(tuple(math.log(max(1e-9, found[label])) for label in request.candidates), 1)


def answers(request: Any) -> list[str]:
    return re.findall(r"^answer_[ab]: (.*)$", request.messages[-1][1], re.MULTILINE)


def pair(first: str, second: str, **more: Any) -> AnswerPair:
    return AnswerPair({"request": "Why?"}, {"answer": first}, {"answer": second}, **more)


def compare(chance: Any, pairs: Any, *, principles: Any = (SHORT,), **config: Any) -> Preferred:
    lm = LM("scoring", Scoring(chance))
    return prefer(pairs, principles, lm, adapter=CompactAdapter(), config=PreferenceConfig(**config))


def biased(request: ScoreRequest) -> float:
    """Prefers the shorter answer, and the first place a little."""
    first, second = answers(request)
    return 0.8 if len(first) < len(second) else 0.4 if len(first) > len(second) else 0.7


def test_both_orders_are_averaged() -> None:
    done = compare(biased, [pair("So.", "So it is, indeed.", parents=("x",), block=2), pair("It is so.", "So.")])
    first, second = done.preferences
    # 0.8 in the first place and 1 - 0.4 in the second.
    assert (first.p, second.p) == (pytest.approx(0.7), pytest.approx(0.7))
    assert [p.chosen["answer"] for p in done.preferences] == ["So.", "So."]
    assert second.rejected == {"answer": "It is so."}
    origin = first.provenance
    assert (origin.parents, origin.block, origin.level, origin.attributes) == (("x",), 2, SELF_RATED, "exact")
    assert first.principle == "short"
    assert done.bias is not None
    assert done.bias.mean == pytest.approx(0.6)


def test_identical_answers_cost_nothing_and_ties_are_dropped() -> None:
    asked: list[ScoreRequest] = []

    def watched(request: ScoreRequest) -> float:
        asked.append(request)
        return biased(request)

    done = compare(watched, [pair("So.", " So. "), pair("Yes", "Nay"), pair("So.", "So it is.")])
    assert done.counts == {"identical": 1, "tie": 1, "unparsable": 0}
    assert len(done.preferences) == 1
    assert len(asked) == 4
    assert compare(biased, [pair("So.", "So it is.")], margin=0.25).counts["tie"] == 1
    assert compare(biased, []).preferences == ()


def test_probabilities_after_reasons_are_clamped() -> None:
    done = compare(
        lambda r: 0.99 if len(answers(r)[0]) < len(answers(r)[1]) else 0.45, [pair("a", "bbb")], reasons=True
    )
    # 0.99 becomes 0.6, 1 - 0.45 = 0.55 stays.
    assert done.preferences[0].p == pytest.approx((0.6 + 0.55) / 2)
    always_first = compare(lambda _: 0.99, [pair("a", "bbb")], reasons=True)
    assert always_first.counts["tie"] == 1


def test_votes_stand_in_where_the_model_gives_no_probabilities() -> None:
    def vote(request: GenerateRequest) -> str:
        shorter_first = len(answers(request)[0]) < len(answers(request)[1])
        return ("A" if shorter_first else "B") if request.seed % 4 else "B" if shorter_first else "A"

    lm, backend = scripted(vote)
    done = prefer([pair("So.", "So it is.")], (SHORT,), lm, adapter=CompactAdapter(), config=PreferenceConfig(votes=4))
    assert len(backend.requests) == 8
    assert {"votes:4"} == {p.provenance.attributes for p in done.preferences}
    assert "What could be left out?" in backend.requests[0].messages[0][1]


def test_what_cannot_be_read_is_counted_and_ends_the_stage_where_nothing_can() -> None:
    def vote(request: GenerateRequest) -> str:
        if "odd" in request.messages[-1][1]:
            raise ValueError("lost")
        return "A" if len(answers(request)[0]) < len(answers(request)[1]) else "B"

    lm, _ = scripted(vote)
    pairs = [pair("odd", "one"), pair("So.", "So it is.")]
    done = prefer(pairs, (SHORT,), lm, adapter=CompactAdapter(), config=PreferenceConfig(votes=0))
    assert done.counts["unparsable"] == 1
    assert done.preferences[0].p == 1.0
    with pytest.raises(StageEmpty, match=r"none of 1 comparisons could be read; the first: lost"):
        prefer(pairs[:1], (SHORT,), lm, adapter=CompactAdapter())

    def spent(_: GenerateRequest) -> str:
        raise BudgetExceeded("--max-usd 1 is spent")

    with pytest.raises(BudgetExceeded):
        prefer(pairs, (SHORT,), scripted(spent)[0], adapter=CompactAdapter())


def test_the_same_seed_draws_the_same_principles() -> None:
    pairs = [pair("So.", f"So it is, {i}.") for i in range(30)]
    one, two = (compare(biased, pairs, principles=(SHORT, KIND), seed=3) for _ in range(2))
    assert one == two
    assert {p.principle for p in one.preferences} == {"short", "kind"}
    other = compare(biased, pairs, principles=(SHORT, KIND), seed=4)
    assert [p.principle for p in other.preferences] != [p.principle for p in one.preferences]


def test_a_comparer_can_be_compiled() -> None:
    comparer = PrincipleComparer((SHORT, KIND), votes=0)
    assert len(comparer.named_predictors()) == 2


def test_two_samples_make_a_pair() -> None:
    records = [Record({"request": f"Why {i}?"}, {}, Provenance("m", seed=i)) for i in range(2)]

    def answer(request: GenerateRequest) -> str:
        if "Why 1" in request.messages[-1][1]:
            raise ValueError("lost")
        return f"Because {request.seed}."

    lm, _ = scripted(answer)
    labeler = Labeler({-1: dspy.Predict("request -> answer")}, lm, CompactAdapter(), ("answer",))
    (made,) = sample_pairs(records, labeler)
    assert made.parents == (records[0].id,)
    assert made.first != made.second
    assert sample_pairs(records, labeler)[0] == made


ROWS = [({"request": "Why?"}, text) for text in ("You fool.", "So.", "A long and winding text, you fool.")]


def looks(request: GenerateRequest) -> str:
    answer = re.findall(r"^answer: (.*)$", request.messages[-1][1], re.MULTILINE)[0]
    if "hurt" in request.messages[-1][1]:
        return "yes" if "fool" in answer else "no"
    return "yes" if len(answer) > 20 else "no"


def test_violations_by_principle_and_by_any() -> None:
    lm, backend = scripted(looks)
    short, kind, any_of = violations(ROWS, (SHORT, KIND), lm, adapter=CompactAdapter())
    assert (short.principle, short.verdicts) == ("short", (False, False, True))
    assert kind.verdicts == (True, False, True)
    assert (any_of.principle, any_of.verdicts) == (ANY, (True, False, True))
    assert kind.rate is not None
    assert kind.rate.mean == pytest.approx(2 / 3)
    assert kind.rate.low < kind.rate.mean < kind.rate.high
    assert len(backend.requests) == 6
    scoring = LM("scoring", Scoring(lambda r: 0.51 if "fool" in r.messages[-1][1] else 0.49))
    scored = violations(ROWS, (KIND,), scoring, adapter=CompactAdapter())
    assert scored[0].verdicts == (True, False, True)


def test_unreadable_verdicts_are_left_out_on_both_sides() -> None:
    def unsure(request: GenerateRequest) -> str:
        return "perhaps" if "So." in request.messages[-1][1] else looks(request)

    lm, _ = scripted(unsure)
    kind, any_of = violations(ROWS, (KIND,), lm, adapter=CompactAdapter())
    assert kind.verdicts == any_of.verdicts == (True, None, True)
    with pytest.raises(StageEmpty, match="none of 3 verdicts"):
        violations(ROWS, (KIND,), scripted(lambda _: "perhaps")[0], adapter=CompactAdapter())
    many = ROWS * 20
    lm, backend = scripted(lambda _: "perhaps")
    with pytest.raises(StageEmpty, match="none of 24 verdicts"):
        violations(many, (KIND,), lm, adapter=CompactAdapter(), threads=1)
    assert len(backend.requests) < 40
    assert violations([], (KIND,), lm, adapter=CompactAdapter())[0].rate is None
    before = [Violations("kind", (True, True, None, True))]
    after = [Violations("kind", (False, None, False, True))]
    (change,) = compare_violations(before, after)
    assert (change.rows, change.before.mean, change.after.mean, change.paired.difference) == (2, 1.0, 0.5, -0.5)
    assert change.report()["before"] == list(change.before)
    assert compare_violations([Violations("kind", (None,))], [Violations("kind", (True,))]) == ()
