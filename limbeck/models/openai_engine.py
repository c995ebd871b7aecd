"""Hosted and local servers that speak OpenAI's chat protocol, through the `openai` client.

The client's own retries are off: `limbeck.models.LM` retries where the budget and the ledger see it. Keys
come from the environment alone and are cut out of every message that could repeat one.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

import openai

from limbeck.engine.requests import GenerateRequest, Generation, Message, ScoreRequest, Scores
from limbeck.errors import ModelError, PromptTooLong
from limbeck.models.backend import ScoresUnavailable, Transient
from limbeck.models.firsttoken import TopTokens, label_masses, lettered, letters
from limbeck.models.pricing import price_of


@dataclass(frozen=True)
class ProviderInfo:
    """Where a provider is, which variables may hold its key (none: no key), and what it can do.

    `top_logprobs` is the most alternatives a token may come with, 0 where there are none; `seed` is the name
    of its seed setting, "" where it has none.
    """

    base_url: str
    keys: tuple[str, ...] = ()
    top_logprobs: int = 0
    seed: str = "seed"


PROVIDERS = {
    "openai": ProviderInfo("https://api.openai.com/v1", ("OPENAI_API_KEY",), 20),
    "mistral": ProviderInfo("https://api.mistral.ai/v1", ("MISTRAL_API_KEY",), seed="random_seed"),
    "openrouter": ProviderInfo("https://openrouter.ai/api/v1", ("OPENROUTER_API_KEY",), 20),
    "fireworks_ai": ProviderInfo(
        "https://api.fireworks.ai/inference/v1", ("FIREWORKS_AI_API_KEY", "FIREWORKS_API_KEY"), 5
    ),
    "together_ai": ProviderInfo("https://api.together.xyz/v1", ("TOGETHERAI_API_KEY", "TOGETHER_API_KEY")),
    "groq": ProviderInfo("https://api.groq.com/openai/v1", ("GROQ_API_KEY",)),
    "deepseek": ProviderInfo("https://api.deepseek.com/v1", ("DEEPSEEK_API_KEY",), 20, seed=""),
    "xai": ProviderInfo("https://api.x.ai/v1", ("XAI_API_KEY",), 8),
    "gemini": ProviderInfo("https://generativelanguage.googleapis.com/v1beta/openai/", ("GEMINI_API_KEY",), seed=""),
    "cerebras": ProviderInfo("https://api.cerebras.ai/v1", ("CEREBRAS_API_KEY",), 20),
    "ollama": ProviderInfo("http://localhost:11434/v1", (), 20),
    "ollama_chat": ProviderInfo("http://localhost:11434/v1", (), 20),
    "lm_studio": ProviderInfo("http://localhost:1234/v1", (), 20),
    "hosted_vllm": ProviderInfo("http://localhost:8000/v1", ("HOSTED_VLLM_API_KEY",), 20),
}
# Tokens that a reasoning model may think before it answers; DSPy asks for the same room.
_THINKING_TOKENS = 16_000
_REASONING = re.compile(r"^(o[1345](-(mini|nano|pro))?(-\d.*)?|gpt-5(\.\d+)*(?!-chat)(-.*)?)$")
_AMBIGUOUS = 0.01
# How OpenAI, vLLM and llama.cpp's server say that a prompt is too long.
_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|maximum context length|longer than the maximum model length"
    r"|exceeds? the available context size",
    re.IGNORECASE,
)


def gives_probabilities(name: str) -> bool:
    """Return whether a model is known to send, or may send, log-probabilities of its first token.

    >>> gives_probabilities("openai/gpt-4.1-mini"), gives_probabilities("mistral/mistral-small-latest")
    (True, False)
    """
    provider, _, model = name.partition("/")
    if provider in PROVIDERS and not PROVIDERS[provider].top_logprobs:
        return False
    return not _REASONING.match(model.rpartition("/")[2].lower())


class OpenAIBackend:
    """One model of one server; `name` is DSPy's ("openai/gpt-5-mini"), `timeout` is in seconds.

    Scores are read off the first token's alternatives, so they need a server that sends log-probabilities.
    Raises ModelError, naming the variable, where the key is missing; localhost needs none.
    """

    supports_prefix = False
    score_source = "logprobs"

    def __init__(self, name: str, *, api_base: str | None = None, timeout: float = 120.0) -> None:
        provider, _, self.model = name.partition("/")
        info = PROVIDERS.get(provider) or ProviderInfo(api_base or "", (f"{provider.upper()}_API_KEY",), 20)
        self.name, self._info = name, info
        self.base_url = api_base or info.base_url
        local = _is_local(self.base_url)
        self._shown = _without_secrets(self.base_url)
        self._key = _find_key(name, info.keys, needed=not local)
        self._client = openai.OpenAI(
            api_key=self._key or "none", base_url=self.base_url, max_retries=0, timeout=timeout
        )
        self.reasons = bool(_REASONING.match(self.model.rpartition("/")[2].lower()))
        self.thinking_tokens = _THINKING_TOKENS if self.reasons else 0
        self.fingerprint = f"openai/{self._shown}/{self.model}"
        self.supports_score = gives_probabilities(name)
        price = None if local else price_of(name)
        self.usd_per_token = (0.0, 0.0) if local else price and (price.usd_in, price.usd_out)
        self._lettered: set[tuple[str, ...]] = set()

    def generate(self, request: GenerateRequest) -> Generation:
        """Answer one request; raises Transient for 429, 5xx, timeouts and unreadable answers."""
        if request.assistant_prefix:
            raise ModelError(f"{self.name} cannot go on from a given beginning", valid="an empty assistant_prefix")
        body = {**_messages(request.messages), **self._decoding(request)}
        answer = self._send(body)
        choice = answer.choices[0]
        text = str(getattr(choice.message, "content", None) or "")
        tokens_in, tokens_out, cached = _usage(answer, request.messages, text)
        reason = "length" if choice.finish_reason == "length" else "stop"
        return Generation(text, tokens_in, tokens_out, reason, cached)

    def score(self, request: ScoreRequest) -> Scores:
        """Return log-probabilities by first token, or by the letter of an option where labels begin alike."""
        labels = request.candidates
        if request.assistant_prefix or not self.supports_score:
            raise ScoresUnavailable(f"{self.name} gives no probabilities for this field")
        tokens_in = cached = 0
        if labels not in self._lettered:
            top = self._first_token(request.messages)
            tokens_in, cached = top.tokens_in, top.cached_tokens
            masses = label_masses(top.tokens, labels)
            if masses.known > 0 and masses.ambiguous <= _AMBIGUOUS * masses.known:
                return Scores(masses.logprobs, tokens_in, cached)
            self._lettered.add(labels)
        if len(labels) > min(len(letters()), self._info.top_logprobs):
            raise ScoresUnavailable(f"{len(labels)} labels that begin alike are too many to score", tokens_in=tokens_in)
        top = self._first_token(lettered(request.messages, labels))
        masses = label_masses(top.tokens, letters()[: len(labels)])
        if not masses.known:
            raise ScoresUnavailable(f"{self.name} answers with none of the labels", tokens_in=tokens_in + top.tokens_in)
        return Scores(masses.logprobs, tokens_in + top.tokens_in, cached + top.cached_tokens)

    def _first_token(self, messages: Sequence[Message]) -> TopTokens:
        body = {**_messages(messages), "max_tokens": 1, "temperature": 0.0, "logprobs": True}
        answer = self._send({**body, "top_logprobs": self._info.top_logprobs})
        content = getattr(getattr(answer.choices[0], "logprobs", None), "content", None)
        if not content or not getattr(content[0], "top_logprobs", None):
            self.supports_score = False
            raise ScoresUnavailable(f"{self.name} sends no log-probabilities")
        tokens_in, _, cached = _usage(answer, messages, "")
        tokens = tuple((str(top.token), float(top.logprob)) for top in content[0].top_logprobs)
        return TopTokens(tokens, tokens_in, cached)

    def _decoding(self, request: GenerateRequest) -> dict[str, Any]:
        if self.reasons:  # these take neither temperature nor stop strings, and think on the same budget
            return {"max_completion_tokens": request.max_tokens + self.thinking_tokens}
        body: dict[str, Any] = {"max_tokens": request.max_tokens, "temperature": request.temperature}
        if request.top_p < 1:
            body["top_p"] = request.top_p
        if request.stop:
            body["stop"] = list(request.stop)
        if request.temperature > 0 and self._info.seed:
            body["extra_body"] = {self._info.seed: request.seed}
        return body

    def _send(self, body: dict[str, Any]) -> Any:
        """Return an answer with at least one choice, or raise what the LM understands."""
        try:
            answer: Any = self._client.chat.completions.create(model=self.model, **body)
            if not getattr(answer, "choices", None):
                raise Transient(f"{self._shown} sent no choices")
            return answer
        except openai.APIStatusError as error:
            self._refuse(error, asked_logprobs="logprobs" in body)
        except (openai.APIConnectionError, openai.APIResponseValidationError, ValueError) as error:
            what = "timed out" if isinstance(error, openai.APITimeoutError) else self._clean(error)
            raise Transient(f"{self._shown}: {what}") from None

    def _refuse(self, error: openai.APIStatusError, *, asked_logprobs: bool) -> NoReturn:
        status, text = error.status_code, self._clean(error)
        if status >= 500 or status in (408, 409) or (status == 429 and "insufficient_quota" not in text):
            raise Transient(f"{self._shown}: {text}", retry_after=_retry_after(error)) from None
        if asked_logprobs and status in (400, 422) and "logprob" in text:
            self.supports_score = False
            raise ScoresUnavailable(f"{self.name} gives no probabilities: {text}") from None
        if status in (400, 413, 422) and _TOO_LONG.search(f"{error.code} {text}"):
            raise PromptTooLong(f"a prompt does not fit {self.name!r}: {text}", hint="a shorter input") from None
        variables = " or ".join(self._info.keys) or "--api-base"
        advice = {
            401: f"check the key in {variables}",
            403: f"check what the key in {variables} may do",
            404: f"check the model's name {self.model!r} and the address {self._shown}",
            429: f"the account behind {variables} has no credit left",
        }
        raise ModelError(f"{self.name} refused the call: {text}", hint=advice.get(status, "limbeck doctor")) from None

    def _clean(self, error: Exception) -> str:
        text = str(error) or type(error).__name__
        return (text.replace(self._key, "[key]") if self._key else text)[:500]


def _messages(messages: Sequence[Message]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def _find_key(name: str, variables: Sequence[str], *, needed: bool) -> str:
    for variable in variables:
        if key := os.environ.get(variable, "").strip():
            return key
    if needed and variables:
        raise ModelError(
            f"no key for {name}",
            valid=f"an API key in the environment variable {' or '.join(variables)}",
            hint=f"export {variables[0]}=...",
        )
    return ""


def _without_secrets(url: str) -> str:
    """Return an address without user, password and query, any of which may be a secret."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def _is_local(url: str) -> bool:
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1", "0.0.0.0")


def _retry_after(error: openai.APIStatusError) -> float | None:
    try:
        return max(0.0, float(error.response.headers["retry-after"]))
    except (KeyError, ValueError):  # absent, or a date: then our own pace will do
        return None


def _usage(answer: Any, messages: Sequence[Message], text: str) -> tuple[int, int, int]:
    """Return tokens in, out and cached; about four bytes to a token where the server does not count."""
    usage = getattr(answer, "usage", None)
    if usage is None:
        return sum(len(content.encode()) for _, content in messages) // 4 + 1, len(text.encode()) // 4 + 1, 0
    details = getattr(usage, "prompt_tokens_details", None)
    cached = getattr(details, "cached_tokens", None) or 0
    return usage.prompt_tokens or 0, usage.completion_tokens or 0, cached
