"""Solvers in steps: how they are asked to go on, and samples of how a solution ends."""

from __future__ import annotations

import dspy
import pytest
from scripted import scripted

from limbeck.engine.requests import GenerateRequest
from limbeck.models import CompactAdapter
from limbeck.programs.solve import PrefixCompleter, ProgramCompleter, StepSolver, read_steps, stated_answer

STEPS = ("2 + 3 = 5", "5 * 2 = 10")


def two_more(request: GenerateRequest) -> str:
    return f"3. 10 - {request.seed % 7} = 9\n4. Done.\n\n[[ ## answer ## ]]\n9"


def test_a_solver_goes_on_from_the_first_steps() -> None:
    lm, backend = scripted(two_more)
    with dspy.context(lm=lm, adapter=CompactAdapter()):
        made = StepSolver()(problem="2 + 3, twice, less 1?", first_steps=STEPS)
    assert made.steps == (*STEPS, "10 - 0 = 9", "Done.")
    assert made.answer == "9"
    asked = backend.requests[0].messages[-1][1]
    assert "2 + 3, twice, less 1?" in asked
    assert "1. 2 + 3 = 5\n2. 5 * 2 = 10" in asked


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_nothing_is_no_step(text: str) -> None:
    assert read_steps(text) == ()


def test_numbers_of_a_calculation_are_no_numbers_of_lines() -> None:
    lines = ["54 - 8 = 46", "3.5 + 1 = 4.5", "12) 3 = 3", "-4 + 5 = 1", "step 4: So 1."]
    assert read_steps("\n".join(lines)) == ("54 - 8 = 46", "3.5 + 1 = 4.5", "3 = 3", "-4 + 5 = 1", "So 1.")


def test_a_quotient_is_no_number_of_a_line() -> None:
    assert read_steps("10 : 5 = 2\n3: 4 = 0.75\n3: So 1.") == ("10 : 5 = 2", "3: 4 = 0.75", "So 1.")


def test_an_answer_has_to_be_stated() -> None:
    assert stated_answer("2 + 3 = 5\n#### 5") == "5"
    assert stated_answer(r"So \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert stated_answer("2 + 3 = 5") == ""
    assert stated_answer("5") == ""
    assert stated_answer("") == ""


def test_every_sample_of_a_program_is_a_draw_of_its_own() -> None:
    lm, backend = scripted(two_more)
    complete = ProgramCompleter(StepSolver(), lm, CompactAdapter(), temperature=0.9)
    assert complete("?", STEPS, 0) == {"answer": "9"}
    for sample, steps in ((1, STEPS), (0, STEPS[:1]), (0, STEPS)):
        complete("?", steps, sample)
    seeds = [request.seed for request in backend.requests]
    assert len(set(seeds)) == 3
    assert seeds[3] == seeds[0]  # the same sample again: a ledger would know it
    assert {request.temperature for request in backend.requests} == {0.9}
    assert ProgramCompleter(StepSolver(), lm, CompactAdapter(), seed=1)("?", STEPS, 0) == {"answer": "9"}
    assert backend.requests[-1].seed not in seeds
    assert complete.teacher == "scripted"


def test_a_model_goes_on_from_the_steps_as_its_own_words() -> None:
    lm, backend = scripted(lambda request: "10 - 1 = 9\nThe answer is 9." if request.seed % 2 else "10 - 1 = 9")
    complete = PrefixCompleter(lm, lambda problem: (("user", problem),), max_tokens=32)
    found = [complete("2 + 3?", STEPS, sample)["answer"] for sample in range(12)]
    assert found == ["9" if request.seed % 2 else "" for request in backend.requests]
    assert {"9", ""} == set(found)
    assert len({request.seed for request in backend.requests}) == 12
    for request in backend.requests:
        assert request.messages == (("user", "2 + 3?"),)
        assert request.assistant_prefix == "2 + 3 = 5\n5 * 2 = 10\n"
        assert request.max_tokens == 32


def test_an_answer_that_was_stated_already_stands() -> None:
    lm, _ = scripted(lambda request: "")
    complete = PrefixCompleter(lm, lambda problem: (("user", problem),))
    assert complete("?", (*STEPS, "The answer is 10."), 0) == {"answer": "10"}
    assert complete("?", STEPS, 0) == {"answer": ""}
