"""Training rows: token ids of a prompt and of its possible completions, each with its target mass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from limbeck.engine.chat import Chat
from limbeck.engine.requests import Message
from limbeck.engine.scoring import end_begun_turns
from limbeck.errors import InputError

Branch = tuple[tuple[int, ...], float]


@dataclass(frozen=True)
class TrainRow:
    """One example: `prompt` token ids and `branches`, pairs of completion token ids and target mass.

    A hard label is one branch of mass 1; a distribution over labels is one branch a label. Completions
    include the end of the turn. `weight` scales the row against the others of its optimizer step.

    `given` says how many leading tokens of each branch are read and not scored (empty: none), so that one row can
    ask for a verdict after every step of a solution. `reference` are another model's log-probabilities of the branches,
    `teacher` its distributions at every scored token: a tensor [tokens, W] of log-probabilities of the first W tokens
    of the vocabulary. Only some objectives read them.

    >>> TrainRow(prompt=(1, 2, 3), branches=(((7, 2), 0.9), ((8, 2), 0.1))).length
    5
    """

    prompt: tuple[int, ...]
    branches: tuple[Branch, ...]
    weight: float = 1.0
    given: tuple[int, ...] = ()
    reference: tuple[float, ...] = ()
    teacher: Any = field(default=None, compare=False, repr=False)

    @property
    def length(self) -> int:
        """Tokens of the prompt and of the longest completion."""
        return len(self.prompt) + max(len(tokens) for tokens, _ in self.branches)


class RenderedRow(Protocol):
    """What `tokenize_rows` reads: (role, content) messages and (assistant text, target mass) completions."""

    @property
    def messages(self) -> Sequence[tuple[str, str]]:
        """The prompt, without the assistant's answer."""
        ...

    @property
    def completions(self) -> Sequence[tuple[str, float]]:
        """The assistant's possible answers and their target masses."""
        ...

    @property
    def weight(self) -> float:
        """The row's weight in its optimizer step."""
        ...


@dataclass(frozen=True)
class PlainRow:
    """A rendered row as a value."""

    messages: tuple[Message, ...]
    completions: tuple[tuple[str, float], ...]
    weight: float = 1.0


def tokenize_rows(tokenizer: Any, rendered: Iterable[RenderedRow], *, closed: bool = False) -> list[TrainRow]:
    """Return one `TrainRow` a rendered row, in order.

    Tokens are the engine's: the prompt up to the opened turn, every completion tokenized whole and apart from
    it, then the end of the turn; in a `closed` set only after a completion that another one goes on from, as the
    engine scores it. Masses of a row are scaled to sum 1. Raises `InputError` for a row without mass.
    """
    chat, rows = Chat(tokenizer), list[TrainRow]()
    for number, item in enumerate(rendered):
        total = sum(mass for _, mass in item.completions)
        if total <= 0:
            raise InputError(f"training row {number} has no completion with a positive mass")
        texts = chat.many_ids([text for text, _ in item.completions])
        whole = end_begun_turns(texts, chat.end_of_turn) if closed else [(*one, chat.end_of_turn) for one in texts]
        branches = tuple((tokens, mass / total) for tokens, (_, mass) in zip(whole, item.completions, strict=True))
        rows.append(TrainRow(chat.prompt(tuple(item.messages)).ids, branches, item.weight))
    return rows


def check_lengths(rows: Sequence[TrainRow], limit: int) -> None:
    """Raise `InputError` naming the first row longer than the model's context of `limit` tokens."""
    if not rows:
        raise InputError("no training rows", valid="at least one row")
    for number, row in enumerate(rows):
        if not row.prompt or not row.branches or not all(tokens for tokens, _ in row.branches):
            raise InputError(f"training row {number} has an empty prompt or completion")
        if row.given and any(n >= len(tokens) for n, (tokens, _) in zip(row.given, row.branches, strict=True)):
            raise InputError(f"training row {number} has a completion of which no token is scored")
        if row.length > limit:
            raise InputError(
                f"training row {number} has {row.length} tokens, the model's context holds {limit}",
                valid="shorter inputs or fewer demonstrations",
            )
