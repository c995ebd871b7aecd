"""The one cut of the labels: train, dev and test rows, and folds over what is not test.

Tens of labels are too few to waste: everything is chosen on out-of-fold predictions over the gold rows (train
and dev together), and only test rows are reported on. Stratified where the task has one closed output.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import dspy

from limbeck.compile.dedup import NearDuplicates, normalize, record_text
from limbeck.errors import InputError
from limbeck.inputs import counted
from limbeck.records import stable_hash
from limbeck.task import Task

TEST_SHARE = 0.3
DEV_SHARE = 1 / 3
# Below this many test rows the 95% interval of an accuracy is wider than 20 points.
FEW_TEST_ROWS = 96
# Similarity from which two of the user's own rows are compared word by word.
_COPY = 0.8
# Of one word: "tonight" and "tonite" are one, "left" and "right" are not.
_SAME_WORD = 0.7


@dataclass(frozen=True)
class Split:
    """The rows by their use; `folds[i]` is the fold of `gold[i]`, in which it is held out."""

    train: tuple[dspy.Example, ...]
    dev: tuple[dspy.Example, ...]
    test: tuple[dspy.Example, ...]
    folds: tuple[int, ...]
    n_folds: int
    notes: tuple[str, ...] = ()

    @property
    def gold(self) -> tuple[dspy.Example, ...]:
        """Every labelled row that is not a test row: train, then dev."""
        return self.train + self.dev

    def held_out(self, fold: int) -> tuple[int, ...]:
        """Return the indices into `gold` that fold `fold` predicts."""
        return tuple(i for i, f in enumerate(self.folds) if f == fold)

    def fitted_on(self, fold: int) -> tuple[int, ...]:
        """Return the indices into `gold` that fold `fold` may learn from."""
        return tuple(i for i, f in enumerate(self.folds) if f != fold)


def make_split(task: Task, *, seed: int = 0, n_folds: int = 3, max_test: int | None = None) -> Split:
    """Return the task's split, the same for the same seed.

    A test set the user gave is used whole (or `max_test` rows of it, drawn by seed); otherwise about 30% of
    the labels become test rows, none from a class that would keep fewer than two, if that is possible.
    `n_folds` is 0 where most classes have one row: fixed defaults then take the place of out-of-fold choices.
    Raises `InputError` if no row can be spared for testing.
    """
    rng = random.Random(seed)
    notes: list[str] = []
    rows, strata = list(task.examples), strata_of(task, task.examples)
    if task.test is not None:
        test, gold = list(task.test), list(range(len(rows)))
        copies = _copies(task, test, rows)
        if 0 < len(copies) < len(test):
            notes.append(f"test-copies: left out {len(copies)} of {len(test)} test rows, near copies of labelled rows")
            test = [row for i, row in enumerate(test) if i not in copies]
        elif copies:
            notes.append("test-copies: every test row is a near copy of a labelled row: the scores flatter")
        if max_test is not None and len(test) > max_test:
            notes.append(f"test-sample: {max_test} of {len(test)} test rows, drawn with seed {seed}")
            # A generator of its own: how many rows are tested changes neither folds nor the order of the labels.
            drawn = random.Random(f"{seed}/test").sample(range(len(test)), max_test)
            test = [test[i] for i in sorted(drawn)]
    else:
        cut = _test_cut(strata, rng, max_test)
        copies = _copies(task, [rows[i] for i in cut], [row for i, row in enumerate(rows) if i not in set(cut)])
        # A copy stays with the labels, where its like is; with nothing but copies the cut stands.
        if 0 < len(copies) < len(cut):
            notes.append(f"test-copies: {counted(len(copies), 'row')} of the cut stay labels, near copies of others")
            cut = [i for at, i in enumerate(cut) if at not in copies]
        test, gold = [rows[i] for i in cut], [i for i in range(len(rows)) if i not in set(cut)]
        notes.append(f"test-cut: {len(test)} of {len(rows)} labels became test rows; --test gives better ones")
    notes += _few_rows_note(len(test))
    taken = _draw(gold, strata, round(DEV_SHARE * len(gold)), 1, rng)
    order = [i for i in gold if i not in taken] + [i for i in gold if i in taken]
    n_folds, fold_notes = _usable_folds([strata[i] for i in order], n_folds)
    folds = _folds([strata[i] for i in order], n_folds, rng)
    part = len(gold) - len(taken)
    return Split(
        tuple(rows[i] for i in order[:part]),
        tuple(rows[i] for i in order[part:]),
        tuple(test),
        folds,
        n_folds,
        (*notes, *fold_notes),
    )


def _copies(task: Task, test: Sequence[dspy.Example], gold: Sequence[dspy.Example]) -> set[int]:
    """Return the test rows that say almost letter for letter what a gold row says, with the same output.

    A copy may differ in punctuation, and in letters of one word. Another word or number may change the answer, and a
    template filled anew is no copy: those are fair tests.
    """

    def text(row: Any) -> str:
        return record_text({name: row[name] for name in task.input_fields})

    def output(row: Any) -> str:
        return stable_hash([row[name] for name in task.output_fields])

    index = NearDuplicates(threshold=_COPY)
    for i, row in enumerate(gold):
        index.add(str(i), text(row))
    found = [(i, row, index.find(text(row))) for i, row in enumerate(test)]
    return {
        i
        for i, row, match in found
        if match
        for like in (gold[int(match.key)],)
        if output(like) == output(row) and _same_words(text(like), text(row))
    }


def _same_words(a: str, b: str) -> bool:
    """Return whether two texts have the same words in order, but for one that is written differently."""
    left, right = normalize(a).split(), normalize(b).split()
    pairs = [pair for pair in zip(left, right, strict=False) if pair[0] != pair[1]]
    if len(left) != len(right) or len(pairs) > 1:
        return False
    return all(not (x + y).isdecimal() and SequenceMatcher(None, x, y).ratio() >= _SAME_WORD for x, y in pairs)


def strata_of(task: Task, examples: Sequence[dspy.Example]) -> list[str]:
    """Return every example's label where the task has one closed output, else "" for all."""
    return [task.label_of(example) for example in examples]


