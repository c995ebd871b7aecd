"""Encoder-decoders: scores and texts against one unpadded float64 pass, batches, openings, limits, loading."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import tiny_t5

from limbeck.engine import embed, load_model
from limbeck.engine import seq2seq as module
from limbeck.engine.loading import LoadedModel
from limbeck.engine.requests import GenerateRequest, ScoreRequest
from limbeck.engine.seq2seq import Seq2SeqEngine, engine_of
from limbeck.engine.torch_engine import TorchEngine
from limbeck.errors import ModelError, PromptTooLong

SYSTEM = ("system", "label the text as spam or ham")
TEXTS = ["win a free prize now", "see you at five", "yes", "a card was lost or stolen, the transfer is pending"]
LABELS = ("spam", "ham", "spam prize", "the lazy dog")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_t5()


@pytest.fixture(scope="module")
def double() -> Any:
    return cast(Any, tiny_t5().model).double()


@pytest.fixture
def engine(loaded: LoadedModel) -> Iterator[Seq2SeqEngine]:
    engine = Seq2SeqEngine(loaded, max_batch=3)
    yield engine
    engine.close()


def ids(loaded: LoadedModel, text: str) -> list[int]:
    return cast(Any, loaded.tokenizer)(text, add_special_tokens=False)["input_ids"]


def source(engine: Seq2SeqEngine, text: str) -> torch.Tensor:
    prompt = ids(engine.loaded, engine.chat.render((SYSTEM, ("user", text))))
    return torch.tensor([[*prompt, cast(Any, engine.loaded.model).config.eos_token_id]])


def plain_logprob(double: Any, prompt: torch.Tensor, answer: list[int], begun: int = 0) -> float:
    """One answer of one prompt, the model's own forward pass."""
    start = double.config.decoder_start_token_id
    with torch.no_grad():
        logits = double(input_ids=prompt, decoder_input_ids=torch.tensor([[start, *answer[:-1]]])).logits[0]
    logprobs = torch.log_softmax(logits, dim=-1)
    return sum(float(logprobs[at, token]) for at, token in enumerate(answer) if at >= begun)


def plain_text(engine: Seq2SeqEngine, double: Any, text: str, steps: int, opening: str = "") -> str:
    """Greedy decoding without a cache."""
    prompt, written = source(engine, text), ids(engine.loaded, opening)
    begun = len(written)
    for _ in range(steps):
        start = double.config.decoder_start_token_id
        with torch.no_grad():
            logits = double(input_ids=prompt, decoder_input_ids=torch.tensor([[start, *written]])).logits[0, -1]
        token = int(logits.argmax())
        if token in engine.chat.stop_ids:
            break
        written.append(token)
    return engine.chat.text(written[begun:])


@pytest.mark.parametrize("limit", [64_000_000, 4000])
def test_scores_are_those_of_the_model_itself(
    engine: Seq2SeqEngine, double: Any, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_LOGITS", limit)
    with ThreadPoolExecutor(4) as pool:
        asked = [ScoreRequest((SYSTEM, ("user", text)), "", LABELS) for text in TEXTS]
        found = list(pool.map(engine.score, asked))
    for text, scores in zip(TEXTS, found, strict=True):
        answers = [ids(engine.loaded, label) for label in LABELS]
        answers[0].append(engine.chat.end_of_turn)  # "spam prize" goes on from it
        expected = [plain_logprob(double, source(engine, text), answer) for answer in answers]
        np.testing.assert_allclose(scores.logprobs, expected, atol=2e-3, rtol=1e-3)
        assert scores.exact


def test_an_empty_candidate_alone_is_scored_beside_others(engine: Seq2SeqEngine) -> None:
    choices = [("",), ("yes", "no")]
    asked = [ScoreRequest((SYSTEM, ("user", TEXTS[0])), "", candidates) for candidates in choices]
    empty, other = engine.score_many(asked)
    assert empty.logprobs == (0.0,)
    assert other.logprobs == pytest.approx(engine.score(asked[1]).logprobs, abs=1e-4)


def test_a_prefix_opens_the_answer(engine: Seq2SeqEngine, double: Any) -> None:
    opening = "label: "
    scores = engine.score(ScoreRequest((SYSTEM, ("user", TEXTS[0])), opening, ("yes", "no"), suffix="\n\n"))
    turns = [ids(engine.loaded, opening + label + "\n\n") for label in ("yes", "no")]
    shared = next(i for i, (a, b) in enumerate(zip(*turns, strict=False)) if a != b)
    begun = min(shared, len(ids(engine.loaded, opening)))
    expected = [plain_logprob(double, source(engine, TEXTS[0]), turn, begun) for turn in turns]
    assert scores.logprobs[0] - scores.logprobs[1] == pytest.approx(expected[0] - expected[1], abs=2e-3)
    made = engine.generate(GenerateRequest((SYSTEM, ("user", TEXTS[1])), max_tokens=6, assistant_prefix=opening))
    assert made.text == plain_text(engine, double, TEXTS[1], 6, opening)


def test_texts_written_together_are_those_written_alone(engine: Seq2SeqEngine, double: Any) -> None:
    asked = [
        GenerateRequest((SYSTEM, ("user", text)), max_tokens=n) for text, n in zip(TEXTS, (3, 8, 5, 8), strict=True)
    ]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(engine.generate, asked))
    for request, made in zip(asked, found, strict=True):
        assert made.text == plain_text(engine, double, request.messages[-1][1], request.max_tokens)
        assert made.tokens_out <= request.max_tokens
        assert made.tokens_in == engine.count_tokens(request.messages)


