"""How much a reproduction spends, and what it tells while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from limbeck.errors import InputError
from limbeck.reproduce.catalog import find
from limbeck.reproduce.outcome import Arm, Claim, Curve, Outcome, judge

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

    def conclude(
        self,
        name: str,
        claims: Sequence[Claim],
        arms: Sequence[Arm],
        *,
        unit: str,
        settings: Mapping[str, Any],
        chance: float = 0.0,
        notes: Sequence[str] = (),
        curves: Mapping[str, Curve] | None = None,
        axis: str = "round",
    ) -> Outcome:
        """Return the outcome of the reproduction of this name: every claim beside what the arms say of it.

        Raises InputError for arms of different problems.
        """
        if len({len(arm.scores) for arm in arms}) != 1:
            sizes = ", ".join(f"{arm.name}: {len(arm.scores)}" for arm in arms)
            raise InputError(f"arms with different numbers of problems: {sizes}", valid="the same problems for all")
        by_name = {arm.name: arm for arm in arms}
        compared = tuple(judge(one, by_name[one.better], by_name[one.worse], chance=chance) for one in claims)
        told = {"size": self.pick("quick", "full"), "model": self.model, "seed": self.seed, **settings}
        paper, seconds = find(name).paper, self.seconds
        return Outcome(name, paper, unit, tuple(arms), compared, told, tuple(notes), seconds, dict(curves or {}), axis)
