"""Verifiers: each passes what it should, says why not, and never ends a stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pytest

from limbeck.errors import BudgetExceeded
from limbeck.verifiers import (
    Grounded,
    HoldsNumber,
    NonEmpty,
    OfType,
    Verdict,
    Verifier,
    grounded_keys,
    leaves,
    votes,
)


@pytest.mark.parametrize(
    ("verifier", "good", "bad", "reason"),
    [
        (NonEmpty("y"), [], "  ", "y is empty"),
        (NonEmpty("y"), 0, None, "y is empty"),
        (OfType("y", Literal["a", "b"]), "a", "c", "'a' or 'b'"),
        (OfType("y", list[str]), ["a"], [["a"]], "y.0: Input should be a valid string"),
        (OfType("y", float), 3, "many", "valid number"),
        (HoldsNumber("y"), "42 apples", "many", "holds no number: 'many'"),
        (Grounded("y"), ["7 PM"], ["8 pm"], "'8 pm' is not in the input"),
        (Grounded("y", ("value",)), [{"slot": "time", "value": "7 pm"}], [{"value": "noon"}], "'noon'"),
    ],
)
def test_each_verifier_tells_good_from_bad(verifier: Verifier, good: Any, bad: Any, reason: str):
    inputs = {"text": "a table at 7  pm", "n": ["x"]}
    assert verifier(inputs, {"y": good}) == Verdict(True)
    verdict = verifier(inputs, {"y": bad})
    assert not verdict.ok
    assert reason in verdict.reason
    assert verifier.name.startswith("y ")


def test_a_spent_budget_is_no_vote_against_the_row():
    class Costly:
        name = "asks a model"

        def __call__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Verdict:
            raise BudgetExceeded("spent")

    with pytest.raises(BudgetExceeded):
        votes([NonEmpty("y"), Costly()], {}, {"y": 1})


def test_a_verifier_that_raises_votes_against_the_row():
    class Broken:
        name = "broken"

        def __call__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Verdict:
            return Verdict(outputs["missing"] > 0)

    found = votes([NonEmpty("y"), Broken()], {}, {"y": 1})
    assert found["y is not empty"].ok
    assert found["broken"] == Verdict(False, "KeyError: 'missing'")


def test_leaves_are_texts_with_their_nearest_key():
    assert leaves({"a": ["x", {"b": "y"}], "n": 3}) == [("a", "x"), ("b", "y")]
    assert leaves("x") == [("", "x")]


def test_keys_are_grounded_only_if_every_gold_text_is():
    rows = [
        ({"text": "at 7 pm"}, [{"slot": "time", "value": "7 PM"}]),
        ({"text": "on Monday"}, [{"slot": "date", "value": "monday"}]),
    ]
    assert grounded_keys(rows) == ("value",)
    assert grounded_keys([({"text": "x"}, ["y"])]) == ()
    assert grounded_keys([({"text": "x y"}, ["y"])]) == ("",)
