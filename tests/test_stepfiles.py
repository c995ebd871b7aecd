"""Published step labels: lines of the form that PRM800K documents, and BIG-Bench Mistake's own rows."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import InputError
from limbeck.stepfiles import StepFile, read_bigbench_mistake, read_prm800k
from limbeck.steps import Solution


def completion(text: str, rating: int | None) -> dict[str, Any]:
    return {"text": text, "rating": rating, "flagged": None}


def step(*completions: dict[str, Any], chosen: int | None = 0, human: Any = None) -> dict[str, Any]:
    return {"completions": list(completions), "human_completion": human, "chosen_completion": chosen}


def line(
    steps: list[dict[str, Any]], reason: str, question: dict[str, Any] | None = None, **flags: Any
) -> dict[str, Any]:
    asked = {"problem": "What is 2 + 3 - 1?", "ground_truth_solution": "4", "ground_truth_answer": "4"}
    return {
        "labeler": "ada",
        "timestamp": "2023-01-22T04:34:27.052924",
        "generation": None,
        "is_quality_control_question": False,
        "is_initial_screening_question": False,
        "question": {**asked, **(question or {})},
        "label": {"steps": steps, "total_time": 1000, "finish_reason": reason},
    }


# Phase 1: alternatives at every step, and a step that the labeler wrote where all were wrong.
FIRST = line(
    [
        step(completion("Add.", 1), completion("Divide.", -1), completion("Hm.", None)),
        step(completion("2 + 3 = 6", -1), chosen=None, human={"text": "2 + 3 = 5", "rating": None, "source": "human"}),
        step(completion("5 - 1 = 4", 1), completion("So 4.", 0), chosen=0),
    ],
    "solution",
)
# Phase 2: generated steps, labelled until the first error; after it alternatives, of which none is chosen.
SECOND = line(
    [
        step(completion("2 + 3 = 5", 0)),
        step(completion("5 - 1 =  6", -1), completion("5 - 1 = 4", 1), completion("Count.", 0), chosen=None),
    ],
    "found_error",
    {
        "pre_generated_steps": ["2 + 3 = 5", "5 - 1 = 6", "# Answer\n\n6"],
        "pre_generated_answer": "6",
        "pre_generated_verifier_score": 0.1,
    },
)


def read(tmp_path: Path, *lines: Any, **options: Any) -> StepFile:
    path = tmp_path / "prm.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    return read_prm800k(path, **options)


def brief(one: Solution) -> tuple[tuple[str, ...], tuple[int | None, ...], bool | None]:
    return one.steps, one.ratings, one.right


def test_the_path_goes_on_with_the_chosen_step_or_the_one_a_person_wrote(tmp_path: Path) -> None:
    found = read(tmp_path, FIRST).solutions
    assert [brief(one) for one in found] == [
        (("Add.", "2 + 3 = 5", "5 - 1 = 4"), (1, 1, 1), True),
        (("Divide.",), (-1,), None),
        (("Add.", "2 + 3 = 6"), (None, -1), None),
        (("Add.", "2 + 3 = 5", "So 4."), (None, None, 0), None),
    ]
    assert {(one.problem, one.target, one.provenance.attributes) for one in found} == {
        ("What is 2 + 3 - 1?", "4", "ada")
    }
    # Learned from is every labelled step once: the alternatives' own steps, and no step of their path again.
    assert [len(one.targets()) for one in found] == [3, 1, 1, 1]


def test_a_person_may_write_bare_text(tmp_path: Path) -> None:
    bare = deepcopy(FIRST)
    bare["label"]["steps"][1]["human_completion"] = "2 + 3 = 5"
    assert read(tmp_path, bare) == read(tmp_path, FIRST)


def test_generated_steps_behind_the_first_error_stand_unlabelled(tmp_path: Path) -> None:
    main, *others = read(tmp_path, SECOND).solutions
    assert brief(main) == (("2 + 3 = 5", "5 - 1 =  6", "# Answer\n\n6"), (0, -1, None), False)
    assert (main.answer, main.first_error) == ("6", 1)
    assert main.targets() == ((0, 1.0), (1, 0.0))
    assert [brief(one) for one in others] == [
        (("2 + 3 = 5", "5 - 1 = 4"), (None, 1), None),
        (("2 + 3 = 5", "Count."), (None, 0), None),
    ]
    assert read(tmp_path, SECOND, alternatives=False).solutions == (main,)


def test_alternatives_behind_a_wrong_step_are_no_lessons(tmp_path: Path) -> None:
    steps = [step(completion("2 + 3 = 6", -1), completion("Add.", 1)), step(completion("a", 1), completion("b", -1))]
    assert [brief(one) for one in read(tmp_path, line(steps, "give_up")).solutions] == [
        (("2 + 3 = 6", "a"), (-1, 1), None),
        (("Add.",), (1,), None),
    ]


def test_an_answer_is_compared_by_value(tmp_path: Path) -> None:
    asked = {"ground_truth_answer": "\\frac{1}{2}", "pre_generated_steps": ["a"], "pre_generated_answer": "0.5"}
    found = read(tmp_path, line([step(completion("a", 1))], "found_error", asked)).solutions
    assert [one.right for one in found] == [True]


def test_lines_of_quality_control_and_screening_are_left_out_and_counted(tmp_path: Path) -> None:
    lines = [
        {**FIRST, "is_quality_control_question": True},
        {**FIRST, "is_quality_control_question": True},
        {**SECOND, "is_initial_screening_question": True},
        line([], "bad_problem"),
        SECOND,
    ]
    found = read(tmp_path, *lines)
    assert found.left_out == {"quality_control": 2, "initial_screening": 1, "bad_problem": 1}
    assert (found.lines, len(found.solutions)) == (5, 3)


def broken(path: list[Any], value: Any, of: dict[str, Any] = SECOND) -> dict[str, Any]:
    copy = deepcopy(of)
    at: Any = copy
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return copy


STEPS = ["label", "steps"]
FAULTS = {
    "another text": (broken([*STEPS, 0, "completions", 0, "text"], "2 + 3 = 9"), r"step 1 is labelled as '2 \+ 3 = 9'"),
    "too few generated": (broken(["question", "pre_generated_steps"], ["x"]), "step 1 is labelled as"),
    "blank generated": (broken(["question", "pre_generated_steps", 2], " "), "a generated step is ' '"),
    "index": (broken([*STEPS, 0, "chosen_completion"], 1), "step 1: completion 1 is chosen of 1"),
    "true": (broken([*STEPS, 0, "chosen_completion"], True), "completion True is chosen"),
    "goes on": (broken([*STEPS, 0, "chosen_completion"], None), "step 1: no completion is chosen and yet"),
    "rating": (broken([*STEPS, 1, "completions", 0, "rating"], 2), "step 2: a completion is rated 2"),
    "no text": (broken([*STEPS, 1, "completions", 0, "text"], ""), "a completion's text is ''"),
    "no list": (broken(STEPS, "none"), "the steps are 'none'"),
    "no problem": (broken(["question", "problem"], None), "question.problem is 'None'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_labels_that_do_not_fit_the_text_are_named_with_their_line(tmp_path: Path, fault: str) -> None:
    bad, message = FAULTS[fault]
    with pytest.raises(InputError, match=rf"prm\.jsonl, line 2.*{message}"):
        read(tmp_path, FIRST, bad)
    found = read(tmp_path, FIRST, bad, strict=False)
    assert (found.left_out, found.solutions) == ({"misaligned": 1}, read(tmp_path, FIRST).solutions)


def test_a_pointer_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "phase2_test.jsonl"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:6b\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"line 1 is not JSON.*version https"):
        read_prm800k(path)


MISTAKES = [
    {"task": "sums", "input": "1 + 1 + 1", "steps": ["1 + 1 = 2", "2 + 1 = 4"], "target": "3", "mistake_index": 1},
    {"task": "sums", "input": "1 + 1", "steps": ["1 + 1 = 2"], "target": "2", "mistake_index": None},
    {"task": "brackets", "input": "[ (", "steps": ["a", "b"], "target": ") ]", "mistake_index": 0},
]
ANSWERS = ["4", " 2", "]"]


def test_the_first_mistake_of_a_chain_is_its_first_wrong_step(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    rows = [{**row, "model_answer": answer} for row, answer in zip(MISTAKES, ANSWERS, strict=True)]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    found = read_bigbench_mistake(path).solutions
    assert [(one.ratings, one.right) for one in found] == [((1, -1), False), ((1,), True), ((-1, None), False)]
    assert [one.provenance.attributes for one in found] == ["sums", "sums", "brackets"]


@pytest.mark.parametrize("index", [2, -1, "1", True])
def test_a_mistake_at_no_step_is_named_with_its_line(tmp_path: Path, index: Any) -> None:
    path = tmp_path / "m.jsonl"
    rows = [MISTAKES[1], {**MISTAKES[0], "mistake_index": index}]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    with pytest.raises(InputError, match=r"m\.jsonl, line 2"):
        read_bigbench_mistake(path)
