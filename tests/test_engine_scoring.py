# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateUsage=false
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck.engine import LoadedModel, ScoreRequest, Scores, TorchEngine, scoring
from limbeck.engine.chat import Chat, common_length
from limbeck.engine.graphs import Graphs
from limbeck.engine.scoring import Trie, make_trie
from limbeck.errors import ModelError, PromptTooLong

SYSTEM = ("system", "label the text")
LABELS = ("spam", "ham", "card lost", "card", "card stolen", "not spam or ham", "")
WORDS = ("card", "transfer", "lost", "stolen", "pending", "the", "quick", "fox", "yes", "no")
MANY = tuple(f"{a} {b} {c}" for a in WORDS[:5] for b in WORDS[:4] for c in WORDS[4:8])


def request(text: str, candidates: tuple[str, ...] = LABELS, **options: Any) -> ScoreRequest:
    return ScoreRequest((SYSTEM, ("user", text)), **{"assistant_prefix": "", **options}, candidates=candidates)


def plain_logprobs(loaded: LoadedModel, asked: ScoreRequest) -> list[float]:
    """Each candidate's log-probability by a forward pass of its own over the whole text."""
    chat = Chat(loaded.tokenizer)
    prompt = list(chat.prompt(asked.messages).ids)
    model: Any = loaded.model
    opening = chat.ids(asked.assistant_prefix)
    turns = [chat.ids(asked.assistant_prefix + candidate + asked.suffix) for candidate in asked.candidates]
    # What opens every turn is given, not scored.
    first = len(prompt) + min(common_length(opening, turn) for turn in turns)
    found: list[float] = []
    for turn in turns:
        # The end of the turn counts only where another candidate goes on.
        goes_on = any(other != turn and other[: len(turn)] == turn for other in turns)
        ids = [*prompt, *turn, *([chat.end_of_turn] if goes_on and not asked.suffix else [])]
        with torch.inference_mode():
            logprobs = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        found.append(sum(float(logprobs[i - 1, ids[i]]) for i in range(first, len(ids))))
    return found


@pytest.fixture(scope="session", params=["tiny_llama", "tiny_qwen2"])
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session", params=[False, True], ids=["growing", "fixed buffers"])
def engine(loaded: LoadedModel, request: pytest.FixtureRequest) -> TorchEngine:
    engine = TorchEngine(loaded)
    # As on a GPU, but for the graphs themselves.
    engine._prefixes.graphs = Graphs(loaded.model, capture=False) if request.param else None
    return engine


def test_scores_equal_one_plain_pass_a_candidate(loaded: LoadedModel, engine: TorchEngine):
    asked = [request(text) for text in ("win a prize", "see you at five", "")]
    for scores, one in zip(engine.score_many(asked), asked, strict=True):
        assert list(scores.logprobs) == pytest.approx(plain_logprobs(loaded, one), abs=1e-3)
        assert scores.exact


def test_candidates_of_different_calls_share_a_pass(loaded: LoadedModel, engine: TorchEngine):
    asked = [request("see you", LABELS[:2]), request("yes", LABELS[2:]), request("no", ("quick",))]
    for scores, one in zip(engine.score_many(asked), asked, strict=True):
        assert list(scores.logprobs) == pytest.approx(plain_logprobs(loaded, one), abs=1e-3)


def test_an_opened_turn_and_a_suffix_are_part_of_the_text(loaded: LoadedModel, engine: TorchEngine):
    asked = request("see you", ("card", "card lost"), assistant_prefix="the label is: ", suffix=";")
    (scores,) = engine.score_many([asked])
    assert list(scores.logprobs) == pytest.approx(plain_logprobs(loaded, asked), abs=1e-3)


def test_the_embedded_model_scores_as_transformers_does(embedded: LoadedModel):
    asked = request("WIN a free prize, call now!", ("spam", "ham", "not sure"))
    (scores,) = TorchEngine(embedded).score_many([asked])
    assert list(scores.logprobs) == pytest.approx(plain_logprobs(embedded, asked), abs=1e-3)


