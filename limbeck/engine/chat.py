"""Chat messages to tokens: the prompt, the part of it that other calls share, and the end of a turn.

Text is always tokenized whole and the shared part found in its tokens, so that no cut can change a token.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from limbeck.engine.requests import Message

# Two contents that share no first character: what their prompts share is what every content's prompt shares.
_PROBES = ("0", "x")


@dataclass(frozen=True)
class Prompt:
    """A prompt's token ids; the first `shared` of them do not depend on the last message."""

    ids: tuple[int, ...]
    shared: int


class Chat:
    """A tokenizer's chat template with its end of turn; templates are rendered once per shared part.

    >>> # Chat(loaded.tokenizer).prompt((("user", "Hello"),)).ids
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        # Fast tokenizers raise "Already borrowed" when two threads use one.
        self._lock = threading.Lock()
        self._has_template = bool(getattr(tokenizer, "chat_template", None))
        self._shared_ids = lru_cache(maxsize=256)(self._find_shared_ids)
        self.end_of_turn = self._find_end_of_turn()
        eos = cast("int | None", self._tokenizer.eos_token_id)
        self.stop_ids = frozenset({self.end_of_turn} if eos is None else {self.end_of_turn, eos})

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a bare text, without special tokens around it."""
        return self.many_ids([text])[0]

    def many_ids(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens of bare texts; one call for all is much faster than one each."""
        with self._lock:
            rows = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [tuple(row) for row in rows]

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out, blanks as they are."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def render(self, messages: Sequence[Message], *, open_turn: bool = True) -> str:
        """Return the prompt's text; `open_turn` opens the assistant's turn at its end."""
        if not self._has_template:
            return "".join(f"{content}\n\n" for _, content in messages)
        turns = [{"role": role, "content": content} for role, content in messages]
        return self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=open_turn)

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """Return the prompt's tokens up to the opened assistant turn."""
        ids = self.ids(self.render(messages))
        shared = self._shared_ids(tuple(messages[:-1]), messages[-1][0])
        # At least one token stays outside: a tail is what gives the next token's logits.
        return Prompt(ids, min(common_length(ids, shared), len(ids) - 1))

    def _find_shared_ids(self, before: tuple[Message, ...], role: str) -> tuple[int, ...]:
        left, right = (self.ids(self.render([*before, (role, probe)])) for probe in _PROBES)
        return left[: common_length(left, right)]

    def _find_end_of_turn(self) -> int:
        marker = "\u2042limbeck\u2042"
        if self._has_template:
            turns = [("user", "x"), ("assistant", marker)]
            after = self.ids(self.render(turns, open_turn=False).split(marker, 1)[-1])
            if after:
                return after[0]
        return cast(int, self._tokenizer.eos_token_id)


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many tokens two sequences share from the start.

    >>> common_length((1, 2, 3), (1, 2, 4))
    2
    """
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))