def _test_cut(strata: Sequence[str], rng: random.Random, max_test: int | None) -> list[int]:
    target = min(round(TEST_SHARE * len(strata)), max_test or len(strata))
    indices = list(range(len(strata)))
    cut = _draw(indices, strata, target, 2, rng) or _draw(indices, strata, target, 1, rng)
    if not cut:
        raise InputError(
            f"no row of {len(strata)} can be spared for testing: no class has two",
            valid="a test file, or at least two rows of some class",
            hint="add --test FILE with rows that are labelled the same way",
        )
    return sorted(cut)


def _draw(indices: Sequence[int], strata: Sequence[str], target: int, keep: int, rng: random.Random) -> set[int]:
    """Return up to `target` indices, in proportion to the strata, leaving `keep` of each behind."""
    groups: dict[str, list[int]] = {}
    for i in indices:
        groups.setdefault(strata[i], []).append(i)
    quota = _quota({s: len(g) for s, g in groups.items()}, target, keep, rng)
    return {i for s, group in sorted(groups.items()) for i in rng.sample(group, quota[s])}


def _quota(counts: Mapping[str, int], target: int, keep: int, rng: random.Random) -> dict[str, int]:
    """Return how many of each stratum to take: largest remainders, ties by chance, `keep` left behind."""
    total = sum(counts.values())
    room = {s: max(0, c - keep) for s, c in counts.items()}
    exact = {s: target * c / total if total else 0.0 for s, c in counts.items()}
    quota = {s: min(room[s], math.floor(exact[s])) for s in counts}
    tie = {s: rng.random() for s in sorted(counts)}
    while sum(quota.values()) < min(target, sum(room.values())):
        open_strata = [s for s in counts if quota[s] < room[s]]
        quota[max(open_strata, key=lambda s: (exact[s] - quota[s], tie[s]))] += 1
    return quota


def _usable_folds(strata: Sequence[str], wanted: int) -> tuple[int, list[str]]:
    counts = Counter(strata)
    single = sum(1 for c in counts.values() if c == 1)
    if 2 * single > len(counts) or len(strata) < 4:
        return 0, [
            f"no-folds: {single} of {counted(len(counts), 'class')} with one row to learn from, "
            f"{counted(len(strata), 'row')} in all: nothing can be chosen out of fold, so fixed defaults"
        ]
    n_folds = max(2, min(wanted, len(strata) // 2))
    notes = [f"folds: {n_folds} instead of {wanted}, for {counted(len(strata), 'row')}"] if n_folds < wanted else []
    if single:
        notes.append(f"thin-folds: {counted(single, 'class')} with one row, absent where that row is held out")
    return n_folds, notes


def _folds(strata: Sequence[str], n_folds: int, rng: random.Random) -> tuple[int, ...]:
    """Return the fold of every row: strata dealt out in turn, so that fold sizes differ by one at most."""
    if not n_folds:
        return (0,) * len(strata)
    groups: dict[str, list[int]] = {}
    for i, stratum in enumerate(strata):
        groups.setdefault(stratum, []).append(i)
    folds = [0] * len(strata)
    dealt = 0
    for _, group in sorted(groups.items()):
        for i in rng.sample(group, len(group)):
            folds[i] = dealt % n_folds
            dealt += 1
    return tuple(folds)


def _few_rows_note(n_test: int) -> list[str]:
    if n_test >= FEW_TEST_ROWS:
        return []
    half = 100 * 1.96 * math.sqrt(0.25 / n_test)
    return [f"few-test-rows: with {n_test} test rows a score of 50% is known to +-{half:.0f} points only"]
