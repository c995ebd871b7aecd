"""Chains of abstraction: the reader's rules, waves and parallel calls, exact arithmetic, tools, filling in."""

from __future__ import annotations

import threading
from fractions import Fraction
from typing import Any, cast

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.chains import ChainError, as_number, calculate, parse_chain, run_chain, shown
from limbeck.errors import BudgetExceeded


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("She has 3 + 4 = 7 left.", "no_placeholder"),
        ("See [1] and [y1].", "no_placeholder"),
        ("", "no_placeholder"),
        ("[3 + 4 = 7]", "unparsable"),
        ("[3 + 4 = 7 = y1]", "unparsable"),
        ("[= y1]", "unparsable"),
        ("[3 + 4 = y1] and [y1 - 2] more", "unparsable"),
        ("[1 + 1 = y1] and [2 + 2 = y1]", "unparsable"),
        ("[3 + y2 = y1]", "undefined_variable"),
        ("[3 + x1 = y1]", "undefined_variable"),
        ("[3 + 4 = y1], so y2 are left", "undefined_variable"),
        ("[y2 + 1 = y1] and [y1 - 1 = y2]", "cycle"),
        ("[y1 + 1 = y1]", "cycle"),
    ],
)
def test_chains_that_cannot_be_read_say_why(text: str, reason: str) -> None:
    with pytest.raises(ChainError) as caught:
        parse_chain(text)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(f"{reason}: ")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[3 apples + 4 = y1]", "unparsable"),
        ("[3 / 0 = y1]", "unparsable"),
        ("[9 ^ 9 ^ 9 = y1]", "unparsable"),
        ("[9^800*9^800*9^800*9^800*9^800*9^800 = y1]", "unparsable"),
        ("[huge(Rome) = y1]", "tool_error"),
        ("[search(Rome) = y1]", "unparsable"),
        ("[fails(Rome) = y1]", "tool_error"),
        ("[endless(Rome) = y1]", "tool_error"),
        ("[name(Rome) = y1] [y1 + 1 = y2]", "unparsable"),
    ],
)
def test_chains_that_cannot_be_run_say_why(text: str, reason: str) -> None:
    tools: dict[str, Any] = {"fails": lambda _: 1 / 0, "endless": lambda _: float("inf"), "name": lambda _: "Lazio"}
    tools["huge"] = lambda _: 10**5000
    with pytest.raises(ChainError) as caught:
        run_chain(parse_chain(text), tools)
    assert caught.value.reason == reason


def test_later_calls_take_earlier_results_in_whatever_order_they_stand() -> None:
    chain = parse_chain("He sells [y1 - 5 = y2] of [3 * 4 = y1]. Half of that is [y2 / 2 = y3].")
    assert [[step.name for step in wave] for wave in chain.waves] == [["y1"], ["y2"], ["y3"]]
    assert [step.name for step in chain.steps] == ["y2", "y1", "y3"]
    done = run_chain(chain)
    assert done.answer == Fraction(7, 2)
    assert done.text == "He sells 12 - 5 = 7 of 3 * 4 = 12. Half of that is 7 / 2 = 3.5."


def test_a_name_in_front_is_read_and_the_answer_is_what_the_chain_says() -> None:
    done = run_chain(parse_chain("[y1 = 2 * 3] and [y2 = y1 + 1]. The answer is y1."))
    assert done.answer == 6
    assert run_chain(parse_chain("[2 * 3 = a_1], [a_1 + 1 = a_2] #### a_1")).answer == 6
    assert run_chain(parse_chain("[2 * 3 = y1], then [y1] more: [y1 + 6 = y2]")).text.startswith(
        "2 * 3 = 6, then 6 more"
    )


def test_independent_calls_run_at_once() -> None:
    met = threading.Barrier(3, timeout=5)

    def meet(text: str) -> str:
        met.wait()
        return text.upper()

    done = run_chain(parse_chain("[meet(a) = y1] [meet(b) = y2] [meet(c) = y3]"), {"meet": meet})
    assert dict(done.values) == {"y1": "A", "y2": "B", "y3": "C"}


def test_tools_take_texts_and_earlier_results_and_may_be_dspy_tools() -> None:
    years = {"capital of Italy": "Rome", "people in Rome": "2.8"}

    def search(query: str) -> str:
        """Look something up."""
        return years[query]

    text = "[search(capital of Italy) = y1] has [search(people in y1) = y2] million, double [y2 * 2 = y3]."
    done = run_chain(parse_chain(text), {"search": cast(Any, dspy.Tool(search))})
    assert done.answer == Fraction(28, 5)
    assert (
        done.text == "search(capital of Italy) = Rome has search(people in Rome) = 2.8 million, double 2.8 * 2 = 5.6."
    )
    # In a search, what looks like a name may be a word.
    assert run_chain(parse_chain("[echo(vitamin B12) = y1]"), {"echo": str}).answer == "vitamin B12"


def test_a_spent_budget_is_no_fault_of_the_chain() -> None:
    def costly(_: str) -> str:
        raise BudgetExceeded("--max-usd 1 is spent")

    with pytest.raises(BudgetExceeded):
        run_chain(parse_chain("[costly(x) = y1]"), {"costly": costly})


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1,200 * 20%", 240),
        ("$3.50 x 2", 7),
        ("16x20", 320),
        ("600 − 30", 570),
        ("7 ÷ 2", Fraction(7, 2)),
        ("-(2 - 5) ^ 2", -9),
        (".5 * 60", 30),
        ("1/3 + 1/6", Fraction(1, 2)),
    ],
)
def test_expressions_have_exact_values(expression: str, value: Fraction | int) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["", "two + 2", "2 +", "(2 + 3", "2; 3", "__import__('os')", "9**9**9**9", "1e400 * 10", "5 = 5", "1, 2", "+", "%"],
)
def test_what_is_no_calculation_is_refused(expression: str) -> None:
    with pytest.raises(ChainError):
        calculate(expression)


numbers = st.fractions(min_value=-1000, max_value=1000, max_denominator=50)


@given(st.lists(st.tuples(st.sampled_from("+-*/"), st.integers(0, 99)), min_size=1, max_size=6), st.integers(0, 99))
def test_chains_calculate_like_python(steps: list[tuple[str, int]], start: int) -> None:
    text, value, name, parts = "", Fraction(start), str(start), list[str]()
    for at, (operator, number) in enumerate(steps, 1):
        if operator == "/" and not number:
            number = 1
        results = {"+": value + number, "-": value - number, "*": value * number}
        value = value / number if operator == "/" else results[operator]
        parts.append(f"[{name} {operator} {number} = y{at}]")
        name = f"y{at}"
    text = " then ".join(parts)
    assert run_chain(parse_chain(text)).answer == value


@given(numbers)
def test_what_is_shown_reads_back(value: Fraction) -> None:
    assert Fraction(shown(value)) == value


@given(st.text(alphabet="[]=y12 +-*/^()abc.,%$", max_size=40))
@settings(max_examples=200)
def test_no_text_does_more_than_raise_a_chain_error(text: str) -> None:
    try:
        done = run_chain(parse_chain(text))
    except ChainError:
        return
    assert isinstance(done.answer, Fraction)


def test_numbers_for_people() -> None:
    assert as_number(Fraction(6, 2)) == 3
    assert isinstance(as_number(Fraction(6, 2)), int)
    assert as_number("Rome") == "Rome"
    with pytest.raises(ChainError, match="too large"):
        as_number(Fraction(10**400, 3))
    assert shown(Fraction(-1, 8)) == "-0.125"
    assert shown(Fraction(1, 10**9)) == "1/1000000000"
