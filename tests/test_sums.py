"""Sums of several steps: they are right, differ, and their first wrong step is found wherever it is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import InputError
from limbeck.sums import Sum, answer_of, first_wrong_step, flawed, labelled, make_sums, parse_sum

ONE = Sum(12, (("+", 7), ("*", 3), ("-", 50)))


def evaluated(problem: str) -> int:
    """The problem's text, read and calculated on its own."""
    value = int(re.findall(r"Start with (\d+)", problem)[0])
    for word, number in re.findall(r"(Add|Subtract|Multiply by) (\d+)\.", problem):
        value = {"Add": value + int(number), "Subtract": value - int(number)}.get(word, value * int(number))
    return value


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(9, 2000))
def test_the_worked_solution_is_right_and_stays_in_bounds(seed: int, operations: int, largest: int) -> None:
    (one,) = make_sums(1, operations=operations, largest=largest, seed=seed)
    assert one.answer == evaluated(one.problem) == answer_of(one.steps)
    assert len(one.operations) == operations
    assert all(0 <= value <= largest for value in one.values)
    assert first_wrong_step(one, one.steps) is None
    assert labelled(one, one.steps).ratings == (1,) * (operations + 1)


@given(st.integers(0, 10_000), st.data())
def test_a_flaw_is_found_where_it_was_put(seed: int, data: st.DataObject) -> None:
    (one,) = make_sums(1, operations=4, seed=seed)
    at = data.draw(st.integers(0, 4))
    steps = flawed(one, at, seed=seed)
    assert first_wrong_step(one, steps) == at
    found = labelled(one, steps)
    assert found.first_error == at
    assert found.right is False
    # What follows the flaw is calculated rightly from it.
    for step in steps[at + 1 : -1]:
        match = re.fullmatch(r"(-?\d+) ([-+*]) (\d+) = (-?\d+)", step)
        assert match is not None
        left, right, result = (int(match[i]) for i in (1, 3, 4))
        assert result == {"+": left + right, "-": left - right, "*": left * right}[match[2]]


def test_the_same_seed_gives_the_same_sums_and_none_twice() -> None:
    sums = make_sums(200, operations=2, seed=3)
    assert sums == make_sums(200, operations=2, seed=3) != make_sums(200, operations=2, seed=4)
    assert len({one.problem for one in sums}) == 200
    assert {sign for one in sums for sign, _ in one.operations} == {"+", "-", "*"}


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_a_sum_is_read_back_from_its_words(seed: int, operations: int) -> None:
    (one,) = make_sums(1, operations=operations, seed=seed)
    assert parse_sum(one.problem) == parse_sum(f" {one.problem}\n") == one


@pytest.mark.parametrize(
    "problem",
    [
        "",
        "Start with 12. What is the result?",
        "Start with 12. Add 7.",
        "Start with 12. Divide by 3. What is the result?",
        "Start with 12. Add 7. What is the result? Add 3.",
        "Start with 12. Add 7.5. What is the result?",
        f"Start with {'9' * 5000}. Add 7. What is the result?",
    ],
)
def test_other_words_are_no_sum(problem: str) -> None:
    assert parse_sum(problem) is None


@pytest.mark.parametrize(
    ("steps", "wrong"),
    [
        (["12 + 7 = 19"], None),
        (["First 7+12=19, of course.", "So 19 x 3 = 57.", "57 - 50 = 7", "the answer is: 7"], None),
        (["12 + 7 = 19", "57 - 50 = 7"], 1),  # a step is left out
        (["12 + 7 = 19", "19 * 3 = 57", "50 - 57 = 7"], 2),
        (["12 + 7 = 20 - 1 = 19"], 0),
        (["12 + 7 = 19 and 19 * 3 = 57"], 0),
        (["12 + 7 = 19.5"], 0),
        (["12 + 7 = 19,5"], 0),
        (["3 + 12 + 7 = 19"], 0),
        (["2 * 12 + 7 = 19"], 0),
        (["- 12 + 7 = 19"], None),
        (["12 + 7 = 19", "19 * 3 = 57", "57 - 50 = 7", "The answer is 7.", "The answer is 7."], 4),
        (["12 + 7 = 19", "19 * 3 = 57", "57 - 50 = 7", "The answer is 57, no, the answer is 7."], 3),
        (["Let us see."], 0),
    ],
)
def test_written_solutions_are_checked_step_by_step(steps: list[str], wrong: int | None) -> None:
    assert first_wrong_step(ONE, steps) == wrong


def test_a_right_answer_does_not_make_a_wrong_step_right() -> None:
    found = labelled(ONE, ["12 + 7 = 19", "19 * 3 = 56", "57 - 50 = 7", "The answer is 7."])
    assert (found.right, found.first_error, found.ratings) == (True, 1, (1, -1, None, None))
    assert labelled(ONE, ["12 + 7 = 19"]).right is False


@pytest.mark.parametrize("said", ["57.5", "57/2", "57 - 50 = 7", "1,024"])
def test_a_longer_expression_is_no_answer(said: str) -> None:
    assert answer_of([f"The answer is {said}"]) is None


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(InputError, match="0 sums"):
        make_sums(0)
    with pytest.raises(InputError, match="different sums of 1 operations up to 2"):
        make_sums(1000, operations=1, largest=2)
    with pytest.raises(InputError, match="step 4 of 4"):
        flawed(ONE, 4)
