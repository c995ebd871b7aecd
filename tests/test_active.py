"""What people label next: convincing wrong answers and random others, seeded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.compile.active import choose_to_label
from limbeck.errors import InputError
from limbeck.records import Provenance
from limbeck.steps import Solution

RIGHTS = (True, False, None)


def make(n: int) -> list[Solution]:
    return [Solution("?", (f"step {i}",), (None,), Provenance("test"), right=RIGHTS[i % 3]) for i in range(n)]


SOLUTIONS = make(60)
SCORES = [(i * 37 % 60) / 60 for i in range(60)]
SCORE = {one.id: score for one, score in zip(SOLUTIONS, SCORES, strict=True)}
WRONG = sorted((one for one in SOLUTIONS if one.right is False), key=lambda one: -SCORE[one.id])


def test_most_are_the_wrong_answers_with_the_highest_scores() -> None:
    found = choose_to_label(SOLUTIONS, SCORES, 10)
    assert (found.convincing, found.others) == (8, 2)
    ids = [one.id for one in found.solutions]
    assert len(set(ids)) == 10
    assert {one.id for one in WRONG[:8]} < set(ids)


def test_the_others_are_random_and_the_order_tells_nothing() -> None:
    drawn = [choose_to_label(SOLUTIONS, SCORES, 10, seed=seed) for seed in range(30)]
    first = {one.id for one in WRONG[:8]}
    others = {one.id for found in drawn for one in found.solutions if one.id not in first}
    assert len(others) > 25
    places = {[one.id for one in found.solutions].index(WRONG[0].id) for found in drawn}
    assert len(places) > 5
    assert drawn[3] == choose_to_label(SOLUTIONS, SCORES, 10, seed=3)


@given(st.integers(1, 90), st.floats(0, 1), st.integers(0, 99))
def test_what_is_chosen_fits_what_there_is(n: int, share: float, seed: int) -> None:
    found = choose_to_label(SOLUTIONS, SCORES, n, share=share, seed=seed)
    assert found.convincing == min(round(share * n), len(WRONG))
    assert len({one.id for one in found.solutions}) == found.convincing + found.others == min(n, 60)


def test_the_same_solution_is_chosen_once() -> None:
    assert len(choose_to_label(SOLUTIONS * 2, SCORES * 2, 200).solutions) == 60


def test_ties_do_not_depend_on_the_order_given() -> None:
    backwards = choose_to_label(SOLUTIONS[::-1], [0.5] * 60, 20, share=1.0)
    assert backwards == choose_to_label(SOLUTIONS, [0.5] * 60, 20, share=1.0)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(InputError, match="0 solutions"):
        choose_to_label(SOLUTIONS, SCORES, 0)
    with pytest.raises(InputError, match=r"1\.5 of them"):
        choose_to_label(SOLUTIONS, SCORES, 5, share=1.5)
    with pytest.raises(InputError, match="2 scores for 60 solutions"):
        choose_to_label(SOLUTIONS, [0.1, 0.2], 5)
