"""A small model that learns to write worked sums: what reproductions of reasoning methods start from.

Sums are made by seed and every step of them can be checked, so that labels are exact and the model's start is neither
hopeless nor perfect: on a sum of a few operations it slips now and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from limbeck.engine.requests import GenerateRequest, Message
from limbeck.engine.torch_engine import TorchEngine
from limbeck.finetune.loop import Progress, TrainConfig, train
from limbeck.finetune.rows import PlainRow, TrainRow, tokenize_rows
from limbeck.reproduce.setting import Setting
from limbeck.sums import Sum, answer_of

if TYPE_CHECKING:
    from limbeck.engine.loading import LoadedModel
    from limbeck.finetune.objectives import Objective

GREEDY = "share of sums answered rightly, greedy"
INSTRUCTIONS = "Solve the problem step by step."
# With 200 sums of three operations and this the embedded model answers a third of new ones rightly, and one of eight
# samples is right for two thirds: there is something to choose and something to gain.
OPERATIONS, LARGEST = 3, 50
LEARNING = TrainConfig(lr=1e-3, epochs=3, batch_size=8)
# Tokens of a solution beyond those of the longest right one, and lines of progress a training run.
_ROOM, _LINES = 16, 4


def messages(problem: str) -> tuple[Message, ...]:
    """Return a problem's prompt."""
    return (("system", INSTRUCTIONS), ("user", problem))


def row_of(problem: str, *solutions: Sequence[str]) -> PlainRow:
    """Return the row of a problem: its solution, one step a line; of two the first is the better one."""
    texts = ["\n".join(steps) for steps in solutions]
    return PlainRow(messages(problem), tuple((text, float(place == 0)) for place, text in enumerate(texts)))


def worked(loaded: LoadedModel, sums: Sequence[Sum]) -> list[TrainRow]:
    """Return the sums with their right solutions as training rows."""
    return tokenize_rows(loaded.tokenizer, [row_of(one.problem, one.steps) for one in sums])


def fit(
    setting: Setting,
    what: str,
    loaded: LoadedModel,
    rows: Sequence[TrainRow],
    config: TrainConfig,
    objective: Objective | None = None,
) -> LoadedModel:
    """Train on the rows and return the model with its layers; tells the loss now and then."""

    def show(progress: Progress) -> None:
        if progress.step % max(1, progress.total // _LINES) == 0:
            setting.say(f"{what}: step {progress.step}/{progress.total}, loss {progress.loss:.2f}")

    return train(loaded, rows, replace(config, seed=setting.seed), progress=show, objective=objective).loaded


def sample(
    loaded: LoadedModel, sums: Sequence[Sum], n: int, *, temperature: float = 0.8, seed: int = 0
) -> list[list[tuple[str, ...]]]:
    """Return `n` written solutions of every sum, each the lines that the model wrote; temperature 0 is greedy."""
    asked = [messages(one.problem) for one in sums for _ in range(n)]
    like = ["\n".join(one.steps) for one in sums]
    texts = [lines(text) for text in write(loaded, asked, like, temperature=temperature, seed=seed)]
    return [texts[start : start + n] for start in range(0, len(texts), n)]


def write(
    loaded: LoadedModel, asked: Sequence[tuple[Message, ...]], like: Sequence[str], *, temperature: float, seed: int = 0
) -> list[str]:
    """Return what the model writes for each prompt, of few tokens more than the longest of the texts `like` has.

    Temperature 0 is greedy, above it every place has a seed of its own.
    """
    engine = TorchEngine(loaded)
    most = max(map(len, engine.chat.many_ids(like))) + _ROOM
    requests = [
        GenerateRequest(prompt, max_tokens=most, temperature=temperature, seed=(seed * 1_000_003 + place) % 2**31)
        for place, prompt in enumerate(asked)
    ]
    try:
        return [one.text for one in engine.generate_many(requests)]
    finally:
        engine.close()


def lines(text: str) -> tuple[str, ...]:
    """Return a text's lines, blank ones left out.

    >>> lines("1 + 1 = 2\\n\\n The answer is 2.")
    ('1 + 1 = 2', 'The answer is 2.')
    """
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def is_right(one: Sum, steps: Sequence[str]) -> bool:
    """Return whether a written solution ends in the right answer."""
    return answer_of(steps) == one.answer


def graded(loaded: LoadedModel, sums: Sequence[Sum]) -> tuple[float, ...]:
    """Return for every sum whether the model's greedy solution ends right, 1 or 0."""
    written = sample(loaded, sums, 1, temperature=0.0)
    return tuple(float(is_right(one, steps)) for one, (steps,) in zip(sums, written, strict=True))
