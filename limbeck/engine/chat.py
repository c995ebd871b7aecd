"""Chat messages to tokens: the prompt, the part of it that other calls share, and the end of a turn.

The shared part is found in a whole text's tokens, so that no cut can change one; it is tokenized once where an end of a
turn parts it from the rest.
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


@dataclass(frozen=True)
class _Opening:
    """What prompts of the same messages but the last begin with: `text` and its `ids`, to which theirs are added.

    `shared` are all their common tokens, `text` is empty where nothing parts it from what follows.
    """

    text: str
    ids: tuple[int, ...]
    shared: tuple[int, ...]


class Chat:
    """A tokenizer's chat template with its end of turn; templates are rendered once per shared part.

    >>> # Chat(loaded.tokenizer).prompt((("user", "Hello"),)).ids
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        # Fast tokenizers raise "Already borrowed" when two threads use one.
        self._lock = threading.Lock()
        self._has_template = bool(getattr(tokenizer, "chat_template", None))
        self._opening = lru_cache(maxsize=256)(self._find_opening)
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
        text, opening = self.render(messages), self._opening(tuple(messages[:-1]), messages[-1][0])
        known = opening.text if text.startswith(opening.text) else ""
        ids = (opening.ids if known else ()) + self.ids(text[len(known) :])
        # At least one token stays outside: a tail is what gives the next token's logits.
        return Prompt(ids, min(common_length(ids, opening.shared), len(ids) - 1))

    def _find_opening(self, before: tuple[Message, ...], role: str) -> _Opening:
        texts = [self.render([*before, (role, probe)]) for probe in _PROBES]
        left, right = self.many_ids(texts)
        shared = left[: common_length(left, right)]
        mark, common = self._tokenizer.convert_ids_to_tokens(self.end_of_turn), texts[0][: common_length(*texts)]
        start = common[: at + len(mark)] if mark and (at := common.rfind(mark)) >= 0 else ""
        ids = self.ids(start) if start else ()
        apart = [ids + rest for rest in self.many_ids([text[len(start) :] for text in texts])] == [left, right]
        return _Opening(start, ids, shared) if apart else _Opening("", (), shared)

    def _find_end_of_turn(self) -> int:
        marker = "\u2042limbeck\u2042"
        if self._has_template:
            turns = [("user", "x"), ("assistant", marker)]
            after = self.ids(self.render(turns, open_turn=False).split(marker, 1)[-1])
            if after:
                return after[0]
        return cast(int, self._tokenizer.eos_token_id)


def common_length(left: Sequence[object], right: Sequence[object]) -> int:
    """Return how many items two sequences share from the start.

    >>> common_length((1, 2, 3), (1, 2, 4))
    2
    """
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))
