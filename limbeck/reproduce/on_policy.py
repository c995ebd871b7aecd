"""On-policy distillation against distillation on the teacher's answers (Agarwal et al. 2023, GKD).

The teacher is the same base, tuned on many worked sums; the student has seen few. From there it goes on for equally
many steps, either on answers that the teacher wrote, or with half the answers its own, every token scored by the
teacher.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

from limbeck.engine.chat import Chat
from limbeck.engine.loading import LoadedModel, load_model
from limbeck.finetune.adapters import detach_lora
from limbeck.finetune.loop import TrainConfig, train
from limbeck.finetune.objectives import Divergence
from limbeck.finetune.on_policy import Asked, OnPolicy
from limbeck.finetune.rows import TrainRow, tokenize_rows
from limbeck.reproduce.outcome import Arm, Claim, Outcome
from limbeck.reproduce.setting import Setting
from limbeck.reproduce.solver import (
    GREEDY,
    LARGEST,
    LEARNING,
    OPERATIONS,
    fit,
    graded,
    messages,
    row_of,
    sample,
    worked,
)
from limbeck.sums import Sum, make_sums

TEACHER, START, OFFLINE, ON_POLICY = "teacher", "student before", "on the teacher's answers", "on policy"
CLAIMS = (
    Claim(ON_POLICY, START, "on-policy distillation raises the student's score"),
    Claim(ON_POLICY, OFFLINE, "on-policy distillation beats training on the teacher's answers at equal steps"),
)

_SHARE = 0.5


@dataclass(frozen=True)
class Sizes:
    """How many worked sums teacher and student have seen, how many are asked, the steps, and how many are tested."""

    taught: int
    seen: int
    asked: int
    steps: int
    tested: int
    operations: int = OPERATIONS


def run(setting: Setting, sizes: Sizes | None = None) -> Outcome:
    """Tune the teacher, start the student twice, distil in both ways, and compare on new sums."""
    sizes = sizes or setting.pick(Sizes(200, 40, 60, 12, 80), Sizes(500, 50, 200, 50, 250))
    total = sizes.taught + sizes.asked + sizes.tested
    sums = make_sums(total, operations=sizes.operations, largest=LARGEST, seed=setting.seed)
    taught, rest = sums[: sizes.taught], sums[sizes.taught :]
    asked, tested = rest[: sizes.asked], rest[sizes.asked :]
    teacher = load_model(setting.model)
    teacher = fit(setting, "teacher", teacher, worked(teacher, taught), LEARNING)
    scores = {TEACHER: graded(teacher, tested)}
    answers = [
        row_of(one.problem, steps)
        for one, (steps,) in zip(asked, sample(teacher, asked, 1, temperature=0.0), strict=True)
    ]
    further = TrainConfig(lr=3e-4, max_steps=sizes.steps, batch_size=16, seed=setting.seed)
    for name in (OFFLINE, ON_POLICY):
        student = load_model(setting.model)
        student = fit(setting, f"{name}: start", student, worked(student, taught[: sizes.seen]), LEARNING)
        if START not in scores:
            scores[START] = graded(student, tested)
        rows = tokenize_rows(student.tokenizer, answers)
        if name == OFFLINE:
            student = fit(setting, name, student, rows, further)
        else:
            student = _on_policy(setting, student, teacher, rows, asked, further)
        scores[name] = graded(student, tested)
        detach_lora(student.model)
    detach_lora(teacher.model)
    arms = tuple(Arm(name, scores[name]) for name in (TEACHER, START, OFFLINE, ON_POLICY))
    return setting.conclude(
        "on-policy",
        CLAIMS,
        arms,
        unit=GREEDY,
        settings={
            "sums the teacher saw": sizes.taught,
            "the student": sizes.seen,
            "steps": sizes.steps,
            "share of own answers": _SHARE,
            "divergence": "reverse KL",
        },
    )


def _on_policy(
    setting: Setting,
    student: LoadedModel,
    teacher: LoadedModel,
    rows: list[TrainRow],
    asked: list[Sum],
    config: TrainConfig,
) -> LoadedModel:
    chat = Chat(student.tokenizer)
    prompts = {chat.prompt(messages(one.problem)).ids: messages(one.problem) for one in asked}
    known = {ids: Asked(told, ids) for ids, told in prompts.items()}
    longest = max(row.length - len(row.prompt) for row in rows)
    own = OnPolicy(known, _plain(teacher), share=_SHARE, max_tokens=longest, seed=setting.seed)
    setting.say(f"on policy: {config.max_steps} steps")
    return train(student, rows, config, objective=Divergence(1.0), refresh=own).loaded


def _plain(teacher: LoadedModel) -> LoadedModel:
    """Return the tuned teacher without peft's wrapper; its layers stay."""

    return replace(teacher, model=cast(Any, teacher.model).get_base_model())
