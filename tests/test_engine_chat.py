# pyright: reportUnknownMemberType=false, reportPrivateUsage=false
from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.engine import LoadedModel
from limbeck.engine.chat import Chat, common_length

SYSTEM = ("system", "label the text")


@pytest.fixture(scope="session")
def chat(tiny_llama: LoadedModel) -> Chat:
    return Chat(tiny_llama.tokenizer)


def test_what_every_prompt_shares_is_found(chat: Chat):
    left = chat.prompt((SYSTEM, ("user", "win a prize")))
    right = chat.prompt((SYSTEM, ("user", "see you at five")))
    assert left.shared == right.shared == len(chat.ids(chat.render([SYSTEM], open_turn=False))) + 3
    assert left.ids[: left.shared] == right.ids[: right.shared]


@given(content=st.text(max_size=40))
def test_the_prompt_is_the_whole_text_tokenized_once(chat: Chat, content: str):
    messages = (SYSTEM, ("user", content))
    prompt = chat.prompt(messages)
    assert prompt.ids == chat.ids(chat.render(messages))
    assert 0 <= prompt.shared < len(prompt.ids)


def test_the_end_of_turn_is_what_the_template_writes(chat: Chat, tiny_llama: LoadedModel):
    assert chat.end_of_turn == tiny_llama.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_the_embedded_models_end_of_turn(embedded: LoadedModel):
    chat = Chat(embedded.tokenizer)
    tokenizer: Any = embedded.tokenizer
    assert tokenizer.convert_ids_to_tokens(chat.end_of_turn) == "<|im_end|>"
    assert chat.stop_ids == {chat.end_of_turn}


def test_a_model_without_a_template_still_gets_the_contents(fresh_tiny: LoadedModel):
    fresh_tiny.tokenizer.chat_template = None
    chat = Chat(fresh_tiny.tokenizer)
    assert chat.render((SYSTEM, ("user", "hi"))) == "label the text\n\nhi\n\n"
    assert chat.end_of_turn == fresh_tiny.tokenizer.eos_token_id


@given(texts=st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_tokens_give_the_text_back(chat: Chat, texts: list[str]):
    assert [chat.text(row) for row in chat.many_ids(texts)] == texts


@given(shared=st.lists(st.integers()), left=st.lists(st.integers()), right=st.lists(st.integers()))
def test_common_length_is_the_longest_common_start(shared: list[int], left: list[int], right: list[int]):
    a, b = shared + left, shared + right
    n = common_length(a, b)
    assert n >= len(shared)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]
