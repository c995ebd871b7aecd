"""Label descriptions and readable names, induced from gold rows and chosen out of fold.

Nobody can write or recognise an opaque label ("HUM") without knowing what it means: with 48 rows of six
question types a 135M student reaches 0.28. The teacher reads a few rows of the label and of the others and
says what tells them apart; whether that helps is measured by the likelihood of the gold labels on rows the
prompt did not show, a finer signal than accuracy where there are tens of rows.
"""
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import dspy

from limbeck.compile.concurrent import concurrently
from limbeck.compile.demos import draw_demos, with_demos
from limbeck.compile.split import Split
from limbeck.errors import BudgetExceeded, InputError
from limbeck.evaluate import SystemResult, run_system
from limbeck.programs.describe import LabelDescriber, same_words, words_of
from limbeck.task import Task

Progress = Callable[[int, int], None]
# With more labels than this only the opaque ones are described: a call costs seconds on two cores.
MAX_CALLS = 20
_TEXTS, _OTHERS, _TEXT_CHARACTERS = 3, 3, 160
# A probability below this counts as this: one confident mistake must not outweigh twenty right answers.
_FLOOR = 0.01
# Standard errors by which a longer prompt must be better than a shorter one.
_MARGIN = 0.5
_VOWELS = frozenset("aeiouyäöü")
# Short words that say what they mean.
_PLAIN = frozenset({"yes", "no", "on", "off", "ok", "up"})


@dataclass(frozen=True)
class Described:
    """One label, a readable name that no other label of the task has, and its description ("" for none)."""

    label: str
    name: str
    description: str = ""


@dataclass(frozen=True)
class DescriptionChoice:
    """The chosen candidate; `scores` by candidate are means over gold rows of `measure`, higher is better."""

    name: str
    descriptions: Mapping[str, str]
    scores: Mapping[str, float]
    measure: str
    notes: tuple[str, ...] = field(default=())


def readable(label: str) -> str:
    """Return a label as words.

    >>> readable("card_arrival"), readable("LostCard"), readable("HUM")
    ('card arrival', 'lost card', 'hum')
    """
    return " ".join(words_of(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label))) or label


def is_opaque(label: str) -> bool:
    """Return whether a label's name is no word that tells what it means: short capitals, numbers, no vowel.

    >>> [is_opaque(label) for label in ("HUM", "2", "c14", "spam", "card_arrival", "NEGATIVE", "no")]
    [True, True, True, False, False, False, False]
    """
    words = words_of(label)
    if label.lower() in _PLAIN:
        return False
    if len(words) > 1:
        return not any(len(word) > 2 and word.isalpha() for word in words)
    word = words[0] if words else ""
    capitals = label.isupper() and len(word) <= 4
    return capitals or len(word) <= 2 or not word.isalpha() or not _VOWELS & set(word)


def asked_labels(labels: Sequence[str], max_calls: int = MAX_CALLS) -> list[str]:
    """Return the labels that a description is asked for: all, or of many the opaque ones.

    >>> asked_labels(("HUM", "place"), 2), asked_labels(("HUM", "place"), 1)
    (['HUM', 'place'], ['HUM'])
    """
    return [label for label in labels if len(labels) <= max_calls or is_opaque(label)]


