"""What rounds of self-improvement did: return against round, printed or as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from limbeck.stats import Estimate

RoundStop = Literal["all rounds", "no gain", "nothing to learn", "collapse of diversity", "collapse of score", "failed"]


@dataclass(frozen=True)
class Round:
    """One round's student on the held-out rows; round 0 is the student before the first.

    `score` is the mean with its 95% interval, `gain` the paired difference to the best round before with its standard
    `error`. `diversity` is that of what the student before this round said, `rows` what was trained on, `counts` what
    the round's kind adds.
    """

    number: int
    score: Estimate
    gain: float = 0.0
    error: float = 0.0
    diversity: float = 0.0
    rows: int = 0
    counts: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class RoundReport:
    """All rounds, which one was kept and why there was no further one.

    The kept round was chosen on its score, which therefore flatters: report another one, on rows that chose nothing.
    """

    rounds: tuple[Round, ...]
    best: int
    stop: RoundStop
    reason: str

    def report(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        rounds = [
            {**asdict(one), "score": one.score.mean, "ci95": [one.score.low, one.score.high]} for one in self.rounds
        ]
        return {"rounds": rounds, "best": self.best, "stop": self.stop, "reason": self.reason}

    def __str__(self) -> str:
        """Return the rounds as lines of text, the kept one marked."""
        lines = ["round   score   95% interval     gain    error   diversity   rows"]
        for one in self.rounds:
            mark = "*" if one.number == self.best else " "
            line = f"{one.number:4d} {mark} {one.score.mean:7.3f}   [{one.score.low:.3f}, {one.score.high:.3f}]"
            if one.number:
                line += f"  {one.gain:+7.3f} {one.error:8.3f} {one.diversity:11.3f} {one.rows:6d}"
            lines.append(line)
        return "\n".join([*lines, f"stopped: {self.stop} ({self.reason})"])
