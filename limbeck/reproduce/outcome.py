"""What a reproduction measured, beside the paper's claim, and what can be said of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from limbeck.errors import InputError
from limbeck.stats import mean_ci, paired_bootstrap, smallest_detectable

# Points: where on the axis, the mean there, and its interval's ends.
Curve = Sequence[Sequence[float]]
Verdict = Literal["reproduced", "not reproduced", "too small to tell"]


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper that can be measured: arm `better` scores above arm `worse`.

    `effect` is the paper's difference in the score's unit, the smallest of interest where it gives none to compare.
    """

    better: str
    worse: str
    text: str
    effect: float = 0.05


@dataclass(frozen=True)
class Arm:
    """One system's score on every problem, all arms in the same order."""

    name: str
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Compared:
    """A claim with what was measured of it: difference, its 95% interval, and the least effect that would show."""

    claim: Claim
    difference: float
    ci95: tuple[float, float]
    p: float
    detectable: float
    verdict: Verdict


def judge(claim: Claim, better: Arm, worse: Arm, *, chance: float) -> Compared:
    """Return the claim's verdict on scores of the same problems.

    "Too small to tell" needs a start above chance, and rows too few for the paper's effect; a difference that these
    rows would have shown and did not is not reproduced.

    >>> judge(Claim("a", "b", "a is above b"), Arm("a", (1.0,) * 9), Arm("b", (0.0,) * 9), chance=0.0).verdict
    'reproduced'
    """
    found = paired_bootstrap(better.scores, worse.scores)
    detectable = smallest_detectable(better.scores, worse.scores)
    low, high = found.ci95
    able = mean_ci(worse.scores).low > chance
    verdict: Verdict = "not reproduced"
    if low > 0:
        verdict = "reproduced"
    elif high >= 0 and able and detectable > claim.effect:
        verdict = "too small to tell"
    return Compared(claim, found.difference, found.ci95, found.p, detectable, verdict)


@dataclass(frozen=True)
class Outcome:
    """A finished reproduction. `unit` names the score, `settings` and `notes` what it was measured on and how.

    `axis` says what the points of the curves count.
    """

    name: str
    source: str
    unit: str
    arms: tuple[Arm, ...]
    compared: tuple[Compared, ...]
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    curves: Mapping[str, Curve] = field(default_factory=dict[str, Curve])
    axis: str = "round"

    @property
    def verdict(self) -> Verdict:
        """Reproduced where every claim is; not reproduced where one is not."""
        verdicts = {one.verdict for one in self.compared}
        for one in ("not reproduced", "too small to tell"):
            if one in verdicts:
                return one
        return "reproduced"

    def save(self, folder: Path) -> Path:
        """Write `outcome.json` into the folder, whole or not at all; return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "outcome.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=1, default=str), encoding="utf-8")
        part.replace(path)
        return path


def read_outcome(path: Path) -> Outcome:
    """Return the outcome that `Outcome.save` wrote; raises InputError for a file that is none."""
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        raw["arms"] = tuple(Arm(arm["name"], tuple(arm["scores"])) for arm in raw["arms"])
        raw["compared"] = tuple(_compared(one) for one in raw["compared"])
        raw["notes"] = tuple(raw["notes"])
        return Outcome(**raw)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no outcome: {error}", valid="outcome.json of a limbeck reproduce folder"
        ) from error


def _compared(raw: dict[str, Any]) -> Compared:
    raw["claim"], raw["ci95"] = Claim(**raw["claim"]), tuple(raw["ci95"])
    return Compared(**raw)


def told(outcome: Outcome) -> str:
    """Return the outcome as plain text: arms, then claim beside measurement, then the verdict."""
    width = max(len(arm.name) for arm in outcome.arms)
    lines = [f"{outcome.name}: {outcome.source}", f"{outcome.unit}, {len(outcome.arms[0].scores)} problems", ""]
    for arm in outcome.arms:
        mean, low, high = mean_ci(arm.scores)
        lines.append(f"  {arm.name:<{width}}  {mean:.3f} [{low:.3f}, {high:.3f}]")
    for one in outcome.compared:
        low, high = one.ci95
        lines += [
            "",
            f"claim:    {one.claim.text}",
            f"measured: {one.claim.better} - {one.claim.worse} {one.difference:+.3f} [{low:+.3f}, {high:+.3f}], "
            f"p = {one.p:.2g}; these problems show effects from {one.detectable:.3f}",
            f"verdict:  {one.verdict}",
        ]
    return "\n".join([*lines, "", *outcome.notes, f"{outcome.seconds:.0f} s; {_settings(outcome.settings)}"])


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _titled(outcome: Outcome) -> str:
    return f"{outcome.name}, quick" if outcome.settings.get("size") == "quick" else outcome.name


def page(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as Markdown: a table of claims, then every reproduction's arms and settings."""
    lines = ["| reproduction | claim | measured | verdict |", "|---|---|---|---|"]
    for outcome in outcomes:
        for one in outcome.compared:
            low, high = one.ci95
            found = f"{one.claim.better} - {one.claim.worse}: {one.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
            found += "" if one.verdict == "reproduced" else f" (shows effects from {one.detectable:.3f})"
            lines.append(f"| {_titled(outcome)} | {one.claim.text} | {found} | **{one.verdict}** |")
    for outcome in outcomes:
        lines += ["", f"## {_titled(outcome)}", "", f"{outcome.source}. {_settings(outcome.settings)}.", ""]
        lines += [f"| arm | {outcome.unit} |", "|---|---|"]
        for arm in outcome.arms:
            mean, low, high = mean_ci(arm.scores)
            lines.append(f"| {arm.name} | {mean:.3f} [{low:.3f}, {high:.3f}] |")
        lines += ["", *(f"{note}\n" for note in outcome.notes)]
        lines.append(f"{len(outcome.arms[0].scores)} problems, {outcome.seconds / 60:.1f} minutes.")
    return "\n".join(lines) + "\n"
