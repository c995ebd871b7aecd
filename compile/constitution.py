"""Answers revised under a constitution: the supervised part of Constitutional AI (Bai et al. 2022, arXiv:2212.08073).

An answer is criticised by a principle drawn at random and revised, up to four times, and the last revision is what is
learned; first and last answer are pairs to be compared (`limbeck.compile.aifeedback`). Unlike the paper, a critique
that says there is nothing to criticise leaves the answer as it is. The model rates what it wrote itself: level 5. Gold
rows are answered anew, for a person's answer is not the model's to revise.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import dspy

from limbeck.compile.aifeedback import METHOD, AnswerPair, PreferenceConfig, compare_violations, prefer, violations
from limbeck.compile.children import child_of, first_answers, pick_rows
from limbeck.compile.concurrent import concurrently
from limbeck.compile.label import LabelConfig, Labeler, prompt_hash
from limbeck.compile.prompts import blind
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import Cost, Materials, Synthesized, block_of_child
from limbeck.errors import BudgetExceeded, InputError, StageEmpty
from limbeck.preferences import Preference
from limbeck.principles import Principle, read_principles
from limbeck.programs.constitution import Reviser, ViolationJudge
from limbeck.programs.judge import as_request
from limbeck.records import SELF_RATED, Record, stable_hash

Progress = Callable[[int, int], None]
_UNPARSABLE = "unparsable"
_SHOWN = 160


@dataclass(frozen=True)
class ConstitutionConfig:
    """How answers are revised.

    Each row draws `rounds` principles by their weights, none twice. A revision may take three times the tokens of what
    it revises, `most_tokens` at the most. With `measure` every answer is judged by every principle before and after,
    which takes two calls more a row and principle. With `prefer` the last revision of each row and its first answer are
    compared by one principle, in both orders. StageEmpty when the first `patience` rows cannot be read.
    """

    rounds: int = 4
    temperature: float = 0.7
    critique_tokens: int = 120
    most_tokens: int = 512
    measure: bool = False
    prefer: bool = True
    patience: int = 24
    threads: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Revised:
    """One record a row, with each one's answer as it was before; `outcomes` counts what the rounds came to."""

    records: tuple[Record, ...]
    before: tuple[str, ...]
    outcomes: Mapping[str, int]

    @property
    def changed(self) -> int:
        """How many kept records have another answer than before."""
        rows = [(r, old) for r, old in zip(self.records, self.before, strict=True) if r.kept]
        return sum(str(next(iter(r.outputs.values()))) != old for r, old in rows)

    def pairs(self) -> list[AnswerPair]:
        """Return the last revision and the first answer of each row that has changed."""
        return [
            AnswerPair(record.inputs, record.outputs, dict.fromkeys(record.outputs, old), (record.id,), block)
            for record, old in zip(self.records, self.before, strict=True)
            for block in [record.provenance.block]
            if record.kept and record.provenance.attributes
        ]