def describe_labels(
    task: Task,
    rows: Sequence[dspy.Example],
    lm: dspy.LM,
    *,
    seed: int = 0,
    adapter: Any = None,
    max_calls: int = MAX_CALLS,
    progress: Progress | None = None,
) -> tuple[Described, ...]:
    """Return every label with a readable name and, where the teacher found one, a description.

    One call of about 200 prompt tokens a label; with more than `max_calls` labels only the opaque ones are
    asked for, without contrasting rows. `seed` draws the rows shown. A failed call leaves its label
    undescribed; BudgetExceeded passes through. Raises InputError for a task without a closed set of labels.
    """
    if not task.labels:
        raise InputError(f"task {task.name!r} has no closed set of labels to describe")
    asked = asked_labels(task.labels, max_calls)
    contrast = _OTHERS if len(asked) <= max_calls else 0
    settings = {"lm": lm, **({"adapter": adapter} if adapter is not None else {})}
    describer = LabelDescriber()

    def describe(label: str) -> Described:
        own = [row for row in rows if task.label_of(row) == label]
        others = [row for row in rows if task.label_of(row) != label]
        texts = [_shown(task, row) for row in draw_demos(own, _TEXTS, seed)]
        drawn = draw_demos(others, contrast, seed, labels=task.labels, output=task.label_field)
        with dspy.context(**settings):
            return _ask(describer, task, label, texts, [_shown(task, row) for row in drawn])

    found: dict[str, Described] = {}

    def done(one: Described) -> None:
        found[one.label] = one
        if progress is not None:
            progress(len(found), len(asked))

    concurrently(describe, asked, done=done)
    return _unambiguous([found.get(label, Described(label, "")) for label in task.labels])


