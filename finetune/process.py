"""Process and outcome reward models on a causal base: a verdict token after every step, or after the last one alone.

Lightman et al. 2023 (arXiv:2305.20050): a model is trained to say after each step whether it is right, up to and
including the first error; a solution's score is the product of these probabilities. Math-Shepherd (Wang et al. 2023,
arXiv:2312.08935) scores by the least of them. The verdicts of a solution are one training row, whose trie forwards the
solution's tokens once; no verdict is a part of what later steps see. Train with `loop.train` and `objective=verdicts`.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from limbeck.engine.chat import Chat
from limbeck.engine.compute import on_compute_thread
from limbeck.errors import InputError
from limbeck.finetune.adapters import base_of
from limbeck.finetune.loop import context_tokens
from limbeck.finetune.rows import TrainRow, check_lengths
from limbeck.finetune.step import read_rows
from limbeck.steps import RIGHT, WRONG

if TYPE_CHECKING:
    from limbeck.engine.loading import LoadedModel
    from limbeck.engine.requests import Message
    from limbeck.finetune.objectives import Branches
    from limbeck.programs.best_of_n import Candidate
    from limbeck.steps import Solution

Reduce = Literal["product", "min"]
_INSTRUCTIONS = "Solve the problem step by step."


@dataclass(frozen=True)
class Verdicts:
    """How a model is asked: one token each for right and wrong, and what stands before the problem ("" for nothing)."""

    positive: str = "+"
    negative: str = "-"
    instructions: str = _INSTRUCTIONS

    def messages(self, problem: str) -> tuple[Message, ...]:
        """Return the prompt of a problem; the solution is the assistant's turn."""
        system: tuple[Message, ...] = (("system", self.instructions),) if self.instructions else ()
        return (*system, ("user", problem))


def verdicts(row: Branches) -> torch.Tensor:
    """Return the summed cross-entropy of a row's verdicts, each a softmax over its two tokens."""
    pairs = row.logprobs.view(-1, 2)
    return -(row.masses.view(-1, 2) * torch.log_softmax(pairs, dim=1)).sum()


class StepEncoder:
    """Makes rows of problems and their steps: every step is tokenized on its own and ends with its line.

    Raises InputError where a verdict is not one token of the model, or both are the same.
    """

    def __init__(self, tokenizer: Any, form: Verdicts | None = None) -> None:
        self.form, self.chat = form or Verdicts(), Chat(tokenizer)
        found = self.chat.many_ids([self.form.positive, self.form.negative])
        if any(len(ids) != 1 for ids in found) or found[0] == found[1]:
            raise InputError(
                f"the verdicts {self.form.positive!r} and {self.form.negative!r} are the tokens {found}",
                valid="two different tokens, such as '+' and '-'",
            )
        self.tokens = (found[0][0], found[1][0])

    def prompt(self, problem: str) -> tuple[int, ...]:
        """Return a problem's tokens up to the opened turn."""
        return self.chat.prompt(self.form.messages(problem)).ids

    def row(self, problem: str, steps: Sequence[str], targets: Sequence[tuple[int, float]]) -> TrainRow:
        """Return the row that asks for a verdict after each (place of a step, probability of being right).

        Two branches a verdict, the positive one first, both behind the same given tokens.
        """
        solution: list[int] = []
        ends: list[int] = []
        for ids in self.chat.many_ids([f"{step.strip()}\n" for step in steps[: targets[-1][0] + 1]]):
            solution += ids
            ends.append(len(solution))
        positive, negative = self.tokens
        branches = tuple(
            ((*solution[: ends[place]], token), mass)
            for place, right in targets
            for token, mass in ((positive, right), (negative, 1 - right))
        )
        return TrainRow(self.prompt(problem), branches, given=tuple(len(tokens) - 1 for tokens, _ in branches))


def process_rows(
    encoder: StepEncoder, solutions: Iterable[Solution], *, neutral: float | None = 1.0, soft: bool = True
) -> list[TrainRow]:
    """Return one row a solution of which a step is labelled, up to and including the first error.

    `neutral` is the probability of being right that a neutral rating stands for, None to pass it over; `soft` labels
    stand before ratings. `readable_rows` leaves out those longer than a model's context.
    """
    found = ((one, one.targets(neutral=neutral, soft=soft)) for one in solutions)
    return [encoder.row(one.problem, one.steps, targets) for one, targets in found if targets]


def outcome_rows(encoder: StepEncoder, solutions: Iterable[Solution]) -> list[TrainRow]:
    """Return one row a solution whose answer is known to be right or wrong: a verdict after its last step.

    `readable_rows` leaves out those longer than a model's context.
    """
    return [
        encoder.row(one.problem, one.steps, [(len(one.steps) - 1, float(one.right))])
        for one in solutions
        if one.right is not None
    ]


