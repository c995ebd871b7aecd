"""Which solutions people label next: mostly wrong answers that the present reward model believes in.

Lightman et al. 2023 (arXiv:2305.20050): of what is labelled, 80% are the wrong answers with the highest scores, where
the model errs for certain, and 20% are drawn from the others, so that it is not taught by its errors alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.errors import InputError
from limbeck.steps import Solution


@dataclass(frozen=True)
class Chosen:
    """Solutions to label in a random order, and how many of them are convincing wrong ones and random others."""

    solutions: tuple[Solution, ...]
    convincing: int
    others: int


def choose_to_label(
    solutions: Sequence[Solution], scores: Sequence[float], n: int, *, share: float = 0.8, seed: int = 0
) -> Chosen:
    """Return at most `n` solutions to label, each once, the same for the same seed.

    `share` of them are those with the highest `scores` (one a solution) among the answers known to be wrong, the rest
    is drawn at random from all others; where there are too few wrong answers, more of it is. Raises InputError for a
    number out of range.
    """
    if n < 1 or not 0 <= share <= 1:
        raise InputError(f"{n} solutions to label, {share:g} of them convincing", valid="1 or more, a share of 0 to 1")
    if len(scores) != len(solutions):
        raise InputError(f"{len(scores)} scores for {len(solutions)} solutions", valid="one a solution")
    rated = {one.id: (score, one) for one, score in zip(solutions, scores, strict=True)}
    wrong = sorted((-score, name) for name, (score, one) in rated.items() if one.right is False)
    first = [name for _, name in wrong[: round(share * n)]]
    rng = random.Random(seed)
    left = sorted(rated.keys() - set(first))
    others = rng.sample(left, min(n - len(first), len(left)))
    names = [*first, *others]
    rng.shuffle(names)
    return Chosen(tuple(rated[name][1] for name in names), len(first), len(others))
