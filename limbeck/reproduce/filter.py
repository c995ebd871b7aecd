"""Filtering by a classifier of quality (phi-1, Gunasekar et al. 2023; Phi-3, Abdin et al. 2024): is less then more?

A corpus of worked sums is good in about half of its rows: others leave a step out, give the bare answer or slip. A
sample is graded, here exactly; the product's classifier learns the grades and keeps what it finds good
(`limbeck.compile.quality`). Students learn as many rows: unfiltered, filtered, and by a perfect filter. One learns all.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limbeck.compile.quality import QualityConfig, QualityFilter, quality_filter
from limbeck.engine.loading import load_model
from limbeck.errors import StageEmpty
from limbeck.finetune.adapters import detach_lora
from limbeck.finetune.rows import tokenize_rows
from limbeck.reproduce.outcome import Arm, Claim, Outcome
from limbeck.reproduce.setting import Setting
from limbeck.reproduce.solver import GREEDY, LARGEST, LEARNING, fit, graded, is_right, row_of
from limbeck.sums import Sum, first_wrong_step, flawed, make_sums

if TYPE_CHECKING:
    from limbeck.stats import Estimate

UNFILTERED, FILTERED, PERFECT, ALL = "unfiltered", "filtered", "perfect filter", "the whole corpus"
CLAIMS = (Claim(FILTERED, UNFILTERED, "rows that a classifier of quality keeps teach more than as many unfiltered"),)

RIGHT, BARE, SKIPPED, SLIP = "right", "bare answer", "a step left out", "a wrong step"
# What the rows of the corpus are, of a hundred. A text shows what is left out; a slip of a digit it hardly does.
KINDS = {RIGHT: 45, BARE: 25, SKIPPED: 15, SLIP: 15}


@dataclass(frozen=True)
class Sizes:
    """Rows of a student, of the corpus and of the graded sample, tests, and the operations of a sum."""

    rows: int
    corpus: int
    graded: int
    tested: int
    operations: int = 2


@dataclass(frozen=True)
class Written:
    """A row of the corpus: a sum and the solution that stands with it."""

    one: Sum
    steps: tuple[str, ...]
    kind: str

    @property
    def text(self) -> str:
        """What the classifier reads."""
        return "\n".join((self.one.problem, *self.steps))

    @property
    def grade(self) -> int:
        """5 for a solution that is right and whole, 3 for one that only ends right, 1 for any other.

        >>> one = Sum(2, (("+", 3),))
        >>> Written(one, one.steps, RIGHT).grade, Written(one, one.steps[-1:], BARE).grade
        (5, 3)
        """
        if len(self.steps) == len(self.one.steps) and first_wrong_step(self.one, self.steps) is None:
            return 5
        return 3 if is_right(self.one, self.steps) else 1


def corpus_of(sums: Sequence[Sum], seed: int) -> list[Written]:
    """Return the sums with solutions of every kind, drawn by the seed."""
    rng = random.Random(f"{seed}:corpus")
    kinds = rng.choices(list(KINDS), list(KINDS.values()), k=len(sums))
    return [_written(one, kind, rng) for one, kind in zip(sums, kinds, strict=True)]


def _written(one: Sum, kind: str, rng: random.Random) -> Written:
    steps, at = one.steps, rng.randrange(len(one.operations))
    if kind == BARE:
        steps = steps[-1:]
    elif kind == SKIPPED:
        steps = (*steps[:at], *steps[at + 1 :])
    elif kind == SLIP:
        steps = flawed(one, at, seed=rng.randrange(2**31))
    return Written(one, steps, kind)


def filter_of(corpus: Sequence[Written], count: int, seed: int) -> QualityFilter:
    """Return the product's filter, taught by exact grades of `count` rows of the corpus."""
    grades = {row.text: row.grade for row in corpus}
    config = QualityConfig(graded=count, seed=seed)
    return quality_filter(list(grades), lambda sample: [grades[text] for text in sample], config=config)


def run(setting: Setting, sizes: Sizes | None = None) -> Outcome:
    """Filter the corpus, train a student on each part of it and compare them on new sums."""
    sizes = sizes or setting.pick(Sizes(40, 130, 60, 100), Sizes(150, 540, 120, 400))
    sums = make_sums(sizes.corpus + sizes.tested, operations=sizes.operations, largest=LARGEST, seed=setting.seed)
    corpus, tested = corpus_of(sums[: sizes.corpus], setting.seed), sums[sizes.corpus :]
    found = filter_of(corpus, sizes.graded, setting.seed)
    kept = [row for row, keep in zip(corpus, found.keeps([row.text for row in corpus]), strict=True) if keep]
    setting.say(f"the filter keeps {len(kept)} of {len(corpus)} rows")
    if not kept:
        raise StageEmpty(f"the filter kept none of {len(corpus)} rows", hint="another --seed")
    good = [row for row in corpus if row.grade >= QualityConfig().good]
    n = min(sizes.rows, len(kept), len(good))
    parts = {UNFILTERED: corpus[:n], FILTERED: kept[:n], PERFECT: good[:n], ALL: corpus}
    arms = [Arm(name, _taught(setting, name, rows, tested)) for name, rows in parts.items()]
    report = found.report
    return setting.conclude(
        "filter",
        CLAIMS,
        arms,
        unit=GREEDY,
        settings={
            "rows": n,
            "corpus": len(corpus),
            "graded": sizes.graded,
            "operations": sizes.operations,
            "features": report.features,
        },
        notes=[
            f"On {report.held} graded rows kept aside: {_share(report.base)} good; of what the filter keeps "
            f"{_share(report.precision)}, and it keeps {_share(report.recall)} of the good.",
            f"The corpus: {_kinds(corpus)}. Kept: {_kinds(kept)}; learned from: {_kinds(parts[FILTERED])}.",
            "Grades are exact, where the papers' and a run's come from a large model; graded rows are kept by their "
            "grades, others by the classifier.",
        ],
    )


def _taught(setting: Setting, name: str, rows: Sequence[Written], tested: Sequence[Sum]) -> tuple[float, ...]:
    """Return which of the sums a student of these rows answers rightly."""
    student = load_model(setting.model)
    learned = tokenize_rows(student.tokenizer, [row_of(row.one.problem, row.steps) for row in rows])
    student = fit(setting, name, student, learned, LEARNING)
    scores = graded(student, tested)
    detach_lora(student.model)
    return scores


def _kinds(rows: Sequence[Written]) -> str:
    counts = Counter(row.kind for row in rows)
    return ", ".join(f"{counts[kind]} {kind}" for kind in KINDS)


def _share(found: Estimate | None) -> str:
    return "none" if found is None else f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"
