"""GGUF files through llama.cpp (xllamacpp), quantized as they are.

Measured on 2 cores with a 1.5B Q4 model: llama.cpp decodes 28 tok/s for one caller where transformers on the
dequantized weights decodes 31 tok/s in batches of 8 and 60 tok/s in batches of 32; prefill is 65 against
130 tok/s. So llama.cpp writes texts in a quarter of the memory, closed sets are scored by transformers, and
transformers also writes where many callers ask at once and the memory is there.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
import os
import threading
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from limbeck.engine.loading import file_fingerprint, load_model
from limbeck.engine.probe import best_device, best_dtype
from limbeck.engine.requests import GenerateRequest, Generation, ScoreRequest, Scores
from limbeck.engine.torch_engine import TorchEngine
from limbeck.errors import ModelError, PromptTooLong
from limbeck.models.backend import ScoresUnavailable

# Dequantized to bf16, a 4-bit file grows about 3.5 times; the caches want some room as well.
_GROWTH = 4.5
_SEED_BITS = 0x7FFFFFFF


class LlamaCppBackend:
    """A GGUF file; `slots` calls run at once, each with `context_tokens` tokens.

    `generator` "llamacpp" writes with llama.cpp, "torch" with transformers on the dequantized weights, which
    is faster for many callers at once and takes four times the memory; "auto" is "torch" where the weights fit
    and bf16 pays. Scores always come from the dequantized weights, loaded at the first score; where they do not
    fit the memory, ScoresUnavailable.
    """

    supports_prefix = True
    score_source = "exact"
    usd_per_token: tuple[float, float] | None = (0.0, 0.0)
    thinking_tokens = 0

    def __init__(
        self,
        path: Path | str,
        *,
        generator: Literal["llamacpp", "torch", "auto"] = "llamacpp",
        slots: int = 4,
        context_tokens: int = 4096,
        threads: int | None = None,
    ) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise ModelError(f"no model file {str(self.path)!r}", valid="a .gguf file", hint="limbeck doctor")
        self.name = f"gguf:{self.path}"
        self._needed = self.path.stat().st_size * _GROWTH
        # Decided once: a run must not score some rows and generate others as memory comes and goes.
        self.supports_score = self._needed < _free_memory()
        if generator == "auto":
            pays = self.supports_score and best_dtype(best_device()) == torch.bfloat16
            generator = "torch" if pays else "llamacpp"
        self.generator, self.slots, self.context_tokens = generator, slots, context_tokens
        self.weights = file_fingerprint([self.path])
        self.fingerprint = f"{generator}/{self.weights}"
        self._threads = threads or os.cpu_count() or 1
        self._loading = threading.Lock()

    def generate(self, request: GenerateRequest) -> Generation:
        """Answer one request; raises PromptTooLong, and ModelError where the file cannot be run."""
        if self.generator == "torch":
            return self._torch().generate(request)
        body = self._ask(_chat(request))
        choice, usage = body["choices"][0], body["usage"]
        text = str(choice["message"].get("content") or "")
        return Generation(
            text.removeprefix(request.assistant_prefix),  # llama.cpp repeats what it goes on from
            tokens_in=usage["prompt_tokens"],
            tokens_out=usage["completion_tokens"],
            finish_reason="length" if choice["finish_reason"] == "length" else "stop",
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
        )

    def score(self, request: ScoreRequest) -> Scores:
        """Return log p of every candidate under the dequantized weights."""
        if not self.supports_score:
            raise ScoresUnavailable(f"scoring with {self.name} needs {self._needed / 1e9:.1f} GB of memory")
        return self._torch().score(request)

    def _torch(self) -> TorchEngine:
        with self._loading:
            return self._engine

    @cached_property
    def _engine(self) -> TorchEngine:
        return TorchEngine(load_model(self.name))

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        with self._loading:
            server = self._server
        try:
            answer: dict[str, Any] = server.handle_chat_completions(body)
        except TypeError as error:  # text that is no valid Unicode
            raise ModelError(f"{self.name} cannot read this prompt: {error}") from error
        if "error" in answer:
            kind = PromptTooLong if answer["error"].get("type") == "exceed_context_size_error" else ModelError
            raise kind(
                f"{self.name}: {answer['error'].get('message', answer['error'])}",
                valid=f"at most {self.context_tokens} tokens, the answer included",
            )
        return answer

    @cached_property
    def _server(self) -> Any:
        import xllamacpp

        llama: Any = xllamacpp  # compiled, without types
        params = llama.CommonParams()
        params.model.path = str(self.path)
        params.n_parallel = self.slots
        params.n_ctx = self.slots * self.context_tokens  # the slots share it
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._threads
        params.warmup = False
        params.verbosity = -1  # its log would mix with the progress display
        try:
            return llama.Server(params)
        except RuntimeError as error:
            raise ModelError(
                f"llama.cpp cannot load {str(self.path)!r}: {error}",
                valid="a GGUF file of a model family that llama.cpp knows",
                hint="limbeck doctor",
            ) from error


def _chat(request: GenerateRequest) -> dict[str, Any]:
    messages = [{"role": role, "content": content} for role, content in request.messages]
    if request.assistant_prefix:
        messages.append({"role": "assistant", "content": request.assistant_prefix})
    return {
        "messages": messages,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        # llama.cpp's other samplers are switched off, so that temperature and top_p mean what they say.
        "top_k": 0,
        "min_p": 0.0,
        "seed": request.seed & _SEED_BITS,
        "stop": list(request.stop),
        "cache_prompt": True,
    }


def _free_memory() -> float:
    """Return the bytes that can be had without swapping; infinity where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    sizes = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return min(float(sizes["MemAvailable"].split()[0]) * 1024, _container_memory())


def _container_memory() -> float:
    """Return the bytes that a container (cgroup 2) has left; infinity outside one."""
    group = Path("/sys/fs/cgroup")
    try:
        return float((group / "memory.max").read_text()) - float((group / "memory.current").read_text())
    except (OSError, ValueError):  # no cgroup 2, or "max"
        return math.inf
