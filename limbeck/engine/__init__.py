"""Local models: loading, batched generation over a shared prefix cache, scoring of closed sets, embeddings.

Knows torch, transformers and peft, nothing of DSPy. The request types import without torch; the rest of the
names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from limbeck.engine.requests import GenerateRequest, Generation, ScoreRequest, Scores

if TYPE_CHECKING:
    from limbeck.engine.embedding import embed, encode
    from limbeck.engine.loading import LoadedModel, embedded_path, encoder_path, load_model
    from limbeck.engine.probe import best_dtype, set_threads
    from limbeck.engine.torch_engine import TorchEngine

_HOMES = {
    "LoadedModel": "loading",
    "TorchEngine": "torch_engine",
    "best_dtype": "probe",
    "embed": "embedding",
    "embedded_path": "loading",
    "encode": "embedding",
    "encoder_path": "loading",
    "load_model": "loading",
    "set_threads": "probe",
}

__all__ = [
    "GenerateRequest",
    "Generation",
    "LoadedModel",
    "ScoreRequest",
    "Scores",
    "TorchEngine",
    "best_dtype",
    "embed",
    "embedded_path",
    "encode",
    "encoder_path",
    "load_model",
    "set_threads",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
