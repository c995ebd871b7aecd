"""On-policy distillation (Agarwal et al. 2023, GKD): the student answers, an open teacher scores every token.

Needs a teacher with the student's vocabulary. It may be another model, or the student's own base with a longer prompt
(demonstrations that the student does not see).
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch

from limbeck.engine.compute import on_compute_thread
from limbeck.engine.requests import GenerateRequest, Message
from limbeck.engine.seq2seq import engine_of
from limbeck.errors import InputError
from limbeck.finetune.rows import TrainRow
from limbeck.finetune.step import read_rows

if TYPE_CHECKING:
    from limbeck.engine.loading import LoadedModel
    from limbeck.finetune.objectives import Branches


@dataclass(frozen=True)
class Asked:
    """One prompt, as the student is asked and as the teacher is: `teacher` are the teacher's prompt tokens."""

    messages: tuple[Message, ...]
    teacher: tuple[int, ...]


def check_vocabulary(student: LoadedModel, teacher: LoadedModel) -> None:
    """Raise InputError where the teacher's tokens are not the student's: its scores would mean other texts."""
    ours, theirs = (cast(Any, one.tokenizer).get_vocab() for one in (student, teacher))
    different = [token for token in ours if theirs.get(token) != ours[token]]
    if different or len(ours) != len(theirs):
        shown = ", ".join(map(repr, sorted(different)[:3])) or f"{len(theirs)} tokens beside {len(ours)}"
        raise InputError(
            f"{teacher.name} has another vocabulary than {student.name}: {shown}",
            valid="a teacher of the student's family, whose tokenizer is the same",
            hint="distil from its answers instead: limbeck run --teacher",
        )


@dataclass(frozen=True)
class OnPolicy:
    """Replaces a share of every step's answers by the student's own and adds the teacher's distributions.

    `asked` maps a row's prompt tokens to how both are asked. `teacher` None is the student's own base, the adapter off.
    `share` is the probability that a row's answer is the student's (the paper: 0.5; 0.25 or more is needed). Train with
    `objectives.Divergence`.
    """

    asked: Mapping[tuple[int, ...], Asked]
    teacher: LoadedModel | None = None
    share: float = 0.5
    max_tokens: int = 64
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InputError(f"share={self.share:g}", valid="0 (given answers alone) to 1 (the student's alone)")

    def __call__(self, step: int, total: int, rows: Sequence[TrainRow], student: LoadedModel) -> Sequence[TrainRow]:
        """Return the rows with the step's answers and the teacher's distributions at their tokens.

        The first step raises InputError for a teacher with another vocabulary.
        """
        if self.teacher is not None and step == 0:
            check_vocabulary(student, self.teacher)
        draws = random.Random(f"{self.seed} {step}")
        own = [place for place in range(len(rows)) if draws.random() < self.share]
        given = list(rows)
        for place, row in zip(own, self._answered(draws, [rows[place] for place in own], student), strict=True):
            given[place] = row
        return on_compute_thread(self._scored, given, student)

    def _answered(self, draws: random.Random, rows: Sequence[TrainRow], student: LoadedModel) -> list[TrainRow]:
        """Return the rows with answers that the student draws."""
        if not rows:
            return []
        engine = engine_of(student)
        try:
            drawn = engine.generate_many(
                [
                    GenerateRequest(
                        self.asked[row.prompt].messages,
                        max_tokens=self.max_tokens,
                        temperature=self.temperature,
                        seed=draws.randrange(2**31),
                    )
                    for row in rows
                ]
            )
        finally:
            engine.close()
        chat = engine.chat
        answers = [(*chat.ids(one.text), *([chat.end_of_turn] * (one.finish_reason == "stop"))) for one in drawn]
        return [
            replace(row, branches=((answer or (chat.end_of_turn,), 1.0),), given=())
            for row, answer in zip(rows, answers, strict=True)
        ]

    def _scored(self, rows: Sequence[TrainRow], student: LoadedModel) -> list[TrainRow]:
        """Return the rows with the teacher's log-probabilities [tokens, V]."""
        peft: Any = student.model
        model = peft.get_base_model() if self.teacher is None else self.teacher.model
        seen = [replace(row, prompt=self.asked[row.prompt].teacher) for row in rows]
        with peft.disable_adapter() if self.teacher is None else nullcontext():
            found = read_rows(model, seen, _distributions)
        return [replace(row, teacher=one) for row, one in zip(rows, found, strict=True)]


def _distributions(row: Branches) -> torch.Tensor:
    return row.vocabulary.clone()
