"""Step labels from people: chosen solutions go out as review batches, what is said comes back as labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.cli import main
from limbeck.compile.active import choose_to_label
from limbeck.errors import InputError
from limbeck.records import MANUAL, VERIFIED, Provenance
from limbeck.review import put_verdicts, review_status, take_batch
from limbeck.review.steps import read_step_review, write_step_review
from limbeck.steps import Solution

ORIGIN = Provenance("math-shepherd", parents=("gold",), teacher="m", level=4)
STEPS = ("2 + 3 = 5", "5 * 2 = 11", "The answer is 11.")
ONE = Solution("2 + 3, twice?", STEPS, (1, 1, -1), ORIGIN, answer="11", target="10", right=False)


def many(n: int) -> list[Solution]:
    return [Solution(f"{i}?", STEPS, (1, 1, 1), ORIGIN, right=i % 2 > 0) for i in range(n)]


def judge(folder: Path, verdict: str, reviewer: str = "ada", **outputs: Any) -> None:
    (row,) = take_batch(folder, 1, reviewer=reviewer, random_share=0, overlap_share=0).rows
    put_verdicts(folder, [{"id": row.id, "reviewer": reviewer, "verdict": verdict, "outputs": outputs}])


def test_people_see_the_numbered_steps_and_the_labels_so_far(tmp_path: Path) -> None:
    write_step_review([ONE], tmp_path)
    line = json.loads(take_batch(tmp_path, 5, reviewer="ada").lines())
    assert line["inputs"] == {
        "problem": "2 + 3, twice?",
        "steps": {"1": "2 + 3 = 5", "2": "5 * 2 = 11", "3": "The answer is 11."},
        "answer": "11",
        "target": "10",
    }
    assert list(line["inputs"]["steps"]) == ["1", "2", "3"]
    assert line["outputs"] == {"first_wrong_step": 3, "answer_right": False}


def test_a_correction_comes_back_as_step_and_answer_labels(tmp_path: Path) -> None:
    write_step_review([ONE], tmp_path)
    assert read_step_review(tmp_path) == []
    judge(tmp_path, "correct", first_wrong_step=2)
    (found,) = read_step_review(tmp_path)
    assert (found.problem, found.steps, found.answer, found.target) == (ONE.problem, ONE.steps, "11", "10")
    assert (found.ratings, found.right) == ((1, -1, None), False)
    assert found.targets() == ((0, 1.0), (1, 0.0))
    assert (found.provenance.level, found.provenance.method) == (VERIFIED, "math-shepherd")


def test_an_accepted_row_keeps_its_labels(tmp_path: Path) -> None:
    write_step_review([ONE], tmp_path)
    judge(tmp_path, "accept")
    assert [(one.ratings, one.right) for one in read_step_review(tmp_path)] == [((1, 1, -1), False)]


def test_no_step_may_be_wrong_and_the_answer_right(tmp_path: Path) -> None:
    write_step_review([ONE], tmp_path)
    judge(tmp_path, "correct", first_wrong_step=0, answer_right=True)
    assert [(one.ratings, one.right) for one in read_step_review(tmp_path)] == [((1, 1, 1), True)]


def test_rejected_and_tied_rows_are_left_out(tmp_path: Path) -> None:
    write_step_review([ONE], tmp_path / "rejected")
    judge(tmp_path / "rejected", "reject")
    assert read_step_review(tmp_path / "rejected") == []
    write_step_review([ONE], tmp_path / "tied")
    judge(tmp_path / "tied", "accept")
    judge(tmp_path / "tied", "correct", "bo", first_wrong_step=1)
    assert read_step_review(tmp_path / "tied") == []
    judge(tmp_path / "tied", "correct", "cy", first_wrong_step=1)
    assert [one.first_error for one in read_step_review(tmp_path / "tied")] == [0]


def test_an_answer_nobody_has_guessed_is_not_asked_for(tmp_path: Path) -> None:
    write_step_review([Solution("?", ("a", "b"), (None, None), ORIGIN)], tmp_path)
    (row,) = take_batch(tmp_path, 1, reviewer="ada").rows
    assert row.outputs == {"first_wrong_step": 0}
    put_verdicts(tmp_path, [{"id": row.id, "reviewer": "ada", "verdict": "accept"}])
    assert [(one.ratings, one.right) for one in read_step_review(tmp_path)] == [((1, 1), None)]


@pytest.mark.parametrize("step", [4, -1, 1.5])
def test_a_step_that_there_is_not_is_named_until_another_verdict_is_put(tmp_path: Path, step: float) -> None:
    write_step_review([ONE], tmp_path)
    (row,) = take_batch(tmp_path, 1, reviewer="ada").rows
    said = {"id": row.id, "reviewer": "ada", "verdict": "correct"}
    put_verdicts(tmp_path, [{**said, "outputs": {"first_wrong_step": step}}])
    with pytest.raises(InputError, match=f"row {row.id}: the first wrong step is {step} of 3"):
        read_step_review(tmp_path)
    put_verdicts(tmp_path, [{**said, "outputs": {"first_wrong_step": 1}}])
    assert [one.first_error for one in read_step_review(tmp_path)] == [0]


def test_labels_of_people_can_be_reviewed_again(tmp_path: Path) -> None:
    write_step_review([Solution("?", ("a",), (1,), Provenance("prm800k", level=MANUAL))], tmp_path)
    assert len(take_batch(tmp_path, 5, reviewer="ada").rows) == 1


def test_batches_of_what_was_chosen_are_random_draws_of_it(tmp_path: Path) -> None:
    solutions = many(60)
    chosen = choose_to_label(solutions, [0.9] * 60, 20, seed=1)
    write_step_review(chosen.solutions, tmp_path)
    taken = [take_batch(tmp_path, 5, reviewer="ada", random_share=0, overlap_share=0) for _ in range(5)]
    asked = [row.inputs["problem"] for batch in taken for row in batch.rows]
    assert sorted(asked) == sorted(one.problem for one in chosen.solutions)


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run `limbeck review ...` in this process; return its exit status."""
    monkeypatch.setattr("sys.argv", ["limbeck", "review", *words])
    with pytest.raises(SystemExit) as done:
        main()
    return int(done.value.code or 0)


def test_the_command_line_takes_and_puts_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, batch = tmp_path / "labels", tmp_path / "ada.jsonl"
    write_step_review(many(4), folder)
    assert command(monkeypatch, "take", str(folder), "--reviewer", "ada", "-n", "3") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    filled = [{**line, "verdict": "accept"} for line in lines]
    batch.write_text("".join(json.dumps(line) + "\n" for line in filled), encoding="utf-8")
    assert command(monkeypatch, "put", str(folder), str(batch)) == 0
    assert len(read_step_review(folder)) == len(lines) == 3
    assert (review_status(folder).kept, review_status(folder).agreement.judged) == (4, 3)


def test_a_folder_with_rows_is_not_written_over(tmp_path: Path) -> None:
    write_step_review([ONE], tmp_path)
    with pytest.raises(InputError, match="rows to review already"):
        write_step_review([ONE], tmp_path)
    with pytest.raises(InputError, match="no solutions"):
        write_step_review([], tmp_path / "other")
