"""Backtranslation reproduced: made documents, what the teacher learns, curation of them by the method, and the arms."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from scripted import scripted

from limbeck.compile.synthesizers import Synthesized
from limbeck.engine.requests import GenerateRequest
from limbeck.errors import StageEmpty
from limbeck.reproduce import backtranslation
from limbeck.reproduce.backtranslation import (
    ALL,
    CURATED,
    SEEDS,
    UNCURATED,
    Sizes,
    augmented,
    compared,
    source_of_sums,
    teacher_rows,
)
from limbeck.reproduce.outcome import told
from limbeck.reproduce.passages import Document, make_documents
from limbeck.reproduce.setting import Setting
from limbeck.sums import first_wrong_step, make_sums

SUMS = make_sums(70, operations=2, largest=50, seed=6)
SEEDED, SOLVED = SUMS[:10], SUMS[10:70]
WORDS = {"+": "Add", "-": "Subtract", "*": "Multiply by"}


def test_two_of_five_documents_are_worked_sums_and_the_others_work_out_none() -> None:
    made = make_documents(SOLVED, seed=2)
    assert Counter(one.kind for one in made) == {"good": 24, "cut": 12, "mixed": 12, "other": 12}
    for one, solved in zip(made, SOLVED, strict=True):
        steps = one.text.split("\n")
        whole = first_wrong_step(solved, steps) is None and len(steps) == len(solved.steps)
        assert (one.solved == solved) == (one.kind == "good") == whole
    assert len({one.text for one in made}) == len(made)
    assert made == make_documents(SOLVED, seed=2)


def test_the_teacher_learns_each_seed_turned_round_and_as_many_of_each_kind_of_spoiled_pair() -> None:
    rows = teacher_rows(source_of_sums(SEEDED[:8]), SEEDED[:8], random.Random(0))
    said = Counter(row.completions[0][0] for row in rows)
    assert all(said[one.problem] == 1 for one in SEEDED[:8])
    reviews = {text: count for text, count in said.items() if "Score: " in text}
    assert sorted(reviews.values()) == [4, 4, 4, 4, 8]
    assert sum(count for text, count in reviews.items() if text.endswith("Score: 5")) == 8


def reads(request: GenerateRequest) -> str:
    """A teacher without a fault: the problem that the steps work out, and 5 points where they end in their answer."""
    text = request.messages[-1][1]
    steps = re.findall(r"(\d+) ([-+*]) (\d+)", text)
    if not request.messages[0][1].startswith("Rate"):
        told = " ".join(f"{WORDS[sign]} {number}." for _, sign, number in steps) or "Add nothing."
        start = steps[0][0] if steps else " ".join(re.findall(r"\w+", text)[::2])
        return f"Start with {start}. {told} What is the result?"
    found = re.findall(r"= (\d+)", text)
    goes_on = [one[0] for one in steps[1:]] == found[:-1]
    answers = re.findall(r"The answer is (\d+)", text) == found[-1:]
    return f"So it is.\nScore: {5 if found and goes_on and answers else 1}"


def curated(documents: list[Document]) -> Synthesized:
    return augmented(scripted(reads)[0], source_of_sums(SEEDED), documents, 3)


def test_the_method_tries_the_documents_and_keeps_the_worked_sums_with_their_problems() -> None:
    documents = make_documents(SOLVED, seed=2)
    made = curated(documents)
    tried = {str(r.outputs["solution"]) for r in made.records}
    # A worked sum that is cut off may tell the problem of another one, and is then no record of its own.
    assert {one.text for one in documents} - tried <= {one.text for one in documents if not one.solved}
    assert len(tried) >= len(documents) - 3
    kept = {str(r.inputs["problem"]): str(r.outputs["solution"]) for r in made.records if r.kept}
    assert kept == {one.solved.problem: one.text for one in documents if one.solved}
    assert {r.reason for r in made.records if not r.kept} == {"low_rating"}


def test_no_worked_sum_among_the_documents_ends_the_stage() -> None:
    with pytest.raises(StageEmpty, match="kept nothing"):
        curated([one for one in make_documents(SOLVED) if one.kind != "good"])


def test_students_of_as_many_curated_and_uncurated_pairs_are_compared(setting: Setting) -> None:
    documents = make_documents(SOLVED[:30], seed=2)
    source, made = source_of_sums(SEEDED), curated(documents)
    steps: list[str] = []
    watched = Setting(setting.folder, setting.model, tell=steps.append)
    sizes = Sizes(seeds=10, documents=30, tested=5)
    outcome = compared(watched, sizes, source, documents, made, make_sums(5, operations=2, largest=50, seed=9))
    assert [arm.name for arm in outcome.arms] == [SEEDS, UNCURATED, CURATED, ALL]
    assert all(len(arm.scores) == 5 for arm in outcome.arms)
    assert [one.claim.worse for one in outcome.compared] == [UNCURATED, SEEDS, ALL]
    # 10 seeds and 12 pairs, 3 passes in batches of 8: 8 steps; with all 30 pairs 15.
    assert all(any(f"{name}: step 8/8" in text for text in steps) for name in (SEEDS, UNCURATED, CURATED))
    assert any(f"{ALL}: step 15/15" in text for text in steps)
    assert "All pairs: 12 of 30 are worked sums, 12 with their problem; curated: 12 of 12" in outcome.notes[0]
    assert outcome.verdict in told(outcome)


def test_a_teacher_that_rates_nothing_ends_the_reproduction_with_the_reason(setting: Setting) -> None:
    with pytest.raises(StageEmpty, match="kept nothing"):
        backtranslation.run(setting, Sizes(seeds=8, documents=10, tested=4))
