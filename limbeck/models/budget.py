"""Budgets that hold: each paid call reserves its worst case first, and is refused when that does not fit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from limbeck.errors import BudgetExceeded
from limbeck.ledger import Ledger


@dataclass
class Budget:
    """The most a run may spend on the calls of the LMs it is given to; None is no limit.

    Dollars and tokens (in plus out) are measured on the run's ledger, so a resumed run goes on where it
    stopped; minutes count from the making of this object. A call waits while calls in flight hold
    the rest of the budget, and raises BudgetExceeded once what is left cannot pay for its worst case.

    >>> Budget(max_usd=0.5).limits
    '--max-usd 0.5'
    """

    max_usd: float | None = None
    max_tokens: int | None = None
    max_minutes: float | None = None
    clock: Callable[[], float] = field(default=time.monotonic, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._started = self.clock()
        self._free = threading.Condition()
        self._held_usd, self._held_tokens, self._in_flight = 0.0, 0, 0

    @property
    def limits(self) -> str:
        """The limits that are set, as command line options."""
        options = (
            ("--max-usd", self.max_usd),
            ("--max-tokens", self.max_tokens),
            ("--max-minutes", self.max_minutes),
        )
        return " ".join(f"{name} {value:g}" for name, value in options if value is not None)

    @contextmanager
    def reserve(self, ledger: Ledger, usd: float, tokens: int) -> Generator[None]:
        """Hold `usd` and `tokens` while one call is made; raises BudgetExceeded before it is made."""
        with self._free:
            while not self._fits(ledger, usd, tokens):
                if not self._in_flight:
                    raise self._exceeded(ledger)
                self._free.wait()
            self._held_usd, self._held_tokens = self._held_usd + usd, self._held_tokens + tokens
            self._in_flight += 1
        try:
            yield
        finally:
            with self._free:
                self._held_usd, self._held_tokens = self._held_usd - usd, self._held_tokens - tokens
                self._in_flight -= 1
                self._free.notify_all()

    def check_time(self, ledger: Ledger) -> None:
        """Raise BudgetExceeded where the minutes are spent: for work that makes no calls."""
        if self.max_minutes is not None and self._minutes() >= self.max_minutes:
            raise self._exceeded(ledger)

    def _fits(self, ledger: Ledger, usd: float, tokens: int) -> bool:
        self.check_time(ledger)
        spent = ledger.totals(metered=True)
        if self.max_usd is not None and spent.usd + self._held_usd + usd > self.max_usd:
            return False
        used = spent.tokens_in + spent.tokens_out + self._held_tokens
        return self.max_tokens is None or used + tokens <= self.max_tokens

    def _minutes(self) -> float:
        return (self.clock() - self._started) / 60

    def _exceeded(self, ledger: Ledger) -> BudgetExceeded:
        spent = ledger.totals(metered=True)
        return BudgetExceeded(
            f"the budget is spent: {spent.usd:.4f} USD, {spent.tokens_in + spent.tokens_out} tokens and "
            f"{self._minutes():.1f} minutes used in {spent.calls} calls",
            valid=f"the limits are {self.limits}",
            hint="run the same command again with a larger limit: finished calls are kept and cost nothing",
        )
