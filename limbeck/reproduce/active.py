"""Active learning for process supervision (Lightman et al. 2023): are labels of convincing wrong answers worth more?

A first process model, trained on a few random solutions, scores all others. Process models are then trained on those
few and on further solutions: mostly wrong answers that the first model believes in (`limbeck.compile.active`), or
random ones. Both choose among N solutions of new sums, and the random curve says how many labels the chosen ones save.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from limbeck.compile.active import choose_to_label
from limbeck.errors import StageEmpty
from limbeck.finetune.adapters import detach_lora
from limbeck.finetune.process import RewardModel, process_rows, solution_score
from limbeck.reproduce import prm
from limbeck.reproduce.outcome import Arm, Claim, Outcome
from limbeck.reproduce.setting import Setting
from limbeck.stats import mean_ci

if TYPE_CHECKING:
    from limbeck.steps import Solution

CHOSEN, RANDOM = "labels of chosen solutions", "labels of random solutions"
CLAIMS = (Claim(CHOSEN, RANDOM, "labels of convincing wrong answers teach more than as many random ones (2.6 times)"),)
_DRAWS = 2000

Scores = tuple[float, ...]


@dataclass(frozen=True)
class Sizes:
    """How many solutions are labelled: at `first`, and in all where they are chosen and where they are random.

    The claim compares the sizes that both have; larger random ones say what the chosen ones save.
    """

    first: int
    chosen: tuple[int, ...]
    random: tuple[int, ...]
    sums: prm.Sizes = field(default_factory=lambda: prm.Sizes(200, 150, 200))


def run(setting: Setting, sizes: Sizes | None = None) -> Outcome:
    """Train the solver, then process models on ever more labels of both kinds, and compare what they choose."""
    sizes = sizes or setting.pick(
        Sizes(20, (40, 80), (40, 80, 160), prm.Sizes(120, 30, 60)), Sizes(40, (80, 160), (80, 160, 400))
    )
    drawn = prm.draw(setting, sizes.sums)
    order = list(drawn.solutions)
    random.Random(setting.seed).shuffle(order)
    most = max(*sizes.chosen, *sizes.random)
    if len(order) < most:
        raise StageEmpty(f"{len(order)} different solutions, and {most} are to be labelled", hint="another --model")
    first, rest = order[: sizes.first], order[sizes.first :]
    selector = _trained(setting, first, "first labels")
    start = _choices(selector, drawn)
    scores = [solution_score(one) for one in selector.steps([(one.problem, one.steps) for one in rest])]
    detach_lora(selector.loaded.model)
    picked = {k: choose_to_label(rest, scores, k - len(first), seed=setting.seed) for k in sizes.chosen}
    measure = partial(_measured, setting, drawn)
    chosen = {k: measure([*first, *picked[k].solutions], f"{k} labels, chosen") for k in sizes.chosen}
    at_random = {k: measure(order[:k], f"{k} labels, random") for k in sizes.random}
    both = [k for k in sizes.chosen if k in at_random]
    arms = [
        Arm(CHOSEN, _mean([chosen[k] for k in both])),
        Arm(RANDOM, _mean([at_random[k] for k in both])),
        Arm(f"{sizes.first} labels, the start", start),
        *(Arm(f"{k} labels, chosen", one) for k, one in chosen.items()),
        *(Arm(f"{k} labels, random", one) for k, one in at_random.items()),
        *drawn.bounds(),
    ]
    curve = {sizes.first: start, **at_random}
    wrong = sum(one.convincing for one in picked.values())
    return setting.conclude(
        "active",
        CLAIMS,
        arms,
        unit="share of sums answered rightly",
        settings={
            "N": sizes.sums.n,
            "operations": sizes.sums.operations,
            "solutions to choose from": len(order),
            "first labels": sizes.first,
            "labels compared": " and ".join(map(str, both)),
        },
        notes=[
            f"Both begin with the same {sizes.first} random labels, which count; of the further chosen ones {wrong} "
            "are convincing wrong answers. The first two arms are means over the sizes compared.",
            *(told(factor(k, one, curve)) for k, one in chosen.items()),
            "Intervals are over problems: one choice of labels and one training each.",
        ],
        curves={"chosen": _points({sizes.first: start, **chosen}), "random": _points(curve)},
        axis="labelled solutions",
    )


def _trained(setting: Setting, solutions: Sequence[Solution], what: str) -> RewardModel:
    return prm.train_reward(setting, what, process_rows, list(solutions))


def _choices(model: RewardModel, drawn: prm.Drawn) -> Scores:
    asked = drawn.asked()
    return prm.ranked(prm.known(asked, [solution_score(one) for one in model.steps(asked)]), drawn)


def _measured(setting: Setting, drawn: prm.Drawn, solutions: Sequence[Solution], what: str) -> Scores:
    """Train a process model on labelled solutions and return whether each of its choices is right."""
    model = _trained(setting, solutions, what)
    scores = _choices(model, drawn)
    detach_lora(model.loaded.model)
    return scores


def _mean(parts: Sequence[Scores]) -> Scores:
    return tuple(np.mean(parts, axis=0).tolist())


def _points(curve: Mapping[int, Scores]) -> list[list[float]]:
    return [[float(labels), *mean_ci(scores)] for labels, scores in curve.items()]


@dataclass(frozen=True)
class Factor:
    """How many random labels do what `labels` chosen ones do, as a multiple with its 95% interval over problems.

    `least` and `most` are the smallest and largest multiple that the random sizes can show.
    """

    labels: int
    value: float
    ci95: tuple[float, float]
    least: float
    most: float


def factor(labels: int, chosen: Scores, curve: Mapping[int, Scores]) -> Factor:
    """Return the factor at this many chosen labels; `curve` has the scores of ever more random ones."""
    sizes = list(curve)
    scores_S_N, chosen_N = np.array(list(curve.values())), np.array(chosen)
    draws = np.random.default_rng(0).integers(0, len(chosen), (_DRAWS, len(chosen)))
    drawn = [labels_for(float(chosen_N[d].mean()), sizes, scores_S_N[:, d].mean(axis=1).tolist()) for d in draws]
    low, high = np.quantile(np.array(drawn), [0.025, 0.975]) / labels
    value = labels_for(float(chosen_N.mean()), sizes, scores_S_N.mean(axis=1).tolist()) / labels
    return Factor(labels, value, (float(low), float(high)), sizes[0] / labels, sizes[-1] / labels)


def labels_for(score: float, sizes: Sequence[float], scores: Sequence[float]) -> float:
    """Return how many labels reach a score, interpolated between the logarithms of the sizes.

    It is no less than the first size and no more than the last, and more labels count as no worse than fewer.

    >>> labels_for(0.5, [100, 400], [0.4, 0.6]), labels_for(0.7, [100, 400], [0.4, 0.6])
    (200.0, 400.0)
    """
    best = np.maximum.accumulate(np.asarray(scores, dtype=np.float64))
    if score <= best[0] or score > best[-1]:
        return float(sizes[0] if score <= best[0] else sizes[-1])
    place = int(np.searchsorted(best, score))
    share = (score - best[place - 1]) / (best[place] - best[place - 1])
    low, high = math.log(sizes[place - 1]), math.log(sizes[place])
    return round(math.exp(low + float(share) * (high - low)), 6)


def told(found: Factor) -> str:
    """Return the factor in a sentence, "at least" and "at most" where the sizes show no more.

    >>> told(Factor(80, 5.0, (0.9, 5.0), 0.5, 5.0))
    '80 chosen labels do what at least 5.0 times as many random ones do [0.9, at least 5.0] (paper: 2.6).'
    """

    def bounded(value: float) -> str:
        bound = "at least " if value >= found.most else "at most " if value <= found.least else ""
        return f"{bound}{value:.1f}"

    low, high = map(bounded, found.ci95)
    return (
        f"{found.labels} chosen labels do what {bounded(found.value)} times as many random ones do [{low}, {high}] "
        "(paper: 2.6)."
    )
