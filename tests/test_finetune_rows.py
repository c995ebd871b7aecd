"""Training rows carry the tokens that the engine scores and generates."""

from __future__ import annotations

import pytest

from limbeck.engine import LoadedModel
from limbeck.engine.chat import Chat
from limbeck.engine.scoring import make_trie
from limbeck.errors import InputError
from limbeck.finetune.rows import TrainRow, check_lengths, tokenize_rows
from limbeck.models.adapter import Rendered

MESSAGES = (("system", "Name the topic."), ("user", "text: a card was lost"))


def test_prompt_and_completions_are_the_engines_tokens(tiny_llama: LoadedModel) -> None:
    labels = ("lost card", "lost transfer", "lost")
    rendered = Rendered(MESSAGES, tuple(zip(labels, (3.0, 1.0, 0.0), strict=True)), weight=0.5)
    (row,) = tokenize_rows(tiny_llama.tokenizer, [rendered])
    chat = Chat(tiny_llama.tokenizer)
    assert row.prompt == chat.prompt(MESSAGES).ids
    assert row.weight == 0.5
    assert [mass for _, mass in row.branches] == [0.75, 0.25, 0.0]
    _, trie = make_trie(chat, "", labels, "")
    for (tokens, _), label in zip(row.branches, labels, strict=True):
        assert chat.text(tokens) == label
        assert tokens[-1] == chat.end_of_turn
        # All answers are trained to their end; it is scored only where another label goes on.
        at = 0
        for token in tokens if label == "lost" else tokens[:-1]:
            at = trie.nodes[at].children[token]
        assert trie.nodes[at].candidates == [labels.index(label)]


def test_a_closed_set_is_trained_as_it_is_scored(tiny_llama: LoadedModel) -> None:
    labels = ("lost card", "lost transfer", "lost", "card")
    rendered = Rendered(MESSAGES, tuple((label, 1.0) for label in labels))
    (row,) = tokenize_rows(tiny_llama.tokenizer, [rendered], closed=True)
    chat = Chat(tiny_llama.tokenizer)
    assert [tokens[-1] == chat.end_of_turn for tokens, _ in row.branches] == [False, False, True, False]
    _, trie = make_trie(chat, "", labels, "")
    for place, (tokens, _) in enumerate(row.branches):
        at = 0
        for token in tokens:
            at = trie.nodes[at].children[token]
        assert trie.nodes[at].candidates == [place]


def test_a_row_without_mass_is_refused(tiny_llama: LoadedModel) -> None:
    with pytest.raises(InputError, match="row 1 has no completion"):
        tokenize_rows(tiny_llama.tokenizer, [Rendered(MESSAGES, (("a", 1.0),)), Rendered(MESSAGES, (("a", 0.0),))])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no training rows"),
        ([TrainRow((1,), (((2,), 1.0),)), TrainRow((), (((2,), 1.0),))], "row 1 has an empty"),
        ([TrainRow((1,), (((), 1.0),))], "row 0 has an empty"),
        ([TrainRow((1,), ())], "row 0 has an empty"),
        ([TrainRow((1, 2), (((3,), 0.5), ((3, 4, 5), 0.5)))], "row 0 has 5 tokens, the model's context holds 4"),
    ],
)
def test_rows_that_cannot_be_trained_are_named(rows: list[TrainRow], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_lengths(rows, 4)


def test_rows_that_just_fit_pass() -> None:
    check_lengths([TrainRow((1, 2), (((3, 4), 1.0),))], 4)
