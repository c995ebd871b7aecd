"""How much a reproduction spends, and what it tells while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """What a reproduction is run with: the base model, the seed, and `quick` for a fifth of the work.

    `data` is a file of the user's own rows where the reproduction can use one, with the column `output` to predict.
    `tell` is called with each line of progress.
    """

    folder: Path
    model: str = "embedded"
    quick: bool = False
    seed: int = 0
    data: str = ""
    output: str = ""
    tell: Callable[[str], None] = print
    started: float = field(default_factory=time.monotonic)

    def pick(self, quick: T, full: T) -> T:
        """Return the value for this size of run."""
        return quick if self.quick else full

    def say(self, text: str) -> None:
        """Tell one line of progress with the time since the start."""
        self.tell(f"{self.seconds / 60:5.1f} min  {text}")

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started
