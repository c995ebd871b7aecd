"""Cleaning: the user's own rows corrected or said in other words by a machine, and verified.

A row that people wrote and a machine corrected keeps most of a person's work, so its level stands just below a
person's own (`limbeck.records.CLEANED`); a rewritten row that a model wrote stays at its own level. The label or
answer is the parent's. That it still fits is checked by three rules: the numbers are the parent's, what the answer
quotes from the input is still there (as `limbeck.verifiers.Grounded` asks), and the compiled program, out of fold,
gives the answer it gave to the parent or the parent's own (a round trip).
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import difflib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dspy

from limbeck.compile.children import child_of
from limbeck.compile.dedup import normalize, record_text
from limbeck.compile.label import Answer, prompt_hash
from limbeck.compile.prompts import blind
from limbeck.compile.rewriting import Calls, answers_of, numbers_in, require_text, text_of, tokens_for
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import Cost, Materials, Synthesized, block_of_child
from limbeck.metrics import likeness
from limbeck.programs.rewrite import Repairer, Rephraser, changed_fields
from limbeck.records import CLEANED, Record, stable_hash
from limbeck.verifiers import leaves

REPAIR, REPHRASE = "repair", "rephrase"
# A metric's score of an answer from which it counts as right.
_RIGHT = 0.99


@dataclass(frozen=True)
class CleanConfig:
    """What is rewritten and what is accepted.

    A repair keeps `likeness` of the characters in order (0.7 lets two letters in ten go), a rephrasing has between
    1/`length_factor` and `length_factor` times the words. Of an open answer that was not right before, `same` is the
    metric's score of the new answer against the old one from which both count as one answer. At most `max_calls`
    rewritings (None: three times what is wanted); StageEmpty when the first `patience` give nothing.
    """

    likeness: float = 0.7
    length_factor: float = 2.0
    same: float = 0.5
    temperature: float = 0.8
    top_p: float = 0.95
    wave: int = 32
    max_calls: int | None = None
    patience: int = 24


class Cleaning:
    """The given rows, repaired once and rephrased once or more, with their own labels.

    No call brings demonstrations of its own: those of a compiled prompt are all there are.
    """

    name = "cleaning"
    begins = False
    cost = Cost(calls=3.0, answers=0.0)

    def __init__(self, config: CleanConfig | None = None) -> None:
        self.config = config or CleanConfig()

    def check(self, source: Source, options: Mapping[str, Any]) -> None:
        """Raise InputError for a task without a text among its inputs."""
        require_text(source, self.name)

    def programs(self, source: Source) -> dict[str, dspy.Module]:
        """Return the two rewriters."""
        changed = changed_fields(source.fields, [row.inputs for row in source.gold])
        return {
            REPAIR: Repairer(source.fields, changed),
            REPHRASE: Rephraser(source.fields, changed, source.instructions),
        }

    def __call__(self, records: Sequence[Record], materials: Materials, wanted: int) -> Synthesized:
        """Return about `wanted` rewritten rows with their parents' outputs, rejected ones among them.

        Raises StageEmpty when nothing passes; BudgetExceeded and KeyboardInterrupt pass through.
        """
        run = Rewriting(records, materials, self.config, materials.programs(self))
        show = materials.show("cleaning rows")
        limit = self.config.max_calls or 3 * wanted
        while (missing := wanted - run.kept) > 0 and run.calls.made < limit and run.parents:
            run.wave(min(missing, self.config.wave, limit - run.calls.made))
            show(min(run.kept, wanted), wanted)
            if not run.kept and run.calls.made >= self.config.patience:
                break
        if not run.kept:
            raise run.calls.empty(run.done)
        log = {self.name: {"calls": run.calls.made, "kept": run.tally}}
        return Synthesized(tuple(run.done), run.calls.counts, log)


@dataclass(frozen=True)
class _Job:
    parent: Record
    operation: str
    seed: int


@dataclass
class Rewriting:
    """The state of one cleaning run: what has been rewritten so far."""

    parents: Sequence[Record]
    materials: Materials
    config: CleanConfig
    programs: Mapping[str, dspy.Module]
    done: list[Record] = field(default_factory=list[Record])
    next: int = 0

    def __post_init__(self) -> None:
        source, seed = self.materials.source, self.materials.seed
        self.changed = changed_fields(source.fields, [row.inputs for row in source.gold])
        parents = [row for row in self.parents if text_of(row.inputs, self.changed).strip()]
        self.parents = random.Random(seed).sample(parents, len(parents))
        self.calls = Calls(self.materials, Cleaning.name, self.config.patience)
        self.answers: dict[str, Answer] = {}
        self.seen = {normalize(record_text(row.inputs)) for row in (*source.gold, *parents)}
        self.hashes = {name: prompt_hash(program) for name, program in self.programs.items()}

    @property
    def kept(self) -> int:
        """How many rows are kept so far."""
        return sum(record.kept for record in self.done)

    @property
    def tally(self) -> dict[str, int]:
        """The rows kept by how they came about."""
        return dict(Counter(record.provenance.attributes for record in self.done if record.kept))

    def wave(self, size: int) -> None:
        """Rewrite the next rows and keep what stands all checks."""
        jobs = [self._job(self.next + i) for i in range(size)]
        self.next += size
        rows = self.calls.run(self._rewrite, jobs)
        made = [(job, self._record(job, row)) for job, row in zip(jobs, rows, strict=True) if row is not None]
        read = self._read_back([(job.parent, record) for job, record in made if record.kept])
        self.done += [read.get(id(record), record) for _, record in made]

    def _job(self, number: int) -> _Job:
        """Return one rewriting: each row is repaired once, beside its first rephrasing, then rephrased again."""
        count = len(self.parents)
        first = number < 2 * count
        parent = self.parents[number // 2 if first else number % count]
        operation = REPAIR if first and number % 2 == 0 else REPHRASE
        return _Job(parent, operation, int(stable_hash([self.materials.seed, number])[:7], 16))

    def _rewrite(self, job: _Job) -> Mapping[str, Any]:
        config: dict[str, Any] = {"max_tokens": tokens_for(job.parent.inputs, self.changed), "rollout_id": job.seed}
        config |= {"temperature": 0.0} if job.operation == REPAIR else {"temperature": self.config.temperature}
        source, inputs = self.materials.source, job.parent.inputs
        program: Any = blind(self.programs[job.operation], source, block_of_child(job.parent, source), inputs)
        made = program({name: inputs[name] for name in source.fields}, config={**config, "top_p": self.config.top_p})
        return made.row

    def _record(self, job: _Job, row: Mapping[str, Any]) -> Record:
        parent = job.parent
        origin = child_of(
            parent,
            self.materials.source,
            Cleaning.name,
            self.materials.lm,
            seed=job.seed,
            prompt=self.hashes[job.operation],
            attributes=job.operation,
            level=CLEANED,
        )
        record = Record(dict(row), dict(parent.outputs), replace(origin, seed=job.seed))
        reason = self._reason(parent, record)
        if not reason:
            self.seen.add(normalize(record_text(row)))
        return record.reject(reason) if reason else record

    def _reason(self, parent: Record, record: Record) -> str:
        """Return the first rule about the text alone that a rewriting breaks, "" for none."""
        old, new = (text_of(row.inputs, self.changed) for row in (parent, record))
        before, after = len(old.split()), len(new.split())
        repaired = record.provenance.attributes == REPAIR
        if old.split() == new.split() or (not repaired and normalize(old) == normalize(new)):
            return "unchanged"
        if normalize(new) != normalize(old) and normalize(record_text(record.inputs)) in self.seen:
            return "duplicate"
        if repaired and difflib.SequenceMatcher(None, old.casefold(), new.casefold(), False).ratio() < (
            self.config.likeness
        ):
            return "not_a_repair"
        if not before / self.config.length_factor <= after <= self.config.length_factor * before + 1:
            return "length"
        if numbers_in(old) != numbers_in(new):
            return "numbers_changed"
        return "" if self._grounded(parent, old, new) else "quote_lost"

    def _grounded(self, parent: Record, old: str, new: str) -> bool:
        """Return whether every text of the answer that stood in the old input stands in the new one."""
        label = self.materials.source.label_field
        quoted = [t for name, value in parent.outputs.items() if name != label for _, t in leaves(value) if t.strip()]
        before, after = (" ".join(text.split()).casefold() for text in (old, new))
        folded = [" ".join(text.split()).casefold() for text in quoted]
        return all(text in after for text in folded if text in before)

    def _read_back(self, pairs: Sequence[tuple[Record, Record]]) -> dict[int, Record]:
        """Return, by the identity of each record, the record as the compiled program reads it.

        Parent and child go to the program that never shows the parent's fold.
        """
        unread = {parent.id: parent for parent, _ in pairs if parent.id not in self.answers}
        asked = [*unread.values(), *(child for _, child in pairs)]
        blocks = [r.provenance.block for r in (*unread.values(), *(parent for parent, _ in pairs))]
        found = answers_of([r.inputs for r in asked], blocks, self.materials, method=Cleaning.name) if asked else []
        self.answers |= dict(zip(unread, found, strict=False))
        answers = zip(pairs, found[len(unread) :], strict=True)
        return {id(child): self._told(parent, child, now) for (parent, child), now in answers}

    def _told(self, parent: Record, child: Record, now: Answer) -> Record:
        if now.reason:
            return child.reject(now.reason)
        right = self._like(parent, parent.outputs, now.outputs) >= _RIGHT if parent.outputs else False
        was = self.answers[parent.id]
        again = not was.reason and self._like(parent, was.outputs, now.outputs) >= self.config.same
        # A program that reasons is trained on its reasons, which only a right answer can lend the row.
        if not right and (not again or (parent.outputs and (now.rationale or now.calls))):
            return child.reject("answer_changed")
        lent = {"rationale": now.rationale, "calls": now.calls} if right else {}
        scores = {**child.scores, **now.scores, "round_trip": float(right)}
        return replace(child, soft=now.soft, soft_source=now.soft_source, scores=scores, **lent)

    def _like(self, parent: Record, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
        labeler = self.materials.labeler
        if labeler.metric is None:
            names = labeler.output_fields
            return float(all(str(one.get(name)) == str(other.get(name)) for name in names))
        example: Any = dspy.Example(**parent.inputs, **one).with_inputs(*parent.inputs)
        return likeness(labeler.metric, example, dspy.Prediction(**other))
