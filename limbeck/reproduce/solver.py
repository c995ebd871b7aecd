"""A small model that learns to write worked sums: what reproductions of reasoning methods start from.

Sums are made by seed and every step of them can be checked, so that labels are exact and the model's start is neither
hopeless nor perfect: on a sum of a few operations it slips now and then.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from limbeck.engine.requests import GenerateRequest, Message
from limbeck.engine.torch_engine import TorchEngine
from limbeck.finetune.loop import Progress, TrainConfig, train
from limbeck.finetune.rows import TrainRow, tokenize_rows
from limbeck.reproduce.setting import Setting
from limbeck.sums import Sum, answer_of

if TYPE_CHECKING:
    from limbeck.engine.loading import LoadedModel

INSTRUCTIONS = "Solve the problem step by step."
_ROOM = 16
# Lines of progress a training run.
_LINES = 4


@dataclass(frozen=True)
class Worked:
    """A sum with a written solution, as a training row renders it."""

    problem: str
    steps: tuple[str, ...]
    weight: float = 1.0

    @property
    def messages(self) -> tuple[Message, ...]:
        """The prompt."""
        return messages(self.problem)

    @property
    def completions(self) -> tuple[tuple[str, float], ...]:
        """The solution, one step a line."""
        return (("\n".join(self.steps), 1.0),)


def messages(problem: str) -> tuple[Message, ...]:
    """Return a problem's prompt."""
    return (("system", INSTRUCTIONS), ("user", problem))


def rows_of(loaded: LoadedModel, solutions: Sequence[Worked]) -> list[TrainRow]:
    """Return one training row a solution."""
    return tokenize_rows(loaded.tokenizer, solutions)


def fit(
    setting: Setting, what: str, loaded: LoadedModel, rows: Sequence[TrainRow], config: TrainConfig, **options: object
) -> LoadedModel:
    """Train on the rows and return the model with its layers; tells the loss now and then."""

    def show(progress: Progress) -> None:
        if progress.step % max(1, progress.total // _LINES) == 0:
            setting.say(f"{what}: step {progress.step}/{progress.total}, loss {progress.loss:.2f}")

    return train(loaded, rows, replace(config, seed=setting.seed), progress=show, **options).loaded  # pyright: ignore[reportArgumentType]


def sample(
    loaded: LoadedModel, sums: Sequence[Sum], n: int, *, temperature: float = 0.8, seed: int = 0
) -> list[list[tuple[str, ...]]]:
    """Return `n` written solutions of every sum, each the lines that the model wrote; 1 greedy one at temperature 0."""
    engine = TorchEngine(loaded)
    longest = max(len(engine.chat.ids("\n".join(one.steps))) for one in sums)
    asked = [
        GenerateRequest(
            messages(one.problem),
            max_tokens=longest + _ROOM,
            temperature=temperature,
            seed=(seed * 1_000_003 + place * n + draw) % 2**31,
        )
        for place, one in enumerate(sums)
        for draw in range(n)
    ]
    try:
        texts = [lines(one.text) for one in engine.generate_many(asked)]
    finally:
        engine.close()
    return [texts[start : start + n] for start in range(0, len(texts), n)]


def lines(text: str) -> tuple[str, ...]:
    """Return a text's lines, blank ones left out.

    >>> lines("1 + 1 = 2\\n\\n The answer is 2.")
    ('1 + 1 = 2', 'The answer is 2.')
    """
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def is_right(one: Sum, steps: Sequence[str]) -> bool:
    """Return whether a written solution ends in the right answer."""
    return answer_of(steps) == one.answer


def worked(sums: Sequence[Sum]) -> list[Worked]:
    """Return the sums with their right solutions."""
    return [Worked(one.problem, one.steps) for one in sums]


def graded(loaded: LoadedModel, sums: Sequence[Sum]) -> tuple[float, ...]:
    """Return for every sum whether the model's greedy solution ends right, 1 or 0."""
    return tuple(
        float(is_right(one, steps))
        for one, (steps,) in zip(sums, sample(loaded, sums, 1, temperature=0.0), strict=True)
    )
