"""Solutions for people to label step by step, through the same batches and verdicts as a run's rows.

A folder of them is reviewed as a run's is (`limbeck review take`, `put`, `status`). A row shows the problem and its
numbered steps; its outputs are `first_wrong_step`, the number of the first wrong step from 1 (0: none is wrong), and
`answer_right` where there is a guess of it. Where a row is decided it comes back as a `Solution` with these labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck.errors import InputError
from limbeck.ledger import Ledger
from limbeck.records import CHECKED, Record, write_records
from limbeck.review.decisions import apply_reviews, decide
from limbeck.review.store import KEPT, LEDGER, kept_records, read_reviews
from limbeck.steps import Solution, rated

FIRST_WRONG, ANSWER_RIGHT = "first_wrong_step", "answer_right"


def write_step_review(solutions: Sequence[Solution], folder: Path) -> None:
    """Make a folder for `limbeck review` of solutions, their labels so far as the outputs to accept or to correct.

    The rows carry no doubt of their own, so that every batch is a random draw of what was chosen. Raises InputError for
    no solutions and for a folder that has rows already.
    """
    if not solutions:
        raise InputError("no solutions to review", valid="one or more")
    if (folder / KEPT).exists():
        raise InputError(
            f"{folder} has rows to review already", valid="a new folder", hint=f"limbeck review status {folder}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    # The rows last: with them the folder counts as made.
    with Ledger(folder / LEDGER):
        pass  # the verdicts' tables come with the first batch
    write_records([_record(one) for one in solutions], folder / KEPT)


def _record(one: Solution) -> Record:
    inputs: dict[str, Any] = {
        "problem": one.problem,
        "steps": {str(number): step for number, step in enumerate(one.steps, 1)},
        **{name: text for name, text in (("answer", one.answer), ("target", one.target)) if text},
    }
    outputs: dict[str, Any] = {FIRST_WRONG: 0 if one.first_error is None else one.first_error + 1}
    if one.right is not None:
        outputs[ANSWER_RIGHT] = one.right
    # What people have labelled before is not given out, and here it is asked for.
    origin = replace(one.provenance, level=max(one.provenance.level, CHECKED))
    return Record(inputs, outputs, origin)


def read_step_review(folder: Path) -> list[Solution]:
    """Return the solutions that reviewers have decided on, labelled as they say; rejected and tied ones are left out.

    Steps before the first wrong one are right, those after it unlabelled. Raises InputError for a step that there is
    not.
    """
    reviews = read_reviews(folder)
    decided = decide(reviews)
    records = apply_reviews(kept_records(folder), reviews)
    return [_solution(record) for record in records if record.kept and record.id in decided]


def _solution(record: Record) -> Solution:
    steps: Mapping[str, str] = record.inputs["steps"]
    at = record.outputs[FIRST_WRONG]
    if at != int(at) or not 0 <= at <= len(steps):
        raise InputError(
            f"row {record.id}: the first wrong step is {at} of {len(steps)}",
            valid=f"0 for none, 1 to {len(steps)}",
            hint="put another verdict on the row: the last one of a reviewer counts",
        )
    return Solution(
        str(record.inputs["problem"]),
        tuple(steps.values()),
        rated(len(steps), int(at) - 1 if at else None),
        record.provenance,
        answer=str(record.inputs.get("answer", "")),
        target=str(record.inputs.get("target", "")),
        right=record.outputs.get(ANSWER_RIGHT),
    )