def test_sampling_depends_on_the_seed_alone(engine: Seq2SeqEngine) -> None:
    def ask(seed: int, text: str = TEXTS[0]) -> str:
        request = GenerateRequest((SYSTEM, ("user", text)), max_tokens=8, temperature=2.0, seed=seed)
        return engine.generate(request).text

    alone = [ask(seed) for seed in range(6)]
    assert len(set(alone)) > 1
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(6))) == alone
    asked = [GenerateRequest((SYSTEM, ("user", TEXTS[0])), max_tokens=8, temperature=2.0, seed=n) for n in range(6)]
    assert [made.text for made in engine.generate_many(asked)] == alone


def test_what_does_not_fit_is_refused(engine: Seq2SeqEngine, loaded: LoadedModel) -> None:
    long = GenerateRequest((SYSTEM, ("user", "the quick " * 400)))
    with pytest.raises(PromptTooLong, match="at most 512 tokens"):
        engine.generate(long)
    with pytest.raises(PromptTooLong):
        engine.score(ScoreRequest(long.messages, "", ("a", "b")))
    with pytest.raises(ModelError, match="no candidates"):
        engine.score(ScoreRequest((SYSTEM, ("user", "x")), "", ()))
    closed = Seq2SeqEngine(loaded)
    closed.close()
    with pytest.raises(ModelError, match="closed"):
        closed.generate(GenerateRequest((SYSTEM, ("user", "x"))))


def test_a_folder_is_loaded_by_its_configuration(loaded: LoadedModel, tiny_llama: LoadedModel, tmp_path: Path) -> None:
    cast(Any, loaded.model).save_pretrained(tmp_path)
    cast(Any, loaded.tokenizer).save_pretrained(tmp_path)
    again = load_model(f"hf:{tmp_path}", device="cpu", dtype="fp32")
    engine, other = engine_of(again), engine_of(tiny_llama)
    assert isinstance(engine, Seq2SeqEngine)
    assert isinstance(other, TorchEngine)
    request = ScoreRequest((SYSTEM, ("user", TEXTS[0])), "", LABELS)
    first = engine.score(request)
    reference = Seq2SeqEngine(loaded)
    np.testing.assert_allclose(first.logprobs, reference.score(request).logprobs, atol=1e-4)
    for one in (engine, other, reference):
        one.close()


def test_the_encoder_embeds(loaded: LoadedModel, double: Any) -> None:
    (vector,) = embed(loaded, ["see you at five"])
    with torch.no_grad():
        hidden = double.get_encoder()(torch.tensor([ids(loaded, "see you at five")])).last_hidden_state[0]
    np.testing.assert_allclose(vector, hidden.mean(0).numpy(), atol=1e-3, rtol=1e-3)
