"""Encoder-decoder models of the T5 family: batched generation and exact scores, the prompt read by the encoder.

No prefix is shared between calls: an encoder reads every prompt in both directions, so that equal beginnings of
different prompts have different states.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from limbeck.engine.batching import batches_by_length, settle
from limbeck.engine.callers import LanguageEngine
from limbeck.engine.chat import Prompt
from limbeck.engine.drafts import Draft, advance
from limbeck.engine.loading import LoadedModel
from limbeck.engine.requests import GenerateRequest, Message, ScoreRequest, Scores
from limbeck.engine.scoring import candidate_tokens
from limbeck.engine.torch_engine import TorchEngine
from limbeck.errors import ModelError

# Logits of one pass stay below this many values: 256 MB in fp32.
_MAX_LOGITS = 64_000_000
# T5 was trained on inputs of 512 tokens; its positions are relative and set no limit of their own.
_CONTEXT_TOKENS = 512


def is_seq2seq(model: Any) -> bool:
    """Return whether a model is an encoder-decoder."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def seq2seq_context(config: Any) -> int:
    """Return how many tokens a prompt and its answer may have together."""
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
    return next((int(limit) for limit in limits if limit), _CONTEXT_TOKENS)


@dataclass(frozen=True)
class Sources:
    """What the encoder made of n prompts: states [n, S, D] and the mask [n, S] of their tokens."""

    states: Tensor
    mask: Tensor


def read_sources(model: Any, prompts: Sequence[Sequence[int]]) -> Sources:
    """Encode prompts in one padded pass, each closed by the end token as in the models' pre-training."""
    device, end = next(model.parameters()).device, model.config.eos_token_id
    ids = [[*prompt, end] for prompt in prompts]
    longest = max(map(len, ids))
    pad = model.config.pad_token_id or 0
    padded = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in ids], device=device)
    lengths = torch.tensor([len(row) for row in ids], device=device)
    mask = (torch.arange(longest, device=device) < lengths.unsqueeze(1)).long()
    return Sources(model.get_encoder()(input_ids=padded, attention_mask=mask).last_hidden_state, mask)


def decode(model: Any, sources: Sources, of: Sequence[int], targets: Sequence[Sequence[int]]) -> Tensor:
    """Return logits [targets, T, V]; those at t predict token t of a target that answers prompt `of`."""
    device, start = sources.mask.device, model.config.decoder_start_token_id
    longest = max(1, *map(len, targets))
    # Padding on the right is seen by nothing that is scored: the decoder is causal.
    shifted = [[start, *row[:-1], *[start] * (longest - len(row))][:longest] for row in targets]
    chosen = torch.tensor(list(of), device=device)
    return model(
        encoder_outputs=BaseModelOutput(last_hidden_state=cast(Any, sources.states[chosen])),
        attention_mask=sources.mask[chosen],
        decoder_input_ids=torch.tensor(shifted, device=device),
        use_cache=False,
    ).logits


@dataclass(frozen=True)
class _Write:
    draft: Draft
    opening: tuple[int, ...]


@dataclass(frozen=True)
class _Score:
    source: tuple[int, ...]
    opening: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


