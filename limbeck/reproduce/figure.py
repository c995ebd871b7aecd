"""One figure a reproduction: its arms with intervals, or its curves over rounds."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.stats import mean_ci

if TYPE_CHECKING:
    from limbeck.reproduce.outcome import Outcome

_BLUE, _GREY = "#1f5fa8", "#8a8f98"


def draw(outcome: Outcome, path: Path) -> Path:
    """Write the outcome's figure as SVG: curves where it has some, else one line an arm; return the path."""
    from matplotlib.figure import Figure

    curves = bool(outcome.curves)
    figure = Figure(figsize=(7.0, 3.6 if curves else 1.2 + 0.42 * len(outcome.arms)), layout="constrained")
    axes: Any = figure.subplots()
    (_curves if curves else _arms)(axes, outcome)
    axes.set_title(f"{outcome.name}: {outcome.verdict}", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="svg", metadata={"Date": None})
    return path


def _arms(axes: Any, outcome: Outcome) -> None:
    claimed, least = {one.claim.better for one in outcome.compared}, 0.0
    for place, arm in enumerate(reversed(outcome.arms)):
        mean, low, high = mean_ci(arm.scores)
        least = min(least, low)
        color = _BLUE if arm.name in claimed else _GREY
        axes.plot([low, high], [place, place], color=color, linewidth=2, solid_capstyle="round")
        axes.plot([mean], [place], "o", color=color, markersize=6)
        axes.annotate(f"{mean:.2f}", (high, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(outcome.arms)), [arm.name for arm in reversed(outcome.arms)])
    axes.set_xlabel(f"{outcome.unit}, 95% interval")
    axes.set_xlim(left=least, right=1.08)


def _curves(axes: Any, outcome: Outcome) -> None:
    for place, (name, points) in enumerate(outcome.curves.items()):
        color = (_BLUE, _GREY)[place % 2]
        x, mean, low, high = zip(*points, strict=True)
        axes.plot(x, mean, "o-", color=color, label=name)
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_xlabel(outcome.axis)
    axes.set_ylabel(f"{outcome.unit}, 95% interval")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
