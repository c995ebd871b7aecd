"""What rounds of self-improvement did: return against round, printed, drawn, or as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any, Literal

from limbeck.stats import Estimate

RoundStop = Literal["all rounds", "no gain", "nothing to learn", "collapse of diversity", "collapse of score"]
_WIDTH, _HEIGHT, _MARGIN = 480, 240, 40


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

    def svg(self) -> str:
        """Return a drawing of the score against the round with its intervals, the kept round filled."""
        low = min(one.score.low for one in self.rounds)
        span = (max(one.score.high for one in self.rounds) - low) or 1.0
        last = max(one.number for one in self.rounds) or 1

        def x(number: int) -> float:
            return round(_MARGIN + number / last * (_WIDTH - 2 * _MARGIN), 1)

        def y(score: float) -> float:
            return round(_HEIGHT - _MARGIN - (score - low) / span * (_HEIGHT - 2 * _MARGIN), 1)

        points = " ".join(f"{x(one.number)},{y(one.score.mean)}" for one in self.rounds)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
            f'font-size="11" role="img"><title>{escape(f"score against round; stopped: {self.stop}")}</title>',
            f'<polyline points="{points}" fill="none" stroke="#1f6f8b"/>',
        ]
        for one in self.rounds:
            at, mean = x(one.number), one.score.mean
            fill = "#1f6f8b" if one.number == self.best else "#fff"
            parts += [
                f'<line x1="{at}" x2="{at}" y1="{y(one.score.low)}" y2="{y(one.score.high)}" stroke="#1f6f8b"/>',
                f'<circle cx="{at}" cy="{y(mean)}" r="4" fill="{fill}" stroke="#1f6f8b"/>',
                f'<text x="{at + 7}" y="{y(mean) - 5}">{mean:.3f}</text>',
                f'<text x="{at}" y="{_HEIGHT - _MARGIN / 3:.0f}" text-anchor="middle">{one.number}</text>',
            ]
        return "\n".join([*parts, "</svg>"])
