"""Worked solutions whose equations become placeholders: marks, plain equations, operands, words."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.chains import parse_chain, run_chain, shown
from limbeck.compile.equations import abstract, calculates

SHOP = "Ann buys 5 pens and 3 more. Each costs 2 dollars. She pays with a 20 dollar bill."


@pytest.mark.parametrize(
    ("solution", "chain"),
    [
        (
            "She has 5+3 = <<5+3=8>>8 pens.\nThey cost 8*2 = $<<8*2=16>>16.\nShe gets 20 - 16 = <<20-16=4>>4 back.",
            "She has [5 + 3 = y1] pens.\nThey cost [y1 * 2 = y2].\nShe gets [20 - y2 = y3] back.",
        ),
        ("She has 5 + 3 = 8 pens, and 8 x 2 = 16.", "She has [5 + 3 = y1] pens, and [y1 * 2 = y2]."),
        # The sentence may begin with its result.
        ("She has 8 pens because 5 + 3 = 8.", "She has y1 pens because [5 + 3 = y1]."),
        ("5 pens + 3 pens = 8 pens. The 8 pens are blue.", "[5 + 3 = y1] pens. The y1 pens are blue."),
        ("5 pens/box * 3 boxes = 15 pens.", "[5 * 3 = y1] pens."),
        # A number of the problem stays, although it is a result as well, once that has been taken.
        ("1 + 1 = 2, 2 * 7 = 14 and 14 * 2 = 28.", "[1 + 1 = y1], [y1 * 7 = y2] and [y2 * 2 = y3]."),
        # What the writer got wrong stays words.
        ("She has 5 + 3 = 9 pens.", "She has 5 + 3 = 9 pens."),
        ("x=<<10=10>>10 and 10 + 5 = <<10+5=15>>15", "x=10 and [10 + 5 = y1]"),
        ("(5 + 3) * 2 = 16 in all", "[(5 + 3) * 2 = y1] in all"),
        ("1. 5 - 4 = 1\n1. Then 1 + 9 = 10", "1. [5 - 4 = y1]\n1. Then [y1 + 9 = y2]"),
        ("2,000 / 4 = 500, and 500.25 is no result", "[2000 / 4 = y1], and 500.25 is no result"),
        ("She needs no equation.", "She needs no equation."),
        ("", ""),
    ],
)
def test_equations_become_placeholders(solution: str, chain: str) -> None:
    assert abstract(solution, SHOP) == chain


def test_what_calculates_is_told_from_what_does_not() -> None:
    assert calculates("5 + 3 = 8")
    assert calculates("<<5+3=8>>8")
    assert not calculates("The total is 8.")
    assert not calculates("y = 8")


operands = st.integers(1, 60)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("+*-"), operands), min_size=1, max_size=5), operands, st.booleans())
def test_a_run_gives_the_results_that_were_written(steps: list[tuple[str, int]], value: int, marked: bool) -> None:
    written = list[str]()
    for operator, number in steps:
        found = {"+": value + number, "*": value * number, "-": value - number}[operator]
        if found <= 0:
            operator, found = "+", value + number
        mark = f"<<{value}{operator}{number}={found}>>" if marked else ""
        written.append(f"Now {value} {operator} {number} = {mark}{found}.")
        value = found
    chain = abstract("\n".join(written), f"It begins with {written[0].split()[1]}.")
    done = run_chain(parse_chain(chain))
    assert shown(done.answer) == str(value)
    assert len(parse_chain(chain).steps) == len(steps)
    assert re.sub(r"\s", "", done.text) == re.sub(r"\s|<<.*?>>", "", "".join(written))
