"""Feedback of a model under a constitution: how many answers break each principle, and which of two is better.

Preferences after Bai et al. 2022 (arXiv:2212.08073): two answers to a request, one principle drawn at random, and the
probabilities of "A" and "B" as a soft label; both orders are asked and averaged, since judges favour a place.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from limbeck.compile.concurrent import concurrently
from limbeck.compile.label import LabelConfig, Labeler, answer_all, prompt_hash
from limbeck.errors import BudgetExceeded, CallFailed, ModelError, StageEmpty
from limbeck.preferences import Preference
from limbeck.principles import Principle
from limbeck.programs.constitution import PrincipleComparer, ViolationJudge
from limbeck.programs.judge import PositionBias, as_request, position_bias
from limbeck.records import SELF_RATED, Provenance, Record, stable_hash
from limbeck.stats import Estimate, Paired, mean_ci, paired_bootstrap

METHOD = "constitutional"
ANY = "any principle"
IDENTICAL, TIE, UNPARSABLE = "identical", "tie", "unparsable"
Progress = Callable[[int, int], None]
# Calls without one that can be read, after which there will be none.
_PATIENCE = 24


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to the same inputs, by output field, with the records they come from and their block."""

    inputs: Mapping[str, Any]
    first: Mapping[str, Any]
    second: Mapping[str, Any]
    parents: tuple[str, ...] = ()
    block: int = -1


@dataclass(frozen=True)
class PreferenceConfig:
    """How pairs are compared.

    With `reasons` the model reasons first, and its probabilities are clamped to 0.4 to 0.6. `votes` answers are
    counted where a model gives no probabilities. A probability within `margin` of one half is a tie.
    """

    reasons: bool = False
    votes: int = 5
    margin: float = 0.0
    threads: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Preferred:
    """The preferences, what was dropped by reason (identical, tie, unparsable), and how the judge favours a place."""

    preferences: tuple[Preference, ...]
    counts: Mapping[str, int]
    bias: PositionBias | None


@dataclass(frozen=True)
class Violations:
    """The verdicts on each text by one principle: True where it is broken, None where that could not be read."""

    principle: str
    verdicts: tuple[bool | None, ...]

    @property
    def rate(self) -> Estimate | None:
        """The share of readable texts that break it with its 95% interval, None without one."""
        known = [float(verdict) for verdict in self.verdicts if verdict is not None]
        return mean_ci(known) if known else None


@dataclass(frozen=True)
class Change:
    """The rates of one principle before and after on the same rows, and their paired difference after - before."""

    principle: str
    before: Estimate
    after: Estimate
    paired: Paired
    rows: int

    def report(self) -> dict[str, Any]:
        """Return the numbers as JSON holds them."""
        return {
            "principle": self.principle,
            "before": list(self.before),
            "after": list(self.after),
            "difference": self.paired.difference,
            "ci95": list(self.paired.ci95),
            "p": self.paired.p,
            "rows": self.rows,
        }


def violations(
    rows: Sequence[tuple[Mapping[str, Any], str]],
    principles: Sequence[Principle],
    lm: dspy.LM,
    *,
    adapter: Any,
    program: dspy.Module | None = None,
    threads: int = 16,
    progress: Progress | None = None,
) -> tuple[Violations, ...]:
    """Return the verdicts on texts, given with the inputs they answer, by each principle and by any of them.

    One call a text and principle. A verdict that cannot be read is None; StageEmpty is raised where none, or none of
    the first 24, can be.
    BudgetExceeded and KeyboardInterrupt pass through.
    """
    jobs = [(inputs, text, principle) for principle in principles for inputs, text in rows]
    chances = breaking_chances(jobs, lm, adapter=adapter, program=program, threads=threads, progress=progress)
    found = [None if chance is None else chance > 0.5 for chance in chances]
    size = len(rows)
    by_principle = [
        Violations(principle.name, tuple(found[at * size : (at + 1) * size])) for at, principle in enumerate(principles)
    ]
    # One broken principle is enough; that none is broken takes all verdicts.
    together = [_any([one.verdicts[row] for one in by_principle]) for row in range(size)]
    return (*by_principle, Violations(ANY, tuple(together)))


def breaking_chances(
    jobs: Sequence[tuple[Mapping[str, Any], str, Principle]],
    lm: dspy.LM,
    *,
    adapter: Any,
    program: dspy.Module | None = None,
    threads: int = 16,
    progress: Progress | None = None,
) -> list[float | None]:
    """Return for inputs, a text that answers them, and a principle each the probability that the text breaks it.

    None where that cannot be read; StageEmpty is raised where none, or none of the first 24, can be. BudgetExceeded,
    KeyboardInterrupt and the ModelError of a model that cannot be reached pass through.
    """
    judge: Any = program or ViolationJudge()
    errors: list[str] = []
    done: list[float | str] = []

    def ask(job: tuple[Mapping[str, Any], str, Principle]) -> float | str:
        inputs, text, principle = job
        with dspy.context(lm=lm, adapter=adapter, trace=None):
            try:
                return float(judge(as_request(inputs), text, principle).chance)
            except CallFailed as error:
                return f"CallFailed: {error}"
            except (BudgetExceeded, ModelError):
                raise
            except Exception as error:  # one unparsable verdict never ends a stage
                return f"{type(error).__name__}: {error}"

    def watch(found: float | str) -> None:
        errors.extend([found] if isinstance(found, str) else [])
        done.append(found)
        if len(errors) == len(done) and len(done) in (_PATIENCE, len(jobs)):
            raise StageEmpty(f"none of {len(done)} verdicts could be read; the first: {errors[0]}")
        if progress is not None:
            progress(len(done), len(jobs))

    found = concurrently(ask, jobs, threads=threads, done=watch)
    return [None if isinstance(chance, str) else chance for chance in found]