class Constitutional:
    """Answers revised under a constitution; see `limbeck.compile.constitution`.

    Demonstrations of a compiled prompt take the place of the built-in ones.
    """

    name = METHOD
    begins = False
    cost = Cost(calls=11.0, answers=0.0, each=True)

    def __init__(self, config: ConstitutionConfig | None = None) -> None:
        self.config = config or ConstitutionConfig()

    def check(self, source: Source, options: Mapping[str, Any]) -> None:
        """Raise InputError for a task that answers with something else than one text, and for a bad constitution."""
        text_field(source)
        read_principles(str(options.get("constitution") or ""))

    def programs(self, source: Source) -> dict[str, dspy.Module]:
        """Return the programs that revise and that judge."""
        return {"revise": Reviser(), "judge": ViolationJudge()}

    def __call__(self, records: Sequence[Record], materials: Materials, wanted: int) -> Synthesized:
        """Return one record a row, of at most `wanted` rows, with the last revision of its answer."""
        principles = read_principles(str(materials.options.get("constitution") or ""))
        programs = materials.programs(self)
        done = revise(
            pick_rows(records, wanted, materials.seed),
            materials.source,
            principles,
            replace(materials.labeler, lm=materials.lm),
            config=replace(self.config, threads=materials.threads, seed=materials.seed),
            program=programs["revise"],
            progress=materials.show("revising answers"),
        )
        kept = sum(record.kept for record in done.records)
        log: dict[str, Any] = {"changed": done.changed, "unchanged": kept - done.changed, "rounds": dict(done.outcomes)}
        if self.config.measure:
            log["violations"] = self._measured(done, principles, programs["judge"], materials)
        preferences = self._preferred(done, principles, materials, log) if self.config.prefer else ()
        refused = log.get("preferences", {}).get("refused")
        told = {"warnings": [f"{METHOD}: no preferences: {refused}"]} if refused else {}
        return Synthesized(done.records, {}, {METHOD: log, **told}, preferences)

    def _preferred(
        self, done: Revised, principles: Sequence[Principle], materials: Materials, log: dict[str, Any]
    ) -> tuple[Preference, ...]:
        """Return which of a row's two answers is better by a principle each; what was left out goes into the log."""
        pairs = done.pairs()
        if not pairs:
            return ()
        config = PreferenceConfig(threads=materials.threads, seed=materials.seed)
        show = materials.show("comparing answers")
        try:
            found = prefer(pairs, principles, materials.lm, adapter=materials.adapter, config=config, progress=show)
        except StageEmpty as error:  # the revisions are there nevertheless
            log["preferences"] = {"pairs": 0, "refused": error.message}
            return ()
        revised = {stable_hash(dict(pair.first)) for pair in pairs}
        better = sum(stable_hash(dict(one.chosen)) in revised for one in found.preferences)
        told = {"pairs": len(found.preferences), "revision_better": better, **found.counts}
        log["preferences"] = {**told, "bias": found.bias.report() if found.bias else None}
        return found.preferences

    def _measured(
        self, done: Revised, principles: Sequence[Principle], judge: dspy.Module, materials: Materials
    ) -> list[Mapping[str, Any]]:
        kept = [(r, old) for r, old in zip(done.records, done.before, strict=True) if r.kept]
        texts = (
            [(record.inputs, old) for record, old in kept],
            [(record.inputs, str(next(iter(record.outputs.values())))) for record, _ in kept],
        )
        before, after = (
            violations(
                rows, principles, materials.lm, adapter=materials.adapter, program=judge, threads=materials.threads
            )
            for rows in texts
        )
        return [change.report() for change in compare_violations(before, after, seed=materials.seed)]


def text_field(source: Source) -> str:
    """Return the task's one output field; raises InputError unless its values are texts of an open task."""
    names = list(dict.fromkeys(name for row in source.gold for name in row.outputs))
    texts = len(names) == 1 and all(isinstance(value, str) for row in source.gold for value in row.outputs.values())
    if not texts or source.labels:
        raise InputError(
            f"--method {METHOD} revises texts, and this task answers with {', '.join(names) or 'nothing'}",
            valid="a task with one output, which is a text and no label",
        )
    return names[0]


