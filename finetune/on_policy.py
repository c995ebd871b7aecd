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
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from limbeck.engine.compute import on_compute_thread
from limbeck.engine.requests import GenerateRequest, Message
from limbeck.engine.seq2seq import engine_of
from limbeck.errors import InputError
from limbeck.finetune.adapters import base_of
from limbeck.finetune.loop import context_tokens
from limbeck.finetune.rows import TrainRow, check_lengths
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

    `asked` maps a row's prompt tokens to how both are asked. `teacher` None is the student's own base, the adapter off;
    so is a teacher whose model is that base, for training lays the adapter into it.
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

        The first step raises InputError for a teacher with another vocabulary, one that is the student itself, and
        prompts that leave no room for answers of `max_tokens` in the teacher's context; every step for rows that the
        teacher cannot read, or whose prompt is not among those asked.
        """
        if step == 0:
            self._check(student)
        limit = context_tokens(self.teacher or student)
        check_lengths([self._as_teacher(row) for row in rows], limit)
        draws = random.Random(f"{self.seed} {step}")
        own = [place for place in range(len(rows)) if draws.random() < self.share]
        given = list(rows)
        for place, row in zip(own, self._answered(draws, [rows[place] for place in own], student), strict=True):
            given[place] = row
        return on_compute_thread(self._scored, given, student)

    def _check(self, student: LoadedModel) -> None:
        if self.teacher is not None:
            if self.teacher.model is student.model:
                raise InputError(f"{student.name} is its own teacher", valid="a teacher loaded for itself, or none")
            check_vocabulary(student, self.teacher)
        limit, room = context_tokens(self.teacher or student), self.max_tokens if self.share else 0
        longest = max((len(one.teacher) for one in self.asked.values()), default=0)
        if longest + room > limit:
            raise InputError(
                f"a teacher's prompt of {longest} tokens and an answer of {room}, its context holds {limit}",
                valid="shorter prompts or a smaller max_tokens",
            )

    def _asked(self, row: TrainRow) -> Asked:
        try:
            return self.asked[row.prompt]
        except KeyError:
            raise InputError(
                f"a training row's prompt of {len(row.prompt)} tokens is not among those asked",
                valid="an Asked for every row's prompt",
            ) from None

    def _as_teacher(self, row: TrainRow) -> TrainRow:
        return replace(row, prompt=self._asked(row).teacher)

    def _answered(self, draws: random.Random, rows: Sequence[TrainRow], student: LoadedModel) -> list[TrainRow]:
        """Return the rows with answers that the student draws."""
        if not rows:
            return []
        engine = engine_of(student)
        try:
            drawn = engine.generate_many(
                [
                    GenerateRequest(
                        self._asked(row).messages,
                        max_tokens=self.max_tokens,
                        temperature=self.temperature,
                        seed=draws.randrange(2**31),
                    )
                    for row in rows
                ]
            )
        finally:
            engine.close()
        # The tokens as they were drawn: their text may be tokenized otherwise.
        return [replace(row, branches=((one.ids, 1.0),), given=()) for row, one in zip(rows, drawn, strict=True)]

    def _scored(self, rows: Sequence[TrainRow], student: LoadedModel) -> list[TrainRow]:
        """Return the rows with the teacher's log-probabilities [tokens, W] of the tokenizer's W tokens."""
        base = base_of(student.model)
        model = base if self.teacher is None else base_of(self.teacher.model)
        seen = [self._as_teacher(row) for row in rows]
        tokens = len(cast(Any, student.tokenizer))
        with cast(Any, student.model).disable_adapter() if model is base else nullcontext():
            found = read_rows(model, seen, partial(_distributions, tokens))
        return [replace(row, teacher=one) for row, one in zip(rows, found, strict=True)]


def _distributions(tokens: int, row: Branches) -> torch.Tensor:
    return row.over(tokens)
