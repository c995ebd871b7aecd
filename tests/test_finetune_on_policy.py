"""On-policy distillation: whose answers are trained on, and whose distributions are the target."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from limbeck.engine.chat import Chat
from limbeck.engine.loading import LoadedModel
from limbeck.errors import InputError
from limbeck.finetune.adapters import attach_lora
from limbeck.finetune.loop import TrainConfig, train
from limbeck.finetune.objectives import Divergence, Objective
from limbeck.finetune.on_policy import Asked, OnPolicy, check_vocabulary
from limbeck.finetune.rows import TrainRow
from limbeck.finetune.step import read_rows

ANSWER = (30, 31, 2)


def make_rows(loaded: LoadedModel) -> tuple[list[TrainRow], dict[tuple[int, ...], Asked]]:
    """Four rows; the teacher reads a longer prompt than the student."""
    chat = Chat(loaded.tokenizer)
    rows, asked = list[TrainRow](), dict[tuple[int, ...], Asked]()
    for word in ("one", "two", "three", "four"):
        messages = (("user", f"Count: {word}"),)
        prompt = chat.prompt(messages).ids
        longer = chat.prompt((("system", "Count: five. Answer: six."), *messages)).ids
        rows.append(TrainRow(prompt, ((ANSWER, 1.0),)))
        asked[prompt] = Asked(messages, longer)
    return rows, asked


def with_adapter(loaded: LoadedModel) -> LoadedModel:
    model: Any = attach_lora(loaded.model, TrainConfig(rank=4, alpha=8)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
    return replace(loaded, model=model)


def test_without_a_share_the_given_answers_stay_and_the_base_scores_them(fresh_tiny: LoadedModel) -> None:
    rows, asked = make_rows(fresh_tiny)
    student = with_adapter(fresh_tiny)
    scored = OnPolicy(asked, share=0.0)(0, 10, rows, student)
    for before, after in zip(rows, scored, strict=True):
        assert after.prompt == before.prompt
        assert after.branches == before.branches
        # The teacher is the base without the adapter, behind its own longer prompt.
        ids = torch.tensor([asked[before.prompt].teacher + ANSWER])
        peft: Any = student.model
        with torch.no_grad(), peft.disable_adapter():
            logits = peft(input_ids=ids, use_cache=False).logits[0]
        wanted = torch.log_softmax(logits[-len(ANSWER) - 1 : -1], dim=-1)
        assert torch.allclose(after.teacher, wanted, atol=1e-4)


def test_the_students_own_answers_are_seeded_and_differ_from_step_to_step(fresh_tiny: LoadedModel) -> None:
    rows, asked = make_rows(fresh_tiny)
    student = with_adapter(fresh_tiny)
    own = OnPolicy(asked, share=1.0, max_tokens=6, seed=3)
    first, again, later = (own(step, 10, rows, student) for step in (0, 0, 1))
    answers = [[row.branches for row in drawn] for drawn in (first, again, later)]
    assert answers[0] == answers[1] != answers[2]
    assert all(row.branches[0][0] != ANSWER and row.teacher.shape[0] == len(row.branches[0][0]) for row in first)


def test_a_share_of_the_answers_is_the_students(fresh_tiny: LoadedModel) -> None:
    rows, asked = make_rows(fresh_tiny)
    student = with_adapter(fresh_tiny)
    half = OnPolicy(asked, share=0.5, max_tokens=4)
    given = [row.branches[0][0] == ANSWER for step in range(20) for row in half(step, 20, rows, student)]
    assert 0.3 < sum(given) / len(given) < 0.7


def test_training_brings_the_student_nearer_to_its_teacher(fresh_tiny: LoadedModel) -> None:
    rows, asked = make_rows(fresh_tiny)
    config = TrainConfig(lr=2e-2, max_steps=40, batch_size=4, rank=8, alpha=16)
    refresh = OnPolicy(asked, share=0.5, max_tokens=4)
    done = train(fresh_tiny, rows, config, objective=Divergence(1.0), refresh=refresh)
    # Losses of drawn answers differ from draw to draw: the given answers are the same before and after.
    scored, model = OnPolicy(asked, share=0.0)(0, 1, rows, done.loaded), cast(Any, done.loaded.model)
    objective: Objective = Divergence(1.0)
    after = sum(read_rows(model.get_base_model(), scored, lambda view: float(objective(view))))
    with model.disable_adapter():
        before = sum(read_rows(model.get_base_model(), scored, lambda view: float(objective(view))))
    assert after < 0.6 * before


def test_a_teacher_with_another_vocabulary_is_refused(fresh_tiny: LoadedModel, embedded: LoadedModel) -> None:
    check_vocabulary(fresh_tiny, fresh_tiny)
    rows, asked = make_rows(fresh_tiny)
    with pytest.raises(InputError, match="another vocabulary") as caught:
        OnPolicy(asked, embedded)(0, 10, rows, with_adapter(fresh_tiny))
    assert "same" in caught.value.valid


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(InputError, match="share=2"):
        OnPolicy({}, share=2.0)


def test_answers_are_the_tokens_that_were_drawn_and_unknown_prompts_are_named(fresh_tiny: LoadedModel) -> None:
    rows, asked = make_rows(fresh_tiny)
    student, end = with_adapter(fresh_tiny), Chat(fresh_tiny.tokenizer).stop_ids
    own = OnPolicy(asked, share=1.0, max_tokens=6)
    drawn = [row.branches[0][0] for step in range(5) for row in own(step, 5, rows, student)]
    assert all(len(tokens) == 6 or tokens[-1] in end for tokens in drawn)
    with pytest.raises(InputError, match="not among those asked"):
        OnPolicy({}, share=0.0)(0, 5, rows, student)
    with pytest.raises(InputError, match="its context holds 1024"):
        OnPolicy(asked, share=1.0, max_tokens=1020)(0, 5, rows, student)


def test_a_teacher_that_is_the_students_base_is_read_without_the_adapter(fresh_tiny: LoadedModel) -> None:
    rows, asked = make_rows(fresh_tiny)
    student = with_adapter(fresh_tiny)
    none, base = (OnPolicy(asked, teacher, share=0.0)(0, 5, rows, student) for teacher in (None, fresh_tiny))
    assert all(torch.equal(a.teacher, b.teacher) for a, b in zip(none, base, strict=True))
    with pytest.raises(InputError, match="its own teacher"):
        OnPolicy(asked, student, share=0.0)(0, 5, rows, student)
