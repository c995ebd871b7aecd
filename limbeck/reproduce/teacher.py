"""A tuned small model where the product has its teacher: the LM behind the programs of a method."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from limbeck.engine.torch_engine import TorchEngine
from limbeck.finetune.adapters import detach_lora
from limbeck.models import LM, TorchBackend

if TYPE_CHECKING:
    from limbeck.engine.loading import LoadedModel

# Calls that wait at once: their answers are written side by side.
THREADS = 32


@contextmanager
def teaching(tuned: LoadedModel) -> Generator[LM]:
    """Give a tuned model as the LM of programs; at the end its layers are taken out again."""
    engine = TorchEngine(tuned)
    try:
        yield LM(f"tuned/{tuned.name}", TorchBackend(engine))
    finally:
        engine.close()
        detach_lora(tuned.model)
