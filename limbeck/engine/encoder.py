"""Sentence encoders as classifiers: a linear head over unit vectors, exact probabilities in one pass.

Vectors are means of the last hidden states (Sentence-BERT, Reimers and Gurevych 2019,
https://arxiv.org/abs/1908.10084). The head begins at the vectors of the labels' own words, so that an untrained one
classifies by similarity to them, as in zero-shot classification by label embedding (Veeranna et al. 2016).
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import normalize

from limbeck.engine.batching import Gatherer, batches_by_length, settle
from limbeck.engine.compute import on_compute_thread
from limbeck.engine.embedding import mean_states
from limbeck.engine.loading import LoadedModel, load_encoder
from limbeck.engine.requests import ScoreRequest, Scores
from limbeck.errors import InputError, ModelError

HEAD = "head.safetensors"
# What cosines are multiplied by: the default of the ranking loss that sentence-transformers trains encoders with.
SCALE = 20.0
_ROWS, _TOKENS, _MOST_TOKENS = 64, 4096, 1024


class EncoderClassifier(torch.nn.Module):
    """An encoder with a head of one unit-length direction and one bias a label; logits are SCALE times their sum."""

    def __init__(self, encoder: Any, labels: Sequence[str], weight_K_D: Tensor, bias_K: Tensor, pad: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.labels = tuple(labels)
        self.weight, self.bias = torch.nn.Parameter(weight_K_D), torch.nn.Parameter(bias_K)
        self._pad = pad

    def forward(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Return logits [rows, labels] of token rows, computed in one padded pass."""
        vectors = normalize(mean_states(self.encoder, ids, self._pad, self.weight.device), dim=1)
        return SCALE * (vectors @ self.weight.t() + self.bias)

    def save_pretrained(self, path: str) -> None:
        """Write the head, with its labels, and the encoder's LoRA layers where it has any (PEFT's format)."""
        from safetensors.torch import save_file

        if hasattr(self.encoder, "peft_config"):
            self.encoder.save_pretrained(path)
        tensors = {"weight": self.weight.detach().cpu(), "bias": self.bias.detach().cpu()}
        save_file(tensors, Path(path) / HEAD, metadata={"labels": json.dumps(self.labels)})


def token_ids(loaded: LoadedModel, texts: Sequence[str]) -> list[list[int]]:
    """Return each text's tokens; a longer text is cut where the encoder's positions end."""
    config: Any = loaded.model.config
    limit = min(_MOST_TOKENS, config.max_position_embeddings, loaded.tokenizer.model_max_length)
    return cast(Any, loaded.tokenizer)(list(texts), truncation=True, max_length=limit)["input_ids"]


@torch.no_grad()
def untrained(loaded: LoadedModel, labels: Sequence[str]) -> EncoderClassifier:
    """Return the encoder with a head at the unit vectors of the labels' words."""
    words = [re.sub(r"[\W_]+", " ", label).strip() or label for label in labels]
    pad = cast("int | None", loaded.tokenizer.pad_token_id) or 0
    vectors = mean_states(loaded.model, token_ids(loaded, words), pad, loaded.device)
    return EncoderClassifier(loaded.model, labels, normalize(vectors, dim=1), vectors.new_zeros(len(labels)), pad)


def load_classifier(name: str, folder: Path, *, device: str = "auto") -> LoadedModel:
    """Load a trained classifier; `model` is an `EncoderClassifier`. Raises ModelError for a folder without a head."""
    from safetensors import SafetensorError, safe_open

    loaded = load_encoder(name, device=device, adapter=folder)
    try:
        with cast(Any, safe_open)(str(folder / HEAD), "pt") as file:
            labels = json.loads(file.metadata()["labels"])
            weight, bias = (file.get_tensor(part).to(loaded.device) for part in ("weight", "bias"))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"no classifier in {str(folder)!r}: {error}", valid=f"a folder with {HEAD}") from error
    pad = cast("int | None", loaded.tokenizer.pad_token_id) or 0
    model = EncoderClassifier(loaded.model, labels, weight, bias, pad).eval()
    return replace(loaded, model=cast(Any, model))


@dataclass(frozen=True)
class _Asked:
    text: str
    candidates: tuple[str, ...]


class EncoderEngine:
    """Scores closed sets for many callers; calls that arrive within `wait_ms` milliseconds run as one batch.

    `loaded.model` is a trained `EncoderClassifier` or a bare encoder, which compares a text with the labels' words.
    The text is the last message alone: what stands before it are instructions and demonstrations, which an encoder
    cannot follow.
    """

    def __init__(self, loaded: LoadedModel, *, wait_ms: float = 5.0, max_batch: int = 128) -> None:
        self.loaded = loaded
        self._trained = cast(Any, loaded.model) if isinstance(loaded.model, EncoderClassifier) else None
        self._encoder = replace(loaded, model=self._trained.encoder) if self._trained else loaded
        self._untrained = lru_cache(maxsize=8)(self._compare)
        self._gatherer: Gatherer[_Asked] = Gatherer(self._compute, wait_ms=wait_ms, most=max_batch)

    def score(self, request: ScoreRequest) -> Scores:
        """Return the log-probability of every candidate; blocks, from any thread.

        Raises InputError for a candidate that the head has not learned and for a field that follows another one.
        """
        if request.assistant_prefix:
            raise InputError(
                f"{self.loaded.name} is an encoder and answers one field of labels, not several",
                valid="a program with one closed output field",
            )
        unknown = [] if self._trained is None else sorted(set(request.candidates) - set(self._trained.labels))
        if unknown:
            raise InputError(
                f"{self.loaded.name} has not learned {', '.join(map(repr, unknown[:5]))}",
                valid=", ".join(self._trained.labels[:20]) if self._trained else "",
                hint="train it anew: its labels are fixed",
            )
        return self._gatherer.call(_Asked(request.messages[-1][1], request.candidates))

    def close(self) -> None:
        """End the gathering thread; calls that still wait get a ModelError."""
        self._gatherer.close()

    def _compare(self, labels: tuple[str, ...]) -> EncoderClassifier:
        return untrained(self.loaded, labels)

    def _compute(self, jobs: list[tuple[_Asked, Future[Any]]]) -> None:
        on_compute_thread(self._run, jobs)

    @torch.inference_mode()
    def _run(self, jobs: list[tuple[_Asked, Future[Any]]]) -> None:
        for candidates in dict.fromkeys(asked.candidates for asked, _ in jobs):
            group = [job for job in jobs if job[0].candidates == candidates]
            model = self._trained or self._untrained(candidates)
            places = [model.labels.index(label) for label in candidates]
            ids = token_ids(self._encoder, [asked.text for asked, _ in group])
            for batch in batches_by_length([len(row) for row in ids], _ROWS, _TOKENS):
                logits = model([ids[i] for i in batch])[:, places].double()
                for i, row in zip(batch, torch.log_softmax(logits, dim=1).tolist(), strict=True):
                    settle(group[i][1], Scores(tuple(row), len(ids[i])))