def induce_descriptions(
    task: Task,
    rows: Sequence[dspy.Example],
    lm: dspy.LM,
    *,
    seed: int = 0,
    adapter: Any = None,
    max_calls: int = MAX_CALLS,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Return `describe_labels`' descriptions by label, without the labels that got none."""
    described = describe_labels(task, rows, lm, seed=seed, adapter=adapter, max_calls=max_calls, progress=progress)
    return {one.label: one.description for one in described if one.description}


def name_labels(described: Sequence[Described]) -> dict[str, str]:
    """Return the readable name of every label, for students that write "person" more easily than "HUM"."""
    return {one.label: one.name for one in described}


def induce_by_fold(
    task: Task, split: Split, lm: dspy.LM, *, seed: int = 0, adapter: Any = None, max_calls: int = MAX_CALLS
) -> tuple[dict[str, str], ...]:
    """Return one set of descriptions a fold, induced without that fold's rows, for `choose_descriptions`."""
    return tuple(
        induce_descriptions(
            task,
            [split.gold[i] for i in split.fitted_on(fold)],
            lm,
            seed=seed,
            adapter=adapter,
            max_calls=max_calls,
        )
        for fold in range(split.n_folds)
    )


def choose_descriptions(
    task: Task,
    split: Split,
    lm: dspy.LM,
    candidates: Mapping[str, Mapping[str, str]],
    *,
    by_fold: Mapping[str, Sequence[Mapping[str, str]]] | None = None,
    demos: int = 0,
    seed: int = 0,
    adapter: Any = None,
    progress: Progress | None = None,
) -> DescriptionChoice:
    """Return the candidate under which the teacher finds the gold labels of unseen folds likeliest.

    `candidates` map a name ("none", "given", "induced") to descriptions, the shorter prompt first: a later
    one must be better by half a standard error of the paired difference. `by_fold` holds a candidate's
    `induce_by_fold`; without it an induced candidate was written in sight of the rows it is judged on, and
    a note says so. `demos` demonstrations outside the fold are shown. Without folds the last candidate is
    taken, unmeasured. Raises InputError without candidates.
    """
    if not candidates:
        raise InputError("no descriptions to choose from", valid='at least {"none": {}}')
    if not split.n_folds:
        name = list(candidates)[-1]
        note = f"descriptions: {name}, a fixed default, since there are no folds to choose on"
        return DescriptionChoice(name, candidates[name], {}, "none", (note,))
    gold, values = split.gold, dict[str, list[float]]()
    measures: set[str] = set()
    for name, descriptions in candidates.items():
        values[name] = [0.0] * len(gold)
        for fold in range(split.n_folds):
            shown = by_fold[name][fold] if by_fold and name in by_fold else descriptions
            held = split.held_out(fold)
            result = _fold_result(task, split, lm, shown, fold, demos=demos, seed=seed, adapter=adapter)
            measured, measure = gold_likelihood(result, task, [gold[i] for i in held])
            measures.add(measure)
            for i, value in zip(held, measured, strict=True):
                values[name][i] = value
        if progress is not None:
            progress(len(values), len(candidates))
    return _choice(candidates, values, " and ".join(sorted(measures)), by_fold or {})


def gold_likelihood(result: SystemResult, task: Task, rows: Sequence[dspy.Example]) -> tuple[list[float], str]:
    """Return each row's log-probability of its gold label (0.01 at the least), and what was measured.

    Where the model gave no probabilities, the metric's score stands in.
    """
    if all(row is None or task.label_field not in row for row in result.probabilities):
        return list(result.scores), "score"
    values: list[float] = []
    for row, probabilities in zip(rows, result.probabilities, strict=True):
        found = (probabilities or {}).get(task.label_field, {})
        values.append(math.log(max(_FLOOR, found.get(task.label_of(row), 0.0))))
    return values, "log-likelihood"


def _fold_result(
    task: Task,
    split: Split,
    lm: dspy.LM,
    shown: Mapping[str, str],
    fold: int,
    *,
    demos: int,
    seed: int,
    adapter: Any,
) -> SystemResult:
    drawn = draw_demos(
        split.gold,
        demos,
        seed,
        exclude_fold=fold,
        folds=split.folds,
        labels=task.labels,
        output=task.label_field,
    )
    program = with_demos(task.with_descriptions(shown).program, drawn)
    rows = [split.gold[i] for i in split.held_out(fold)]
    return run_system("descriptions", program, lm, rows, task.metric, adapter=adapter, latency_rows=0)


def _choice(
    candidates: Mapping[str, Mapping[str, str]],
    values: Mapping[str, Sequence[float]],
    measure: str,
    by_fold: Mapping[str, Any],
) -> DescriptionChoice:
    names = list(candidates)
    best = names[0]
    for name in names[1:]:
        gains = [a - b for a, b in zip(values[name], values[best], strict=True)]
        mean = sum(gains) / len(gains)
        variance = sum((gain - mean) ** 2 for gain in gains) / max(1, len(gains) - 1)
        if mean > _MARGIN * math.sqrt(variance / len(gains)) and mean > 0:
            best = name
    seen = [name for name in names if name not in by_fold and name.startswith("induced")]
    notes = [f"descriptions: {name} was induced from all gold rows, also those it is judged on" for name in seen]
    scores = {name: sum(values[name]) / len(values[name]) for name in names}
    return DescriptionChoice(best, candidates[best], scores, measure, tuple(notes))


def _ask(describer: LabelDescriber, task: Task, label: str, texts: Sequence[str], others: Sequence[str]) -> Described:
    try:
        found = cast(Any, describer(task=task.instructions, label=label, texts=texts, others=others))
    except BudgetExceeded:
        raise
    except Exception:  # an answer that cannot be read or a call that failed: this label goes without
        return Described(label, "")
    return Described(label, str(found.name), str(found.description))


def _shown(task: Task, row: dspy.Example) -> str:
    values = [" ".join(str(cast(Any, row)[name]).split()) for name in task.input_fields]
    text = values[0] if len(values) == 1 else " | ".join(values)
    return text if len(text) <= _TEXT_CHARACTERS else text[:_TEXT_CHARACTERS].rsplit(" ", 1)[0] + " ..."


def _unambiguous(described: Sequence[Described]) -> tuple[Described, ...]:
    """Drop descriptions that two labels share, and names that another label has or is called by.

    Self-explaining labels keep their own words as their name.
    """
    own = {one.label: readable(one.label) for one in described}
    wanted = {one.label: one.name if one.name and is_opaque(one.label) else own[one.label] for one in described}
    names: dict[str, str] = {}
    for label, name in wanted.items():
        rivals = [other for other in wanted if other != label and name in (wanted[other], own[other])]
        names[label] = own[label] if rivals else name
    if len(set(names.values())) < len(names):  # labels that differ in case or punctuation only
        names = {label: label for label in names}

    def description(one: Described) -> str:
        shared = [other for other in described if same_words(other.description, one.description)]
        return one.description if len(shared) == 1 else ""

    return tuple(Described(one.label, names[one.label], description(one)) for one in described)