def revise(
    records: Sequence[Record],
    source: Source,
    principles: Sequence[Principle],
    labeler: Labeler,
    *,
    config: ConstitutionConfig | None = None,
    program: dspy.Module | None = None,
    progress: Progress | None = None,
) -> Revised:
    """Return the rows with the last revision of their answers, the same for the same seed.

    What a row has no answer for is rejected for the labeler's reason. A round that cannot be read, a critique that
    refuses or finds nothing, and a revision that is empty or speaks of itself keep the former answer. `progress` gets
    (rows done, rows). Raises StageEmpty where no row has an answer; BudgetExceeded and KeyboardInterrupt pass through.
    """
    config, name = config or ConstitutionConfig(), text_field(source)
    answers = first_answers(
        records, labeler, LabelConfig(METHOD, 1, None, config.threads, config.seed, config.patience)
    )
    run = _Run(name, source, principles, labeler, config, program or Reviser())
    asked = [(r, str(a.outputs[name])) for r, a in zip(records, answers, strict=True) if not a.reason]
    if not asked:
        raise StageEmpty(f"none of {len(records)} rows has an answer to revise", hint="a larger --teacher")
    done: list[_Way] = []

    def watch(way: _Way) -> None:
        done.append(way)
        lost = [one for one in done if one.error and set(one.outcomes) == {_UNPARSABLE}]
        if len(lost) == len(done) == config.patience:
            raise StageEmpty(f"no round of the first {len(done)} rows could be read; the first: {lost[0].error}")
        if progress is not None:
            progress(len(done), len(asked))

    ways = iter(concurrently(lambda job: run.rounds(*job), asked, threads=config.threads, done=watch))
    outcomes: Counter[str] = Counter()
    rows: list[Record] = []
    before: list[str] = []
    for record, answer in zip(records, answers, strict=True):
        way = None if answer.reason else next(ways)
        origin = child_of(
            record,
            source,
            METHOD,
            labeler.lm,
            seed=config.seed,
            prompt=prompt_hash(run.program),
            attributes=" > ".join(way.applied) if way else "",
            level=SELF_RATED,
        )
        outcomes.update(way.outcomes if way else ())
        before.append(str(answer.outputs.get(name, "")))
        scores = {**record.scores, "revisions": float(len(way.applied) if way else 0)}
        outputs = {name: way.answer} if way else {}
        made = Record(record.inputs, outputs, origin, scores=scores, weight=record.weight)
        rows.append(made.reject(answer.reason) if answer.reason else made)
    return Revised(tuple(rows), tuple(before), dict(outcomes))


@dataclass
class _Way:
    """What the rounds of one answer came to: the last answer, and the principles that changed it."""

    answer: str
    applied: list[str] = field(default_factory=list[str])
    outcomes: Counter[str] = field(default_factory=Counter[str])
    error: str = ""


@dataclass(frozen=True)
class _Run:
    """What every row of one revision shares."""

    name: str
    source: Source
    principles: Sequence[Principle]
    labeler: Labeler
    config: ConstitutionConfig
    program: dspy.Module

    def rounds(self, record: Record, answer: str) -> _Way:
        """Criticise and revise an answer by each of the row's principles in turn."""
        way = _Way(answer)
        program = blind(self.program, self.source, block_of_child(record, self.source), record.inputs)
        for number, principle in enumerate(drawn(self.principles, self.config.rounds, self.config.seed, record)):
            tokens = min(self.config.most_tokens, 64 + 4 * len(way.answer.split()))
            settings = {
                "temperature": self.config.temperature,
                "max_tokens": tokens,
                "rollout_id": int(stable_hash([self.config.seed, record.id, number])[:7], 16),
            }
            with dspy.context(lm=self.labeler.lm, adapter=self.labeler.adapter, trace=None):
                try:
                    made = cast(Any, program)(
                        as_request(record.inputs),
                        way.answer,
                        principle,
                        config=settings,
                        critique_tokens=self.config.critique_tokens,
                    )
                except BudgetExceeded:
                    raise
                except Exception as error:  # one unparsable answer never ends a stage
                    way.outcomes[_UNPARSABLE] += 1
                    way.error = way.error or f"{type(error).__name__}: {error}"[:_SHOWN]
                    continue
            way.outcomes[str(made.outcome)] += 1
            if made.outcome == "revised":
                way.answer = str(made.revision)
                way.applied.append(principle.name)
        return way


def drawn(principles: Sequence[Principle], count: int, seed: int, record: Record) -> list[Principle]:
    """Return `count` different principles for a row, heavier ones sooner and more often (Efraimidis, Spirakis 2006)."""
    rng = random.Random(f"{seed}:{record.id}")
    keys = [rng.random() ** (1 / principle.weight) for principle in principles]
    ranked = sorted(range(len(principles)), key=lambda i: -keys[i])
    return [principles[i] for i in ranked[:count]]