class Seq2SeqEngine(LanguageEngine[_Write | _Score]):
    """Runs an encoder-decoder, in batches of at most `max_batch` rows and `max_batch_tokens` prompt tokens, padding
    included.
    """

    def __init__(
        self, loaded: LoadedModel, *, max_batch: int = 32, max_batch_tokens: int = 16384, wait_ms: float = 5.0
    ) -> None:
        self._model: Any = loaded.model
        self._rows, self._tokens = max_batch, max_batch_tokens
        super().__init__(loaded, seq2seq_context(self._model.config), wait_ms=wait_ms, most=4 * max_batch)

    def count_tokens(self, messages: Sequence[Message], assistant_prefix: str = "") -> int:
        """Return how many tokens the messages are, with the beginning of the answer."""
        return len(self._source(messages)) + len(self.chat.ids(assistant_prefix))

    def _draft(self, request: GenerateRequest) -> _Write:
        source, opening = self._source(request.messages), self.chat.ids(request.assistant_prefix)
        room = self._room(source, len(opening) + 1) + 1
        return _Write(Draft(request, Prompt(source, 0), min(request.max_tokens, room)), opening)

    def _query(self, request: ScoreRequest) -> _Score:
        if not request.candidates:
            raise ModelError("no candidates to score", valid="at least one candidate")
        source = self._source(request.messages)
        opening, rest = candidate_tokens(self.chat, request.assistant_prefix, request.candidates, request.suffix)
        answers = tuple((*opening, *tokens) for tokens in rest)
        self._room(source, max(map(len, answers)))
        return _Score(source, opening, answers)

    def _source(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return self.chat.ids(self.chat.render(messages))

    def _room(self, source: Sequence[int], answer: int) -> int:
        """Return how many tokens are left beside a prompt, its end and an answer."""
        tokens = len(source) + 1 + answer
        self._check_length(tokens)
        return self.context_tokens - tokens

    @torch.inference_mode()
    def _run(self, jobs: Sequence[tuple[_Write | _Score, Future[Any]]]) -> None:
        """Run scores, then texts: a score is a fraction of a generation, and its caller goes on sooner."""
        queries = [(job, future) for job, future in jobs if isinstance(job, _Score)]
        for batch in batches_by_length([len(job.source) for job, _ in queries], self._rows, self._tokens):
            self._score_batch([queries[i] for i in batch])
        texts = [(job, future) for job, future in jobs if isinstance(job, _Write)]
        for batch in batches_by_length([len(job.draft.prompt.ids) for job, _ in texts], self._rows, self._tokens):
            self._write_batch([texts[i] for i in batch])

    def _score_batch(self, queries: Sequence[tuple[_Score, Future[Any]]]) -> None:
        sources = read_sources(self._model, [job.source for job, _ in queries])
        pairs = [(i, answer) for i, (job, _) in enumerate(queries) for answer in job.answers]
        found: list[list[float]] = [[] for _ in queries]
        for part in _passes(pairs, _MAX_LOGITS // self._model.config.vocab_size):
            logits = decode(self._model, sources, [i for i, _ in part], [answer for _, answer in part])
            for (i, answer), row in zip(part, logits, strict=True):
                begun = len(queries[i][0].opening)
                logprobs = torch.log_softmax(row[begun : len(answer)].float(), dim=-1)
                chosen = torch.tensor(answer[begun:], dtype=torch.long, device=row.device).unsqueeze(1)
                found[i].append(float(logprobs.gather(1, chosen).double().sum()))
        for (job, future), values in zip(queries, found, strict=True):
            settle(future, Scores(tuple(values), len(job.source)))

    def _write_batch(self, texts: Sequence[tuple[_Write, Future[Any]]]) -> None:
        """Write rows side by side, one token of each a step; the openings are read, not drawn."""
        model, drafts = self._model, [job.draft for job, _ in texts]
        sources = read_sources(model, [draft.prompt.ids for draft in drafts])
        openings = [(model.config.decoder_start_token_id, *job.opening) for job, _ in texts]
        states, cache = BaseModelOutput(last_hidden_state=cast(Any, sources.states)), None
        alive, step = set(range(len(drafts))), 0
        while alive:
            given = [_token(opening, draft, step) for opening, draft in zip(openings, drafts, strict=True)]
            out = model(
                encoder_outputs=states,
                attention_mask=sources.mask,
                decoder_input_ids=torch.tensor(given, device=sources.mask.device).unsqueeze(1),
                past_key_values=cache,
                use_cache=True,
            )
            cache, step = out.past_key_values, step + 1
            drawing = [i for i in sorted(alive) if step >= len(openings[i])]
            if drawing:
                staying = advance(
                    self.chat, drafts, drawing, out.logits[drawing, -1], lambda i, text: settle(texts[i][1], text)
                )
                alive -= set(drawing) - set(staying)


def engine_of(loaded: LoadedModel) -> TorchEngine | Seq2SeqEngine:
    """Return the engine that runs a language model: by its architecture."""
    return Seq2SeqEngine(loaded) if is_seq2seq(loaded.model) else TorchEngine(loaded)


def _token(opening: Sequence[int], draft: Draft, step: int) -> int:
    """Return what a row's decoder reads at a step: its opening, then what it wrote, then anything."""
    line = [*opening, *draft.written]
    return line[min(step, len(line) - 1)]


def _passes(
    pairs: Sequence[tuple[int, tuple[int, ...]]], positions: int
) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    """Yield the pairs in order, cut so that a padded pass has at most so many positions, or one pair."""
    part: list[tuple[int, tuple[int, ...]]] = []
    for pair in pairs:
        longest = max(len(answer) for _, answer in [*part, pair])
        if part and longest * (len(part) + 1) > positions:
            yield part
            part = []
        part.append(pair)
    if part:
        yield part
