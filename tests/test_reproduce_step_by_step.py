"""The reproduction of distilling step-by-step: its rows, its answers, and students at equal numbers of steps."""

from __future__ import annotations

from typing import Any

from limbeck.engine.loading import LoadedModel
from limbeck.finetune.loop import TrainConfig
from limbeck.reproduce import step_by_step
from limbeck.reproduce.setting import Setting
from limbeck.signatures.tasks import FieldSpec, build_signature
from limbeck.sums import Sum, make_sums

ONE = Sum(12, (("+", 7), ("*", 3)))
ANSWER: Any = build_signature([FieldSpec("problem")], [FieldSpec("answer")], "Work it out.")
REASONED: Any = build_signature([FieldSpec("problem")], [FieldSpec("reasoning"), FieldSpec("answer")], "Work it out.")


def test_steps_are_written_where_the_program_writes_some_and_read_back() -> None:
    ((direct, _),) = step_by_step.rendered(ANSWER, ONE).completions
    ((both, _),) = step_by_step.rendered(REASONED, ONE).completions
    assert direct == "57"
    assert "12 + 7 = 19\n19 * 3 = 57" in both
    assert step_by_step.is_answer(REASONED, ONE, both) == 1.0
    assert step_by_step.is_answer(REASONED, ONE, both.replace("57", "58")) == 0.0
    assert step_by_step.is_answer(REASONED, ONE, "12 + 7 = 19") == 0.0


def test_a_rationale_is_asked_for_under_a_prompt_of_its_own(fresh_tiny: LoadedModel) -> None:
    (row,) = step_by_step.rationale_rows(fresh_tiny, ANSWER, [ONE], TrainConfig(loss_per="token"))
    tokenizer: Any = fresh_tiny.tokenizer
    ((tokens, mass),) = row.branches
    assert tokenizer.decode(tokens).startswith("12 + 7 = 19\n19 * 3 = 57")
    assert "Do not answer yet" in tokenizer.decode(row.prompt)
    assert mass == 1.0


def test_all_students_answer_the_same_sums(setting: Setting) -> None:
    outcome = step_by_step.run(setting, step_by_step.Sizes(rows=6, tested=5, epochs=1.0))
    names = [step_by_step.LABELS, step_by_step.SECOND, step_by_step.TWICE, step_by_step.DECODED]
    assert [arm.name for arm in outcome.arms] == names
    assert all(len(arm.scores) == 5 for arm in outcome.arms)
    answers = [one.answer for one in make_sums(11, operations=2, largest=10)[6:]]
    assert f"right for {max(map(answers.count, answers)) / 5:.3f}" in outcome.notes[0]
