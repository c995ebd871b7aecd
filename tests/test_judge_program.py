"""Judges: what they are asked, both orders, probabilities or votes, and answers that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import scripted

from limbeck.engine import LoadedModel, TorchEngine
from limbeck.engine.requests import GenerateRequest, Generation, ScoreRequest, Scores
from limbeck.errors import BudgetExceeded, InputError, ModelError, PromptTooLong
from limbeck.models import LM, CompactAdapter, TorchBackend
from limbeck.programs.judge import (
    Approver,
    Comparer,
    Grader,
    ProgramJudge,
    as_request,
    position_bias,
    read_choice,
)
from limbeck.signatures.judge import accept_answer, compare_answers, grade_answer

ADAPTER = CompactAdapter()


@dataclass
class Scoring:
    """A backend that gives every label a log-probability by a function of the question, and writes one text."""

    favour: Callable[[str, str], float]
    text: str = "It is fine."
    name: str = "scoring"
    fingerprint: str = "scoring"
    supports_score: bool = True
    supports_prefix: bool = True
    score_source: str = "exact"
    usd_per_token: tuple[float, float] | None = (0.0, 0.0)
    thinking_tokens: int = 0
    scored: list[ScoreRequest] = field(default_factory=list[ScoreRequest])

    def generate(self, request: GenerateRequest) -> Generation:
        return Generation(self.text, 1, 1, "stop")

    def score(self, request: ScoreRequest) -> Scores:
        self.scored.append(request)
        question = request.messages[-1][1]
        return Scores(tuple(self.favour(question, label) for label in request.candidates), tokens_in=1)


def logit(label: str, favoured: str, by: float) -> float:
    return by if label == favoured else 0.0


def ask(program: dspy.Module, lm: LM, **inputs: str) -> Any:
    with dspy.context(lm=lm, adapter=ADAPTER):
        return program(**inputs)


# -- what they are asked -------------------------------------------------------------------------------------


def test_the_signatures_hold_criteria_scale_and_closed_values():
    grade: Any = grade_answer("It must be polite.", scale={0: "rude", 1: "polite"})
    assert "What counts: It must be polite." in grade.instructions
    prompt = ADAPTER.format_system_message(grade)
    assert "0: rude\n1: polite" in prompt
    assert list(grade.output_fields) == ["reasons", "rating"]
    assert "What counts" not in accept_answer().instructions
    assert list(accept_answer(reasons=True).output_fields) == ["reasons", "acceptable"]
    assert list(compare_answers().input_fields) == ["request", "answer_a", "answer_b"]


# -- models that give probabilities --------------------------------------------------------------------------


def test_a_rating_is_scored_after_its_reasons():
    backend = Scoring(lambda question, label: logit(label, "4", 20.0), text="Right but long.")
    made = ask(Grader(), LM("scoring", backend), request="Why?", answer="Because.")
    assert (made.rating, made.reasons, made.source) == (4, "Right but long.", "exact")
    assert made.expected == pytest.approx(4.0)
    assert made.score == pytest.approx(0.75)
    assert "Right but long." in backend.scored[0].assistant_prefix
    even = ask(Grader(), LM("scoring", Scoring(lambda question, label: 0.0)), request="Why?", answer="So.")
    assert even.expected == pytest.approx(3.0)
    assert even.score == pytest.approx(0.5)


def test_approval_is_the_probability_of_yes():
    backend = Scoring(lambda question, label: logit(label, "yes", 1.0 if "good" in question else -1.0))
    lm = LM("scoring", backend)
    good, bad = (ask(Approver(), lm, request="Q", answer=a) for a in ("good", "poor"))
    assert good.score == pytest.approx(0.731, abs=1e-3)
    assert bad.score == pytest.approx(1 - good.score)
    assert (good.acceptable, bad.acceptable, good.unparsable) == (True, False, 0)


def place_and_worth(place: float, worth: float) -> Scoring:
    """A judge that gives the first place a logit of `place`, and an answer that says "good" one of `worth`."""

    def favour(question: str, label: str) -> float:
        first = question.split("answer_a: ")[1].split("\n")[0]
        return logit(label, "A", place + (worth if "good" in first else -worth))

    return Scoring(favour)


@settings(max_examples=30)
@given(st.floats(-4, 4), st.floats(0.1, 3))
def test_both_orders_cancel_the_place_whichever_answer_comes_first(place: float, worth: float):
    lm = LM("scoring", place_and_worth(place, worth))
    one = ask(Comparer(), lm, request="Q", answer_a="good", answer_b="poor")
    two = ask(Comparer(), lm, request="Q", answer_a="poor", answer_b="good")
    assert one.better == "A"
    assert two.better == "B"
    assert one.score == pytest.approx(1 - two.score)
    assert one.forwards == pytest.approx(1 - two.backwards)
    assert one.calls == 2


def test_the_bias_is_measured():
    lm = LM("scoring", place_and_worth(2.0, 1.0))
    made = [ask(Comparer(), lm, request=f"Q{i}", answer_a="good", answer_b="poor") for i in range(10)]
    found = position_bias(made)
    assert found is not None
    assert found.first.mean == 1.0  # the place decides every call
    assert found.flipped == 1.0
    assert 0.8 < found.mean < 1.0
    assert found.report()["ci95"][0] > 0.5
    fair = position_bias(
        [ask(Comparer(), LM("scoring", place_and_worth(0, 1)), request="Q", answer_a="good", answer_b="b")]
    )
    assert fair is not None
    assert (fair.first.mean, fair.flipped) == (0.5, 0.0)
    assert fair.mean == pytest.approx(0.5)
    lost = dspy.Prediction(forwards=None, backwards=None, unparsable=2)
    assert position_bias([lost]) is None
    both = position_bias([*made, lost])
    assert both is not None
    assert (both.rows, both.unparsable) == (10, 2)


def test_the_two_orders_of_a_real_model_are_averaged(tiny_llama: LoadedModel):
    engine = TorchEngine(tiny_llama)
    lm = LM("tiny", TorchBackend(engine))
    made = ask(Comparer(), lm, request="the fox", answer_a="jumps over", answer_b="a lazy dog")
    swapped = ask(Comparer(), lm, request="the fox", answer_a="a lazy dog", answer_b="jumps over")
    engine.close()
    assert made.source == "exact"
    assert made.score == pytest.approx((made.forwards + made.backwards) / 2)
    assert made.score == pytest.approx(1 - swapped.score)
    assert made.first == pytest.approx(swapped.first)


# -- models that only write ----------------------------------------------------------------------------------


def test_a_written_rating_is_read_and_one_outside_the_scale_is_unparsable():
    lm, _ = scripted(lambda request: "[[ ## reasons ## ]]\nGood.\n\n[[ ## rating ## ]]\n4/5")
    made = ask(Grader(), lm, request="Q", answer="A")
    assert (made.rating, made.score, made.source, made.unparsable) == (4, 0.75, "answer", 0)
    outside, _ = scripted(lambda request: "[[ ## reasons ## ]]\nGood.\n\n[[ ## rating ## ]]\n9")
    made = ask(Grader(), outside, request="Q", answer="A")
    assert (made.rating, made.score, made.expected, made.unparsable) == (None, None, None, 1)
    assert "9" in made.error


def test_votes_are_counted_where_there_are_no_probabilities():
    def answer(request: GenerateRequest) -> str:
        return ["yes", "no", "maybe so", "yes", "yes"][len(backend.requests) - 1]

    lm, backend = scripted(answer)
    made = ask(Approver(votes=5), lm, request="Q", answer="A")
    assert made.score == pytest.approx(0.75)
    assert (made.source, made.calls, made.unparsable) == ("votes:4", 5, 1)
    assert len({request.seed for request in backend.requests}) == 5
    scoring = Scoring(lambda question, label: 0.0)
    ask(Approver(votes=5), LM("scoring", scoring), request="Q", answer="A")
    assert len(scoring.scored) == 1  # probabilities need no votes


def test_a_comparison_that_is_readable_in_one_order_only_says_nothing():
    lm, backend = scripted(lambda request: "A" if len(backend.requests) == 1 else "neither")
    made = ask(Comparer(), lm, request="Q", answer_a="one", answer_b="two")
    assert (made.score, made.better, made.forwards, made.unparsable, made.calls) == (None, None, None, 1, 2)


def test_a_writing_judge_that_prefers_its_first_answer_gives_a_tie():
    lm, _ = scripted(lambda request: "A")
    made = ask(Comparer(), lm, request="Q", answer_a="one", answer_b="two")
    assert (made.better, made.score, made.first) == ("tie", 0.5, 1.0)


def test_a_row_that_is_too_long_is_counted_and_a_lost_server_is_not_hidden():
    def fail(error: Exception) -> Any:
        def answer(request: GenerateRequest) -> str:
            raise error

        return ask(Approver(), scripted(answer)[0], request="Q", answer="A")

    made = fail(PromptTooLong("too long"))
    assert (made.score, made.unparsable) == (None, 1)
    assert "too long" in made.error
    for error in (ModelError("gone"), BudgetExceeded("spent")):
        with pytest.raises(type(error)):
            fail(error)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", "4"),
        ("Rating: 4", "4"),
        ("**Score: 4**", "4"),
        ("4 out of 5", "4"),
        ("Good reasons.\nFinal rating: 3/5.", "3"),
        ("3. It lacks 2 of the points.", "3"),
        ("The score is 5, the rating is 4", None),
        ("6", None),
        ("0", None),
        ("45", None),
        ("4.5", None),
        ("-4", None),
        ("I would give it a 4", None),
        ("", None),
    ],
)
def test_ratings_are_read_with_suspicion(text: str, value: str | None):
    assert read_choice(text, ["1", "2", "3", "4", "5"]) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("B", "B"),
        ("[[B]]", "B"),
        ("Answer: A.", "A"),
        ("b is better", "B"),
        ("A good one", None),
        ("Both A and B", None),
    ],
)
def test_choices_are_read_with_suspicion(text: str, value: str | None):
    assert read_choice(text, ["A", "B"]) == value


@given(st.text(max_size=60))
def test_any_text_is_a_value_or_none(text: str):
    assert read_choice(text, ["yes", "no"]) in ("yes", "no", None)


# -- judges of rows ------------------------------------------------------------------------------------------


def test_a_program_judge_takes_its_fields_from_the_row():
    backend = place_and_worth(1.0, 2.0)
    judge = ProgramJudge(Comparer(), LM("scoring", backend), ("chosen", "rejected"), ADAPTER)
    inputs = {"instruction": "Add.", "input": ""}
    assert judge(inputs, {"chosen": "good", "rejected": "poor"}) == pytest.approx(0.842, abs=1e-3)
    assert judge(inputs, {"chosen": "poor", "rejected": "good"}) == pytest.approx(1 - 0.842, abs=1e-3)
    assert "request: Add.\n" in backend.scored[0].messages[-1][1]
    with pytest.raises(InputError, match="1 answer fields for judge"):
        ProgramJudge(Comparer(), LM("scoring", backend), ("chosen",))
    assert as_request({"question": "Why?", "context": "Rain."}) == "question: Why?\ncontext: Rain."