@dataclass(frozen=True)
class ReadableRows:
    """Rows that a model can read, and how many are longer than its context."""

    rows: tuple[TrainRow, ...]
    too_long: int


def readable_rows(loaded: LoadedModel, rows: Sequence[TrainRow]) -> ReadableRows:
    """Return the rows of verdicts without those longer than the model's context, which are counted."""
    limit = context_tokens(loaded)
    found = tuple(row for row in rows if row.length <= limit)
    return ReadableRows(found, len(rows) - len(found))


def solution_score(probabilities: Sequence[float], reduce: Reduce = "product") -> float:
    """Return a solution's score from its steps' probabilities, 0 without any.

    >>> solution_score([0.5, 0.9]), solution_score([0.5, 0.9], "min"), solution_score([])
    (0.45, 0.5, 0.0)
    """
    if not probabilities:
        return 0.0
    return math.prod(probabilities) if reduce == "product" else min(probabilities)


@dataclass(frozen=True)
class RewardModel:
    """A trained model that reads solutions; it was asked in the form that the `encoder` has."""

    loaded: LoadedModel
    encoder: StepEncoder

    def __deepcopy__(self, memo: dict[int, Any]) -> RewardModel:
        # DSPy deep-copies programs with the rankers they hold; weights exist once.
        return self

    def steps(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[tuple[float, ...]]:
        """Return the probability of being right of every step, of each (problem, steps).

        Solutions of one problem share its forward pass. Raises InputError for a solution without steps or longer than
        the context.
        """
        return self._read(asked, every=True)

    def outcomes(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[float]:
        """Return the probability after the last step: that the answer is right, of a model trained on outcomes."""
        return [last for (last,) in self._read(asked, every=False)]

    def fits(self, problem: str, steps: Sequence[str]) -> bool:
        """Return whether a solution has steps and no more tokens than the model's context."""
        return bool(steps) and self._row(problem, steps, every=False).length <= context_tokens(self.loaded)

    def _row(self, problem: str, steps: Sequence[str], every: bool) -> TrainRow:
        if not steps:
            raise InputError("a solution without steps", valid="one step or more")
        places = range(len(steps)) if every else [len(steps) - 1]
        return self.encoder.row(problem, steps, [(place, 0.5) for place in places])

    def _read(self, asked: Sequence[tuple[str, Sequence[str]]], *, every: bool) -> list[tuple[float, ...]]:
        if not asked:
            return []
        rows = [self._row(problem, steps, every) for problem, steps in asked]
        check_lengths(rows, context_tokens(self.loaded))
        return on_compute_thread(read_rows, base_of(self.loaded.model), rows, _positives)


def _positives(row: Branches) -> tuple[float, ...]:
    return tuple(torch.softmax(row.logprobs.view(-1, 2), dim=1)[:, 0].tolist())


def predicted(solution: Solution, probabilities: Sequence[float], threshold: float = 0.5) -> Solution:
    """Return a solution with a model's probabilities as its soft labels, and ratings of wrong below the threshold."""
    ratings = tuple(RIGHT if p >= threshold else WRONG for p in probabilities)
    return replace(solution, ratings=ratings, soft=tuple(probabilities))


@dataclass(frozen=True)
class ProcessRanker:
    """Ranks candidates by a process reward model: the product of its steps' probabilities, or the least of them.

    `problem` is the input that holds the problem. A candidate without steps, or too long to read, scores 0.
    """

    model: RewardModel
    problem: str = "problem"
    reduce: Reduce = "product"

    def __call__(self, inputs: Mapping[str, Any], candidates: Sequence[Candidate]) -> list[float]:
        """Return one score a candidate, 0 to 1."""
        asked = _readable(self.model, str(inputs[self.problem]), candidates)
        found = dict(zip(asked, self.model.steps(list(asked.values())), strict=True))
        return [solution_score(found.get(place, ()), self.reduce) for place in range(len(candidates))]


@dataclass(frozen=True)
class OutcomeRanker:
    """Ranks candidates by an outcome reward model; one without steps, or too long to read, scores 0."""

    model: RewardModel
    problem: str = "problem"

    def __call__(self, inputs: Mapping[str, Any], candidates: Sequence[Candidate]) -> list[float]:
        """Return one score a candidate, 0 to 1."""
        asked = _readable(self.model, str(inputs[self.problem]), candidates)
        found = dict(zip(asked, self.model.outcomes(list(asked.values())), strict=True))
        return [found.get(place, 0.0) for place in range(len(candidates))]


def _readable(
    model: RewardModel, problem: str, candidates: Sequence[Candidate]
) -> dict[int, tuple[str, tuple[str, ...]]]:
    return {i: (problem, one.steps) for i, one in enumerate(candidates) if model.fits(problem, one.steps)}
