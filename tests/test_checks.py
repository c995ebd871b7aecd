"""Verifiers of values, structure, grounding and consistency: each passes what it should and says why not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.checks import (
    Agreement,
    Cited,
    EquationsHold,
    FactsOccur,
    MatchesSchema,
    RoundTrip,
    SameAnswer,
    Supported,
    missing_facts,
    wrong_equations,
)
from limbeck.errors import BudgetExceeded, InputError
from limbeck.metrics import token_f1
from limbeck.verifiers import Verdict, Verifier, votes

PASSAGES = [
    "The Hoover Dam was built between 1931 and 1936. It stands on the Colorado River, and cost $49 million.",
    "Lake Mead, which the dam holds back, is Nevada's largest reservoir. It supplies 1,200 farms with water.",
]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "nights": {"type": "integer", "minimum": 1}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("verifier", "good", "bad", "reason"),
    [
        (SameAnswer("y", lambda inputs: inputs["n"] * 2), "14.0", "15", "y is '15', not 14"),
        (SameAnswer("y", "n"), "It is 7.", "8", "y is '8', not 7"),
        (EquationsHold("y"), "3 * 4 = 12", "3 * 4 = 13", "y: 3 * 4 = 13 does not hold"),
        (EquationsHold("y", least=2), "1 + 1 = 2, so 2 + 1 = 3.", "1 + 1 = 2", "y has 1 equations, fewer than 2"),
        (MatchesSchema("y", SCHEMA), {"city": "Rome", "nights": 2}, {"nights": 0}, "y"),
        (MatchesSchema("y", SCHEMA), '{"city": "Rome"}', '{"city": ', "y is no JSON"),
        (Cited("y"), 'They cost "$49 million" [1].', "It is so [4].", "y cites [4] of 3 passages"),
        (FactsOccur("y"), "It is the Hoover Dam.", "It is the Glen Dam.", "y: Glen is not in the sources"),
        (Supported("y"), "The dam was built from 1931 to 1936.", "Whales sing.", "support 0 of 1 sentences"),
        (RoundTrip("y", lambda inputs: "dam"), " Dam", "lake", "y is given back as 'dam', not 'lake'"),
        (Agreement("y", lambda inputs, i: i % 2, k=4), 1, 2, "0 of 3 samples agree with 2"),
    ],
)
def test_each_verifier_tells_good_from_bad(verifier: Verifier, good: Any, bad: Any, reason: str):
    inputs = {"passages": PASSAGES, "n": 7}
    assert verifier(inputs, {"y": good}) == Verdict(True)
    verdict = verifier(inputs, {"y": bad})
    assert not verdict.ok
    assert reason in verdict.reason
    assert not verifier(inputs, {}).ok or isinstance(verifier, (EquationsHold, Cited, FactsOccur, Supported))
    assert verifier.name.startswith("y ")
    assert votes([verifier], inputs, {"y": good})[verifier.name].ok


def test_percent_is_known_from_the_question():
    check = SameAnswer("y", "gold")
    assert check({"question": "What percent is it?", "gold": "50"}, {"y": "50%"}).ok
    assert not check({"question": "How many are there?", "gold": "50"}, {"y": "50%"}).ok


# -- equations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wrong", "count"),
    [
        ("He buys 5+3 = <<5+3=8>>8 apples.", [], 1),
        ("5 + 3 = 8 - 2 = 6", ["5 + 3 = 8 - 2 = 6"], 1),
        ("10 / 3 = 3.33", [], 1),
        ("10 / 3 = 3.5", ["10 / 3 = 3.5"], 1),
        ("$1,200 * 2 = $2,400.", [], 1),
        ("50% * 80 = 40", [], 1),
        ("(2 + 3) × 4 = 20 pears", [], 1),
        ("x = 3 and 2x = 6", [], 0),
        ("x + 2 + 3 = 9", [], 0),
        ("480 dollars * 10/100 = 48", [], 0),
        ("half of 3 + 5 = 4", [], 0),
        ("2 1/2 = 5/2", [], 0),
        ("500 / 2/5 = 1250", [], 0),
        ("12 * 1000 = 12,000 MB", [], 1),
        ("23 = (1/2) * (20 + 26)", [], 1),
        ("23 = (1/2) * (M + M)", [], 0),
        ("No numbers = no equations", [], 0),
    ],
)
def test_equations_between_numbers_are_found_and_checked(text: str, wrong: list[str], count: int):
    assert wrong_equations(text) == (wrong, count)


@settings(max_examples=60)
@given(st.integers(0, 999), st.integers(1, 999), st.sampled_from("+-*"), st.integers(-3, 3))
def test_an_equation_holds_if_and_only_if_its_result_is_right(a: int, b: int, sign: str, off: int):
    result = {"+": a + b, "-": a - b, "*": a * b}[sign] + off
    verdict = EquationsHold("y", least=1)({}, {"y": f"We get {a} {sign} {b} = {result} of them."})
    assert verdict.ok == (off == 0)


def test_texts_of_operators_cost_little():
    started = time.process_time()
    for text in ("1+" * 10_000, "(1" * 5_000 + "=" * 5_000, "1=" * 5_000, "1 " * 10_000):
        assert wrong_equations(text)[0] == []
    assert time.process_time() - started < 5


# -- structure -----------------------------------------------------------------------------------------------


def test_a_schema_names_the_place_of_the_fault():
    nested = MatchesSchema("y", {"type": "array", "items": SCHEMA})
    assert nested({}, {"y": [{"city": "Rome"}, {"city": 5}]}).reason == "y.1.city: 5 is not of type 'string'"
    assert MatchesSchema("y", {"type": "string"})({}, {"y": "no JSON"}).ok
    assert MatchesSchema("y", {"type": "integer"})({}, {"y": "5"}).ok
    assert not MatchesSchema("y", {"type": "array"})({}, {"y": "[" * 100_000}).ok


def test_a_schema_that_is_none_is_refused_and_nothing_is_fetched():
    with pytest.raises(InputError, match="the schema of y is none"):
        MatchesSchema("y", {"type": "text"})
    remote = MatchesSchema("y", {"$ref": "http://127.0.0.1:9/schema.json"})
    found = votes([remote], {}, {"y": {}})[remote.name]
    assert not found.ok
    assert "Unresolvable" in found.reason or "Referencing" in found.reason


# -- grounding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('It "was built between 1931 and 1936."', ""),
        ("It says “stands on the colorado  river”.", ""),
        ('It "was built … 1936" [1].', ""),
        ('He said "no way".', ""),  # too short to be a quotation of a source
        ('It "was built in 1931 and 1936".', "quotes what is not in the sources"),
        ('"Lake Mead, which the dam holds back" [1]', "quotes what is not in passage 1"),
        ('"Lake Mead, which the dam holds back" [2]', ""),
        ("As told [0].", "cites [0] of 2 passages"),
    ],
)
def test_quotations_and_marks(answer: str, reason: str):
    verdict = Cited("y", ("passages",))({"passages": PASSAGES, "question": "was built in 1931 and 1936"}, {"y": answer})
    assert verdict.ok == (not reason)
    assert reason in verdict.reason


def test_a_wanted_number_of_citations():
    check = Cited("y", least=1)
    assert check({"passages": PASSAGES}, {"y": "It is so."}).reason == "y cites too little: 0"
    assert check({"passages": PASSAGES}, {"y": "It is so [1]."}).ok


@pytest.mark.parametrize(
    ("answer", "missing"),
    [
        ("Water goes to 1200 farms.", []),
        ("1. Nevada has it [1].\n2. Lake Mead's water.", []),
        ("It cost 50 million.", ["50"]),
        ("Then Arizona and Utah paid.", ["Arizona", "Utah"]),
        ("I think so. Then I left.", []),
        ("In 1936.0 it ended.", []),
    ],
)
def test_numbers_and_names_have_to_occur(answer: str, missing: list[str]):
    assert missing_facts(answer, "\n".join(PASSAGES)) == missing


def test_inputs_that_are_numbers_are_sources_too():
    assert FactsOccur("y")({"price": 12.5, "name": "Ann"}, {"y": "She pays 12.50."}).ok
    assert not FactsOccur("y", ("name",))({"price": 12.5, "name": "Ann"}, {"y": "She pays 12.50."}).ok


def test_a_share_of_the_sentences_is_supported():
    answer = "The Hoover Dam stands on the Colorado River. It was built from 1931 to 1936. Elvis sang there often."
    assert Supported("y", least=0.6)({"passages": PASSAGES}, {"y": answer}).ok
    verdict = Supported("y")({"passages": PASSAGES}, {"y": answer})
    assert verdict.reason == "y: sources support 2 of 3 sentences, not 'Elvis sang there often.'"
    wrong_year = "The Hoover Dam was built between 1931 and 1937."
    assert not Supported("y")({"passages": PASSAGES}, {"y": wrong_year}).ok
    assert not Supported("y")({"passages": []}, {"y": answer}).ok


@settings(max_examples=40)
@given(st.text(max_size=80))
def test_grounding_never_raises_and_a_text_supports_itself(text: str):
    inputs, outputs = {"text": text}, {"y": text}
    assert FactsOccur("y")(inputs, outputs).ok
    assert Supported("y", least=1.0)(inputs, outputs).ok
    assert Cited("y")(inputs, {"y": f"“{text}”"}).ok in (True, False)


# -- consistency ---------------------------------------------------------------------------------------------


def test_round_trip_takes_predictions_mappings_values_and_metrics():
    for made in ("spam", {"y": "spam"}, dspy.Prediction(y="spam")):
        assert RoundTrip("y", lambda inputs, made=made: made)({}, {"y": "Spam"}).ok
    assert not RoundTrip("y", lambda inputs: {"other": "spam"})({}, {"y": "spam"}).ok
    soft = RoundTrip("y", lambda inputs: "the red car", token_f1, least=0.5)
    assert soft({}, {"y": "red truck"}).ok
    assert not soft({}, {"y": "blue truck"}).ok


def test_agreement_asks_no_more_than_it_needs():
    asked: list[int] = []

    def sample(inputs: Mapping[str, Any], i: int) -> str:
        asked.append(i)
        return inputs["answers"][i]

    check = Agreement("y", sample, k=5, least=0.6)
    assert check({"answers": ["1/2", "0.5", "0.50", "9", "9"]}, {"y": "50%"}).ok
    assert asked == [0, 1, 2]
    asked.clear()
    assert not check({"answers": ["9", "0.5", "9", "9", "0.5"]}, {"y": "1/2"}).ok
    assert asked == [0, 1, 2, 3]


def test_a_sample_that_raises_agrees_with_nothing_but_an_empty_budget_ends_it():
    def fails(inputs: Mapping[str, Any], i: int) -> str:
        if i:
            return "4"
        raise RuntimeError("no answer")

    assert Agreement("y", fails, k=3, least=0.6)({}, {"y": "4"}).ok

    def spent(inputs: Mapping[str, Any], i: int) -> str:
        raise BudgetExceeded("spent")

    with pytest.raises(BudgetExceeded):
        Agreement("y", spent)({}, {"y": "4"})
    with pytest.raises(InputError, match="agreement of 0 among 5"):
        Agreement("y", fails, least=0)
