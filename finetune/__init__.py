"""Everything that changes weights: training rows, the LoRA loop, and DSPy's fine-tuning on local models.

The loop imports torch, transformers and peft and nothing of DSPy; names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.finetune.bootstrap import BootstrapFinetune
    from limbeck.finetune.loop import Progress, TrainConfig, TrainResult, train
    from limbeck.finetune.objectives import Objective
    from limbeck.finetune.provider import LoRAProvider
    from limbeck.finetune.rows import TrainRow, tokenize_rows

_HOMES = {
    "BootstrapFinetune": "bootstrap",
    "LoRAProvider": "provider",
    "Objective": "objectives",
    "Progress": "loop",
    "TrainConfig": "loop",
    "TrainResult": "loop",
    "TrainRow": "rows",
    "tokenize_rows": "rows",
    "train": "loop",
}

__all__ = [
    "BootstrapFinetune",
    "LoRAProvider",
    "Objective",
    "Progress",
    "TrainConfig",
    "TrainResult",
    "TrainRow",
    "tokenize_rows",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
