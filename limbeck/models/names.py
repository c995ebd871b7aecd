"""Model names: `embedded`, `gguf:`, `hf:` and `encoder:` with a path, or DSPy's own such as `openai/gpt-5-mini`."""

from __future__ import annotations

import threading
import warnings
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import ModelError
from limbeck.models.backend import Backend
from limbeck.models.kinds import ENCODER_NAMES, LOCAL_NAMES, is_encoder, is_local
from limbeck.models.lm import LM
from limbeck.models.openai_engine import PROVIDERS, OpenAIBackend
from limbeck.models.pricing import UnknownPriceWarning
from limbeck.records import stable_hash

if TYPE_CHECKING:
    from limbeck.ledger import Ledger
    from limbeck.models.budget import Budget

# Weights and connections are shared by every LM of one name while any of them is in use.
_shared: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_sharing = threading.Lock()


def connect(
    name: str,
    *,
    api_base: str | None = None,
    adapter: Path | None = None,
    ledger: Ledger | None = None,
    budget: Budget | None = None,
    role: str = "teacher",
    in_bulk: bool = False,
    **decoding: Any,
) -> LM:
    """Return the LM called `name`: "embedded", "gguf:PATH", "hf:NAME_OR_PATH", "encoder" or "provider/model".

    `api_base` is an OpenAI-compatible server's address (no key is asked for on localhost); `adapter` a PEFT
    folder for local weights, a trained classifier's for an encoder. `in_bulk` says that dozens of calls will
    wait at once: a GGUF file then also writes through transformers where that is faster (see
    `LlamaCppBackend`). `decoding` holds defaults such as temperature, max_tokens and seed, and the LM's own
    options. Raises ModelError for an unknown name, a missing file or a missing key, before anything is paid
    for; warns UnknownPriceWarning where dollars cannot be counted.

    >>> connect("embedded").role  # doctest: +SKIP
    'teacher'
    """
    name = name.rstrip("/") if name.startswith(("hf:", "encoder:")) else name
    key = stable_hash([name, api_base, str(adapter), in_bulk])
    with _sharing:
        backend: Backend | None = _shared.get(key)
        if backend is None:
            backend = _make(name, api_base, adapter, in_bulk)
            _shared[key] = backend
    if backend.usd_per_token is None:
        message = f"the price of {name} is not known: its calls are counted without dollars"
        warnings.warn(message, UnknownPriceWarning, stacklevel=2)
    return LM(name, backend, ledger=ledger, budget=budget, role=role, **decoding)


def _make(name: str, api_base: str | None, adapter: Path | None, in_bulk: bool) -> Backend:
    if is_local(name):
        if api_base is not None:
            raise ModelError(f"{name} runs in this process and has no --api-base", valid="provider/model")
        return _local(name, adapter, in_bulk)
    if adapter is not None:
        raise ModelError(f"{name} cannot carry the adapter {adapter}", valid=LOCAL_NAMES)
    check_name(name, api_base)
    return OpenAIBackend(name, api_base=api_base)


def check_name(name: str, api_base: str | None) -> None:
    """Raise ModelError for a name that stands for no model, or for a GGUF file that is not there."""
    kind, _, rest = name.partition(":")
    if kind == "gguf" and rest and not Path(rest).expanduser().is_file():
        raise ModelError(f"there is no file {rest}", valid="gguf:PATH of a GGUF file", hint="limbeck doctor")
    provider, slash, model = name.partition("/")
    if is_local(name) or (slash and model and (provider in PROVIDERS or api_base is not None)):
        return
    raise ModelError(
        f"unknown model {name!r}",
        valid=f"{LOCAL_NAMES}, {ENCODER_NAMES}, or provider/model with one of "
        + ", ".join(sorted(PROVIDERS))
        + "; any other provider with --api-base URL",
        hint="limbeck doctor",
    )


def _local(name: str, adapter: Path | None, in_bulk: bool) -> Backend:
    # Imported here: torch takes a second, which a hosted teacher need not wait for.
    if name.startswith("gguf:") and adapter is None:
        from limbeck.models.llamacpp import LlamaCppBackend

        return LlamaCppBackend(name.removeprefix("gguf:"), generator="auto" if in_bulk else "llamacpp")
    if is_encoder(name):
        from limbeck.models.encoder_engine import EncoderBackend

        return EncoderBackend.load(name, adapter=adapter)
    from limbeck.models.torch_engine import TorchBackend

    return TorchBackend.load(name, adapter=adapter)
