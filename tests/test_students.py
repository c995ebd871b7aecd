"""Records as the student's training rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import dspy
from conftest import tiny_tokenizer

from limbeck.compile.backtranslate import DOCUMENT_TAG, SEED_TAG, TAGS
from limbeck.models import CompactAdapter
from limbeck.pipeline.config import RunConfig
from limbeck.pipeline.fitting import looks
from limbeck.pipeline.students import Recipe, StudentPlan, gold_recipes, training_rows
from limbeck.records import Provenance, Record
from limbeck.task import Task, task_from_labels

RECIPE = Recipe(1e-3, 1.0)


def _task() -> Task:
    rows = [{"question": f"What is number {i}?", "answer": f"It is the one that follows {i - 1}."} for i in range(8)]
    return task_from_labels(rows, output="answer")


def _records() -> list[Record]:
    given = {"question": "Who came?"}, {"answer": "The jury came over the lazy dog."}
    origins = (
        Provenance("gold"),
        Provenance("pool"),
        Provenance("instruction_backtranslation", attributes=f"{DOCUMENT_TAG}; notes.md:1"),
    )
    return [Record(*given, origin) for origin in origins]


def _prompts(plan: StudentPlan) -> list[str]:
    tokenizer = tiny_tokenizer()
    return [tokenizer.decode(row.prompt) for row in training_rows(plan, RECIPE, _records(), tokenizer)]


def test_rows_from_documents_carry_another_sentence_than_the_users_own() -> None:
    plan = StudentPlan("embedded", CompactAdapter(), _task(), tagged=True)
    gold, pool, document = _prompts(plan)
    assert TAGS[SEED_TAG] in gold
    assert gold == pool
    assert TAGS[DOCUMENT_TAG] in document
    assert TAGS[SEED_TAG] not in document
    # Asked under the sentence of the user's own rows.
    (predictor,) = cast(list[Any], plan.program(RECIPE).predictors())
    assert predictor.signature.instructions.endswith(TAGS[SEED_TAG])


def test_without_documents_no_row_carries_one() -> None:
    task = _task()
    prompts = _prompts(StudentPlan("embedded", CompactAdapter(), task))
    assert len(set(prompts)) == 1
    assert not any(sentence in prompts[0] for sentence in TAGS.values())


def test_a_quick_run_of_a_program_that_reasons_makes_fewer_steps() -> None:
    task = _task()
    direct = StudentPlan("embedded", CompactAdapter(), task)
    program = dspy.ChainOfThought(cast(Any, task.program.predictors()[0]).signature)
    reasons = replace(direct, task=replace(task, program=program))
    quick, standard = RunConfig("run"), RunConfig("run", effort="standard")
    assert [len(gold_recipes(quick, plan)) for plan in (direct, reasons)] == [1, 1]
    assert 1.5 * gold_recipes(quick, reasons)[0].epochs == gold_recipes(quick, direct)[0].epochs
    assert 6 * quick.spend.rows_to_label(False, True) <= quick.spend.rows_to_label(False, False)
    assert (quick.spend.rows_to_test(False), quick.spend.rows_to_test(True)) == (400, 66)
    assert [len(gold_recipes(standard, plan)) for plan in (direct, reasons)] == [3, 3]
    assert gold_recipes(standard, reasons)[0].epochs == gold_recipes(standard, direct)[0].epochs
    assert standard.spend.rows_to_test(True) == standard.spend.rows_to_test(False)
    assert (looks(direct), looks(reasons)) == (2, 1)