def compare_violations(
    before: Sequence[Violations], after: Sequence[Violations], *, seed: int = 0
) -> tuple[Change, ...]:
    """Return each principle's change over the rows that could be read both times; `after` is of the same rows.

    >>> old, new = Violations("short", (True, True, False, None)), Violations("short", (False, True, False, False))
    >>> change = compare_violations([old], [new])[0]
    >>> round(change.before.mean, 2), round(change.after.mean, 2), change.rows
    (0.67, 0.33, 3)
    """
    changes: list[Change] = []
    later = {one.principle: one for one in after}
    for old in before:
        pairs = zip(old.verdicts, later[old.principle].verdicts, strict=True)
        both = [(float(a), float(b)) for a, b in pairs if a is not None and b is not None]
        if both:
            was, now = [a for a, _ in both], [b for _, b in both]
            paired = paired_bootstrap(now, was, seed)
            changes.append(Change(old.principle, mean_ci(was, seed), mean_ci(now, seed), paired, len(both)))
    return tuple(changes)


def sample_pairs(
    records: Sequence[Record], labeler: Labeler, *, temperature: float = 0.8, threads: int = 16, seed: int = 0
) -> list[AnswerPair]:
    """Return two sampled answers to each row that gets two; raises what `answer_all` does."""
    blocks = [labeler.block_for(record.provenance.block) for record in records]
    inputs = [record.inputs for record in records]
    sampled = [
        answer_all(
            inputs, labeler, blocks=blocks, config=LabelConfig(METHOD, 1, temperature, threads, 2 * seed + number)
        )
        for number in range(2)
    ]
    return [
        AnswerPair(record.inputs, first.outputs, second.outputs, (record.id,), record.provenance.block)
        for record, first, second in zip(records, *sampled, strict=True)
        if not first.reason and not second.reason
    ]


def prefer(
    pairs: Sequence[AnswerPair],
    principles: Sequence[Principle],
    lm: dspy.LM,
    *,
    adapter: Any,
    config: PreferenceConfig | None = None,
    program: PrincipleComparer | None = None,
    progress: Progress | None = None,
) -> Preferred:
    """Return which answer of each pair is better by a principle drawn by the seed; the same for the same seed.

    Pairs whose answers are the same are dropped before any call, ties and what cannot be read after it. Raises
    StageEmpty where none, or none of the first 24, could be read; BudgetExceeded and KeyboardInterrupt pass through.
    """
    config = config or PreferenceConfig()
    comparer = program or PrincipleComparer(principles, reasons=config.reasons, votes=config.votes)
    counts: Counter[str] = Counter({IDENTICAL: 0, TIE: 0, UNPARSABLE: 0})
    asked = [pair for pair in pairs if _text(pair.first).split() != _text(pair.second).split()]
    counts[IDENTICAL] = len(pairs) - len(asked)
    jobs = [(pair, _principle(principles, pair, config.seed)) for pair in asked]
    done: list[Any] = []

    def ask(job: tuple[AnswerPair, Principle]) -> Any:
        pair, principle = job
        with dspy.context(lm=lm, adapter=adapter, trace=None):
            try:
                return comparer(as_request(pair.inputs), _text(pair.first), _text(pair.second), principle)
            except BudgetExceeded:
                raise
            except Exception as error:  # one unparsable answer never ends a stage
                return dspy.Prediction(score=None, forwards=None, unparsable=2, source="", error=f"{error}")

    def watch(made: Any) -> None:
        done.append(made)
        if len(done) in (_PATIENCE, len(jobs)) and all(one.score is None for one in done):
            raise StageEmpty(f"none of {len(done)} comparisons could be read; the first: {done[0].error}")
        if progress is not None:
            progress(len(done), len(jobs))

    found = concurrently(ask, jobs, threads=config.threads, done=watch)
    made: list[Preference] = []
    for (pair, principle), one in zip(jobs, found, strict=True):
        if one.score is None:
            counts[UNPARSABLE] += 1
        elif abs(one.score - 0.5) <= config.margin:
            counts[TIE] += 1
        else:
            origin = _origin(pair, lm, prompt_hash(comparer.comparers[principle.name]), config.seed, str(one.source))
            made.append(_preference(pair, float(one.score), principle.name, origin))
    return Preferred(tuple(made), dict(counts), position_bias(found, seed=config.seed))


def _any(verdicts: Sequence[bool | None]) -> bool | None:
    if True in verdicts:
        return True
    return None if None in verdicts else False


def _text(outputs: Mapping[str, Any]) -> str:
    return as_request(outputs)


def _principle(principles: Sequence[Principle], pair: AnswerPair, seed: int) -> Principle:
    rng = random.Random(stable_hash([seed, dict(pair.inputs), dict(pair.first), dict(pair.second)]))
    return rng.choices(principles, [principle.weight for principle in principles])[0]


def _origin(pair: AnswerPair, lm: dspy.LM, prompt: str, seed: int, source: str) -> Provenance:
    return Provenance(
        METHOD,
        parents=pair.parents,
        teacher=str(lm.model),
        prompt_hash=prompt,
        seed=seed,
        level=SELF_RATED,
        block=pair.block,
        attributes=source,
    )


def _preference(pair: AnswerPair, score: float, principle: str, origin: Provenance) -> Preference:
    first = score > 0.5
    chosen, rejected = (pair.first, pair.second) if first else (pair.second, pair.first)
    return Preference(dict(pair.inputs), dict(chosen), dict(rejected), max(score, 1 - score), principle, origin)
