"""From tens of labels to a small model its user owns.

>>> import limbeck
>>> config = limbeck.RunConfig(out="runs/tickets", labels="labels.jsonl", output=("label",))  # doctest: +SKIP
>>> limbeck.run(config).report["verdict"]["reason"]  # doctest: +SKIP

Names load on first use: `import limbeck` costs milliseconds, torch and dspy come with what needs them.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.finetune.bootstrap import BootstrapFinetune
    from limbeck.finetune.provider import LoRAProvider
    from limbeck.models.adapter import CompactAdapter
    from limbeck.models.lm import LM
    from limbeck.models.names import connect
    from limbeck.pipeline.config import RunConfig
    from limbeck.pipeline.run import run
    from limbeck.task import Task, task_from_labels

# Read when torch is first imported. A thread that spins at a barrier for long keeps the core from the one it waits
# for: beside one busy program, training on two cores made 0.8 rows/s with 50,000 spins, 1.8 with 10,000, 4.1 with
# 1,000; alone 7.3 with 1,000.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
__all__ = [
    "LM",
    "BootstrapFinetune",
    "CompactAdapter",
    "LoRAProvider",
    "RunConfig",
    "Task",
    "__version__",
    "connect",
    "run",
    "task_from_labels",
]

_HOMES = {
    "BootstrapFinetune": "limbeck.finetune.bootstrap",
    "CompactAdapter": "limbeck.models.adapter",
    "LM": "limbeck.models.lm",
    "LoRAProvider": "limbeck.finetune.provider",
    "RunConfig": "limbeck.pipeline.config",
    "Task": "limbeck.task",
    "connect": "limbeck.models.names",
    "run": "limbeck.pipeline.run",
    "task_from_labels": "limbeck.task",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