def test_a_candidate_named_twice_scores_the_same_twice(engine: TorchEngine):
    (scores,) = engine.score_many([request("see you", ("spam", "ham", "spam"))])
    assert scores.logprobs[0] == scores.logprobs[2]
    assert scores.best in (0, 1)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.sampled_from(WORDS), picks=st.sets(st.sampled_from(MANY), min_size=30, max_size=80))
def test_the_search_finds_the_best_of_full_scoring(engine: TorchEngine, text: str, picks: set[str]):
    asked = request(text, tuple(sorted(picks)))
    (searched,) = engine.score_many([asked])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "WHOLE_NODES", 10_000)
        (full,) = engine.score_many([asked])
    assert full.exact
    assert searched.best == full.best
    assert searched.logprobs[searched.best] == pytest.approx(full.logprobs[full.best], abs=1e-3)
    # What the search left closed is at most what it bears.
    worst = max(abs(a - b) for a, b in zip(searched.probabilities(), full.probabilities(), strict=True))
    assert worst <= 0.06


def test_the_search_opens_less_than_the_whole_trie(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scoring, "_OPEN_MASS", 0.9)
    (scores,) = engine.score_many([request("see you", MANY)])
    assert not scores.exact
    assert all(math.isfinite(value) for value in scores.logprobs)
    assert scores.logprobs.count(max(scores.logprobs)) == 1


def test_a_trie_shares_beginnings_and_leaves_ends_unopened():
    trie = Trie([(1, 2, 9), (1, 3, 9), (4, 9), (1, 2, 9)])
    assert len(trie.nodes) == 1 + 2 + 1 + 2 + 1 + 1
    assert trie.depth == 3
    assert sorted(trie.nodes[i].token for i in trie.inner) == [1, 2, 3, 4]
    assert sorted(trie.below(trie.nodes[0].children[1])) == [0, 1, 3]


def test_a_chain_runs_to_the_next_fork():
    trie = Trie([(1, 2, 3, 9), (5, 9)])
    chain = trie.chain(trie.nodes[0].children[1])
    assert [trie.nodes[i].token for i in chain] == [1, 2, 3]


def test_a_candidate_that_merges_with_the_prefix_is_tokenized_as_one_text(engine: TorchEngine):
    chat = engine.chat
    opening, trie = make_trie(chat, "the quick br", ["own fox", "ick"], "")
    texts: list[str] = []
    for i, node in enumerate(trie.nodes):
        if node.candidates:
            path: list[int] = []
            at = i
            while at > 0:
                path.insert(0, trie.nodes[at].token)
                at = trie.nodes[at].parent
            texts.append(chat.text([*opening, *path]))
    assert sorted(texts) == ["the quick brick", "the quick brown fox"]
    assert opening + tuple(chat.ids("own fox")) != chat.ids("the quick brown fox")


def test_an_end_is_scored_only_after_a_candidate_that_another_one_goes_on_from(engine: TorchEngine):
    chat = engine.chat
    _, trie = make_trie(chat, "", ["card", "card lost", "spam"], "")
    ends = [node for node in trie.nodes if node.token == chat.end_of_turn]
    assert [node.candidates for node in ends] == [[0]]


def test_an_empty_candidate_alone_has_probability_one(engine: TorchEngine):
    (scores,) = engine.score_many([request("see you", ("",))])
    assert scores.probabilities() == (1.0,)


def test_probabilities_are_a_softmax():
    scores = Scores((-1000.0, -1001.0, -math.inf), tokens_in=1)
    assert scores.probabilities() == pytest.approx((0.731, 0.269, 0.0), abs=1e-3)
    assert scores.best == 0


def test_no_candidates_and_too_long_a_prompt_are_errors(engine: TorchEngine):
    with pytest.raises(ModelError, match="no candidates"):
        engine.score_many([request("see you", ())])
    with pytest.raises(PromptTooLong, match="does not fit"):
        engine.score_many([request("the quick " * 800)])


def test_the_shared_prompt_is_counted_as_cached(loaded: LoadedModel):
    engine = TorchEngine(loaded)
    first, second = engine.score_many([request("yes"), request("no")])
    (third,) = engine.score_many([request("yes")])
    assert (first.cached_tokens, second.cached_tokens) == (0, third.cached_tokens)
    assert 0 < third.cached_tokens < third.tokens_in
