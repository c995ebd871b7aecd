"""Step labels: what a solution may hold, what of it is learned from, and its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import InputError
from limbeck.records import Provenance
from limbeck.steps import RIGHT, WRONG, Solution, rated, read_objects, read_solutions, write_solutions

ORIGIN = Provenance("prm800k", parents=("a",), level=3, attributes="ada")
texts = st.text(min_size=1, max_size=6).filter(lambda text: bool(text.strip()))


@st.composite
def solutions(draw: st.DrawFn) -> Solution:
    steps = draw(st.lists(texts, min_size=1, max_size=5))
    each: dict[str, Any] = {"min_size": len(steps), "max_size": len(steps)}
    ratings = draw(st.lists(st.sampled_from([-1, 0, 1, None]), **each))
    soft = draw(st.one_of(st.just([]), st.lists(st.one_of(st.none(), st.floats(0, 1)), **each)))
    right = draw(st.sampled_from([True, False, None]))
    return Solution(draw(st.text()), tuple(steps), tuple(ratings), ORIGIN, tuple(soft), draw(st.text()), "7", right)


@settings(max_examples=40)
@given(st.lists(solutions(), max_size=4))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[Solution]) -> None:
    path = tmp_path_factory.mktemp("s") / "folder" / "steps.jsonl"
    write_solutions(rows, path)
    assert read_solutions(path) == rows
    assert [p.name for p in path.parent.iterdir()] == ["steps.jsonl"]


@given(solutions(), st.sampled_from([1.0, 0.0, None]), st.booleans())
def test_nothing_behind_the_first_error_is_learned_from(one: Solution, neutral: float | None, soft: bool) -> None:
    found = dict(one.targets(neutral=neutral, soft=soft))
    wanted: dict[int, float] = {}
    for place, rating in enumerate(one.ratings):
        share = one.soft[place] if one.soft and soft else None
        mass = {1: 1.0, 0: neutral, -1: 0.0, None: None}[rating] if share is None else share
        if mass is not None:
            wanted[place] = mass
        if rating == -1:
            break
    assert found == wanted


def test_a_neutral_step_is_right_unless_asked_otherwise() -> None:
    one = Solution("?", ("a", "b", "c"), (0, 1, None), ORIGIN, soft=(None, 0.25, 0.5))
    assert one.targets() == ((0, 1.0), (1, 0.25), (2, 0.5))
    assert one.targets(neutral=0.0, soft=False) == ((0, 0.0), (1, 1.0))
    assert one.targets(neutral=None, soft=False) == ((1, 1.0),)


def test_the_first_error_and_the_ratings_that_it_makes() -> None:
    assert rated(3, None) == (RIGHT,) * 3
    for at in range(3):
        one = Solution("?", ("a", "b", "c"), rated(3, at), ORIGIN)
        assert one.first_error == at
        assert one.targets() == (*((place, 1.0) for place in range(at)), (at, 0.0))
    with pytest.raises(InputError, match="the first error is step 3 of 3"):
        rated(3, 3)


def test_the_id_is_that_of_the_text() -> None:
    one = Solution("?", ("a", "b"), (RIGHT, WRONG), ORIGIN, right=False)
    assert one.id == Solution("?", ("a", "b"), (None, None), Provenance("other")).id
    assert one.id != Solution("?", ("a", "c"), (RIGHT, WRONG), ORIGIN).id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": ()}, "without steps"),
        ({"steps": ("a", " ")}, "step 2 is empty"),
        ({"ratings": (1,)}, "1 ratings for 2 steps"),
        ({"ratings": (1, 2)}, "rated 2"),
        ({"ratings": (1, True)}, "rated True"),
        ({"soft": (0.5,)}, "1 soft labels for 2 steps"),
        ({"soft": (0.5, 1.5)}, r"soft label is 1\.5"),
    ],
)
def test_labels_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"problem": "?", "steps": ("a", "b"), "ratings": (1, 0), "provenance": ORIGIN}
    Solution(**values)
    with pytest.raises(InputError, match=message):
        Solution(**{**values, **changes})


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"problem": "?"}', "RATED"])
def test_a_line_that_is_no_solution_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "s.jsonl"
    write_solutions([Solution("?", ("a",), (1,), ORIGIN)], path)
    good = json.loads(path.read_text(encoding="utf-8"))
    bad = json.dumps({**good, "ratings": [7]}) if line == "RATED" else line
    path.write_text(f"{json.dumps(good)}\n\n{bad}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"s\.jsonl, line 3"):
        read_solutions(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        list(read_objects(tmp_path / "none.jsonl"))


def test_a_line_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes('{"a": 1}\n{"b": "é"}\n'.encode("latin-1"))
    with pytest.raises(InputError, match=r"s\.jsonl, line 2 is not JSON"):
        list(read_objects(path))
