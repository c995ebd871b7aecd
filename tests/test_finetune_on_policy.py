"""On-policy distillation: whose answers are trained on, and whose distributions are the target."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from limbeck.engine.chat import Chat
from limbeck.engine.loading import LoadedModel
from limbeck.errors import InputError
from limbeck.finetune.loop import TrainConfig, attach_lora, train
from limbeck.finetune.objectives import Divergence
from limbeck.finetune.on_policy import Asked, OnPolicy, check_vocabulary
from limbeck.finetune.rows import TrainRow

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
    assert sum(done.losses[-10:]) < 0.6 * sum(done.losses[:10])


def test_a_teacher_with_another_vocabulary_is_refused(fresh_tiny: LoadedModel, embedded: LoadedModel) -> None:
    check_vocabulary(fresh_tiny, fresh_tiny)
    rows, asked = make_rows(fresh_tiny)
    with pytest.raises(InputError, match="another vocabulary") as caught:
        OnPolicy(asked, embedded)(0, 10, rows, with_adapter(fresh_tiny))
    assert "same" in caught.value.valid


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(InputError, match="share=2"):
        OnPolicy({}, share=2.0)
