"""The reproduction of Evol-Instruct: what the evolver learns, which evolved sums are kept, what students are fed."""

from __future__ import annotations

import re
from typing import Any

import pytest
from scripted import scripted

from limbeck.engine.requests import GenerateRequest
from limbeck.errors import InputError, StageEmpty
from limbeck.reproduce import evol
from limbeck.reproduce.setting import Setting
from limbeck.signatures.evolve import NOTHING
from limbeck.sums import Sum, parse_sum

NO_SUM = "Start with nothing at all and then say what on earth comes of it."


def evolved(request: GenerateRequest) -> str:
    """A sum with one more step or a new one; now and then a step too large, or no sum."""
    system, user = request.messages[0][1], request.messages[-1][1]
    if system.startswith("Compare two"):
        return NOTHING if "Subtract 3. What" in user.rpartition("second: ")[2] else "a step"
    (problem,) = re.findall(r"^problem: (.*)$", user, re.M)
    if "brand new" in system:
        return f"Start with {1 + request.seed % 37}. Add {1 + request.seed % 9}. What is the result?"
    more = ("Add 1.", "Subtract 1.", "Add 77.", "Subtract 3.", NO_SUM)[request.seed % 5]
    return more if more == NO_SUM else problem.replace(" What", f" {more} What")


def test_evolved_sums_pass_all_rules_and_what_each_rule_took_is_counted() -> None:
    lm, backend = scripted(evolved)
    originals = evol.mixed(12, (1, 2), seed=0)
    made = evol.evolve(lm, originals, 40, rounds=2, seed=0)
    assert {"kept", "no sum", "out of bounds", "no_gain"} <= set(made.rules)
    assert made.rules["kept"] == len(made.sums)
    assert all(0 <= value <= 50 for one in made.sums for value in one.values)
    longer = [one for one in made.sums if len(one.operations) > 2]
    assert longer
    beginnings = {(one.start, one.operations[:1]) for one in originals}
    assert any((one.start, one.operations[:1]) in beginnings for one in longer)
    # Instructions and the row alone: no demonstrations.
    assert all(len(request.messages) == 2 for request in backend.requests)


def test_the_evolver_learns_to_add_a_step_to_write_another_and_to_see_what_was_added() -> None:
    sums = evol.mixed(9, (2, 3), seed=1)
    rows = evol.lessons(sums, seed=0)
    asked = [(one.messages[-1][1], one.completions[0][0]) for one in rows]
    deepened = [(user, text) for user, text in asked if "\nhow: " in user]
    assert [text for _, text in deepened] == [one.problem for one in sums]
    for user, text in deepened:
        (problem,) = re.findall(r"^problem: (.*)$", user, re.M)
        parent, child = parse_sum(problem), parse_sum(text)
        assert parent is not None
        assert child is not None
        assert child.operations[:-1] == parent.operations
        assert child.start == parent.start
    compared = [(user.rpartition("second: ")[2], text) for user, text in asked if user.startswith("first: ")]
    assert [text for second, text in compared if second.startswith("Take")] == [NOTHING] * 3
    assert all(text in second for second, text in compared if not second.startswith("Take"))
    assert len(rows) == 9 + 2 * 3 + 3 + 3


def test_students_learn_as_many_rows_and_none_of_the_test(setting: Setting) -> None:
    sizes = evol.Sizes(rows=8, shown=3, tested=4)
    originals, harder = evol.mixed(24, (1, 2), seed=0), evol.mixed(4, (3, 4), seed=0)
    tests = evol.NewSums(tuple(evol.mixed(4, (1, 2), seed=5)), tuple(harder))
    more = evol.mixed(5, (2, 3), seed=3)
    made = evol.Made((*more, harder[0], more[0]), {"kept": 7})
    outcome = evol.students(setting, sizes, originals, made, tests)
    names = [evol.ORIGINALS, evol.EVOLVED, evol.LONGER, evol.GAIN_EASIER, evol.GAIN_HARDER]
    assert [arm.name for arm in outcome.arms] == names
    assert all(len(arm.scores) == 4 for arm in outcome.arms)
    # Two originals and the five evolved sums that are neither tested nor double.
    assert outcome.settings["rows"] == 7
    assert outcome.settings["evolved"] == 5
    assert "{'kept': 7}" in outcome.notes[0]


def test_a_model_that_evolves_nothing_ends_the_reproduction(setting: Setting) -> None:
    with pytest.raises(StageEmpty, match="evol_instruct kept nothing"):
        evol.run(setting, evol.Sizes(rows=8, shown=3, tested=2))


def test_the_calculator_answers_sums_within_bounds_alone() -> None:
    one = Sum(12, (("+", 7),))
    answer: Any = evol.Calculator()(problem=one.problem)
    assert answer.answer == "12 + 7 = 19\nThe answer is 19."
    for problem in (NO_SUM, Sum(12, (("-", 13),)).problem, Sum(12, (("*", 9),)).problem):
        with pytest.raises(InputError, match="is no sum"):
            evol.Calculator()(problem=problem)
