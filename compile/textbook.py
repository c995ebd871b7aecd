"""Rows written from textbook passages: varied passages on the task's topics, filtered for value, made into exercises.

"Textbooks Are All You Need" (Gunasekar et al. 2023, arXiv:2306.11644) trains on textbook-like text whose variety
comes from topics and audiences, on exercises, and on real text that a classifier of educational value has passed;
Phi-3 (Abdin et al. 2024, arXiv:2404.14219) filters real and written text so. Here both are filtered together
(`limbeck.compile.quality`), and since a student learns a task and not a language, each passage that stays is not
trained on but made into inputs of the task: of the label it was written for, otherwise open, to be answered by the
compiled program.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from limbeck.compile.attributes import lengths_of, propose
from limbeck.compile.clean_rows import Calls
from limbeck.compile.dedup import NearDuplicates, normalize, record_text
from limbeck.compile.prompts import blind
from limbeck.compile.quality import QualityConfig, QualityFilter, quality_filter
from limbeck.compile.retrieve import MentionsText, documents_of
from limbeck.compile.source import Source
from limbeck.compile.synthesize import SynthesisConfig, label_counts
from limbeck.compile.synthesizers import Cost, Materials, Synthesized
from limbeck.documents import Documents
from limbeck.errors import StageEmpty
from limbeck.programs.generate import TopicProposer
from limbeck.programs.textbook import ExerciseWriter, Lesson, PassageWriter, ValueGrader
from limbeck.records import CHECKED, Provenance, Record, stable_hash

METHOD = "textbook"
AUDIENCES = ("a beginner", "a pupil of twelve", "a student", "a professional", "an older learner", "a busy person")
FORMS = (
    "an explanation with one example",
    "a worked example",
    "a short case from everyday life",
    "a question with its worked answer",
    "common mistakes and how to avoid them",
)
# A row of so many words that all stand in the passage, one after the other, is a piece of it.
_COPIED = 10


@dataclass(frozen=True)
class TextbookConfig:
    """What is written and what it may cost.

    A passage is expected to give `per_passage` inputs where several are written a call, else `reuse` at most, each
    from a call of its own; `spare` passages are there for every one that is needed, since the filter takes some.
    Where documents are given, they are a share `documents` of the passages. A prompt shows `examples` gold inputs.
    A passage of fewer than `least_words` words, a refusal mostly, is not graded.
    StageEmpty when the first `patience` calls give nothing.
    """

    per_passage: int = 4
    reuse: int = 3
    spare: float = 1.5
    documents: float = 0.5
    examples: int = 4
    least_words: int = 12
    quality: QualityConfig = field(default_factory=QualityConfig)
    temperature: float = 0.8
    top_p: float = 0.95
    passage_tokens: int = 320
    review_tokens: int = 120
    patience: int = 24


class Textbook:
    """Rows whose inputs are written from textbook passages; see the module.

    The gold rows of a call stand in its input: demonstrations of a compiled prompt are all there are.
    """

    name = METHOD
    begins = True
    cost = Cost(calls=1.2)

    def __init__(self, config: TextbookConfig | None = None) -> None:
        self.config = config or TextbookConfig()

    def check(self, source: Source, options: Mapping[str, Any]) -> None:
        """Raise InputError for a folder of documents that yields nothing; every task fits, and none need be given."""
        if options.get("documents"):
            documents_of(source, options)

    def programs(self, source: Source) -> dict[str, dspy.Module]:
        """Return the writer of passages, the grader and the writer of exercises."""
        kind = {"labelled": bool(source.labels), "described": bool(source.meanings)}
        open_kind = {"labelled": False, "described": False}
        several = source.one_line
        return {
            "passage": PassageWriter(source.instructions, **kind),
            "grade": ValueGrader(source.instructions),
            "exercise": ExerciseWriter(source.fields, source.instructions, **kind, several=several),
            "open_exercise": ExerciseWriter(source.fields, source.instructions, **open_kind, several=several),
        }

    def __call__(self, records: Sequence[Record], materials: Materials, wanted: int) -> Synthesized:
        """Return about `wanted` inputs, those written for a label with it, rejected ones among them."""
        given = materials.options.get("documents")
        documents = documents_of(materials.source, materials.options) if given else Documents(())
        return _Run(materials, self.config, materials.programs(self)).go(documents, wanted)


@dataclass(frozen=True)
class _Text:
    """A passage with the label it was written for, "" for none, and where it is from."""

    text: str
    label: str
    origin: str


@dataclass(frozen=True)
class _Job:
    """One call that writes inputs from a passage."""

    passage: _Text
    block: int
    examples: tuple[Record, ...]
    seed: int


@dataclass
class _Run:
    """The state of one run: what has been written so far."""

    materials: Materials
    config: TextbookConfig
    modules: Mapping[str, Any]
    records: list[Record] = field(default_factory=list[Record])
    counts: Counter[str] = field(default_factory=Counter[str])
    new: Counter[str] = field(default_factory=Counter[str])
    topics: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def __post_init__(self) -> None:
        self.source, self.seed = self.materials.source, self.materials.seed
        self.calls = Calls(self.materials, METHOD, self.config.patience)
        gold = [record_text(row.inputs) for row in self.source.gold]
        self.seen = {normalize(text) for text in gold}
        self.mentions_text = MentionsText(gold)
        self.per_call = self.config.per_passage if self.source.one_line else 1

    def go(self, documents: Documents, wanted: int) -> Synthesized:
        """Write passages, filter them with the documents', and write inputs from those that stay."""
        rows = self._rows_by_label(wanted, bool(documents.passages))
        texts = self._distinct([*self._of_documents(documents, rows), *self._written(rows, documents)])
        if not texts:
            raise self._empty({})
        found = self._filter(texts)
        kept = [text for text, keep in zip(texts, found.keeps([t.text for t in texts]), strict=True) if keep]
        self.counts["passage_low_value"] = len(texts) - len(kept)
        log: dict[str, Any] = {
            "passages": dict(Counter(text.origin.partition(":")[0] for text in texts)),
            "passages_kept": dict(Counter(text.origin.partition(":")[0] for text in kept)),
            "quality": found.report.as_log(),
            **({"warnings": list(documents.warnings)} if documents.warnings else {}),
        }
        self._exercises(kept, rows)
        bare = sorted(label for label, count in rows.items() if count and not self.new[label])
        if not any(self.new.values()):
            raise self._empty(log["quality"]["grades"])
        more = {"labels_without_rows": bare} if bare and self.source.labels else {}
        return Synthesized(tuple(self.records), {**+self.counts, **self.calls.counts}, {**log, **more})

    def _rows_by_label(self, wanted: int, documents: bool) -> dict[str, int]:
        """Return how many rows to write for each label, "" for those that are left to be answered."""
        if not self.source.labels:
            return {"": wanted}
        left = round(wanted * self.config.documents) if documents else 0
        config = SynthesisConfig(total=wanted - left, distribution=self.materials.distribution)
        return {**label_counts(self.source, config), **({"": left} if left else {})}

    def _needed(self, rows: int) -> int:
        per_passage = self.config.per_passage if self.source.one_line else self.config.reuse
        return -(-int(rows * self.config.spare) // per_passage)

    def _of_documents(self, documents: Documents, rows: Mapping[str, int]) -> list[_Text]:
        share = 1.0 if self.source.labels else self.config.documents
        count = min(len(documents.passages), round(self._needed(rows.get("", 0)) * share))
        drawn = random.Random(f"{self.seed}:documents").sample(documents.passages, count)
        return [_Text(passage.text, "", f"document: {passage.place}") for passage in drawn]

    def _written(self, rows: Mapping[str, int], documents: Documents) -> list[_Text]:
        """Return passages written for every label, or for none, on topics and for audiences dealt in turn."""
        needed = {label: self._needed(count) for label, count in rows.items() if label or not self.source.labels}
        if not self.source.labels:
            needed[""] -= len(self._of_documents(documents, rows))
        self.topics = self._proposed([label for label, count in needed.items() if count > 0])
        lessons = [lesson for label, count in needed.items() for lesson in self._lessons(label, count)]
        show = self.materials.show("writing textbook passages")
        texts = self.calls.run(self._write, list(enumerate(lessons)))
        show(len(lessons), len(lessons))
        found = [
            _Text(text, lesson.label, f"written: {lesson.style}")
            for lesson, text in zip(lessons, texts, strict=True)
            if text
        ]
        self.counts["passage_empty"] = sum(text == "" for text in texts)
        return found

    def _lessons(self, label: str, count: int) -> list[Lesson]:
        rng = random.Random(f"{self.seed}:{label}:lessons")
        topics = self.topics.get(label, ()) or ("any",)
        decks = [_dealt(values, count, rng) for values in (topics, AUDIENCES, FORMS)]
        meaning = self.source.meanings.get(label, "")
        return [Lesson(label, meaning, topic, who, form) for topic, who, form in zip(*decks, strict=True)]

    def _proposed(self, labels: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        """Return the topics of every label; one block's rows are shown for these few words that serve all."""
        source, block = self.source, self.source.blocks[0]
        examples = {label: [record_text(r.inputs) for r in source.shown(block, label or None)] for label in labels}
        proposer = TopicProposer(
            " and ".join(source.fields),
            source.instructions,
            labelled=bool(source.labels),
            described=bool(source.meanings),
        )
        return propose(
            proposer,
            {label: rows for label, rows in examples.items() if rows},
            source.meanings,
            self.materials.lm,
            adapter=self.materials.adapter,
            lengths=lengths_of([record_text(r.inputs) for r in source.gold]),
            seed=self.seed,
        ).topics

    def _write(self, job: tuple[int, Lesson]) -> str:
        number, lesson = job
        config = self._sampling(self.config.passage_tokens, int(stable_hash([self.seed, number])[:7], 16))
        made: Any = self.modules["passage"](lesson, config=config)
        return str(made.passage) if any(c.isalnum() for c in made.passage) else ""

    def _sampling(self, tokens: int, seed: int) -> dict[str, Any]:
        return {
            "temperature": self.config.temperature,
            "top_p": self.config.top_p,
            "max_tokens": tokens,
            "rollout_id": seed,
        }

    def _distinct(self, texts: Sequence[_Text]) -> list[_Text]:
        index = NearDuplicates()
        found: list[_Text] = []
        for text in texts:
            if len(text.text.split()) < self.config.least_words:
                self.counts["passage_short"] += 1
            elif index.find(text.text):
                self.counts["passage_repeated"] += 1
            else:
                index.add(text.text, text.text)
                found.append(text)
        return found

    def _filter(self, texts: Sequence[_Text]) -> QualityFilter:
        """Return the filter of educational value; the log of the run holds its report."""
        show = self.materials.show("grading passages")
        config = {"temperature": 0.0, "max_tokens": self.config.review_tokens}

        def ask(text: str) -> int:
            made: Any = self.modules["grade"](text, config=config)
            return int(made.score or 0)

        def grade(sample: Sequence[str]) -> list[int | None]:
            scores = self.calls.run(ask, sample)
            show(len(sample), len(sample))
            return [score or None for score in scores]

        return quality_filter([text.text for text in texts], grade, config=self.config.quality)

    def _exercises(self, kept: Sequence[_Text], rows: Mapping[str, int]) -> None:
        """Write inputs from the passages until there are enough of every label or each passage has been used up."""
        show = self.materials.show("writing rows from passages")
        left: dict[str, list[_Text]] = {}
        for label in rows:
            texts = [text for text in kept if text.label == label]
            left[label] = random.Random(f"{self.seed}:{label}").sample(texts, len(texts)) * self.config.reuse
        made = 0
        while jobs := self._wave(left, rows, made):
            made += len(jobs)
            for job, found in zip(jobs, self.calls.run(self._from, jobs), strict=True):
                for row in found or ():
                    self._keep(row, job)
            show(sum(self.new.values()), sum(rows.values()))

    def _wave(self, left: dict[str, list[_Text]], rows: Mapping[str, int], made: int) -> list[_Job]:
        """Take from what is left the passages for the rows that every label still lacks."""
        jobs: list[_Job] = []
        for label, texts in left.items():
            calls = -(-max(0, rows[label] - self.new[label]) // self.per_call)
            jobs += [self._job(text, made + len(jobs) + i) for i, text in enumerate(texts[:calls])]
            del texts[:calls]
        return jobs

    def _job(self, passage: _Text, number: int) -> _Job:
        """Return a call: its block, examples drawn by the block and the label, and a seed of its own."""
        blocks = self.source.blocks
        block = blocks[number % len(blocks)]
        rows = self.source.shown(block, passage.label or None)
        rng = random.Random(f"{self.seed}:{number // len(blocks)}:{block}:{passage.label}")
        examples = tuple(rng.sample(rows, min(self.config.examples, len(rows))))
        return _Job(passage, block, examples, int(stable_hash([self.seed, number, passage.text])[:7], 16))

    def _from(self, job: _Job) -> tuple[Mapping[str, Any], ...]:
        label = job.passage.label
        program: Any = blind(self.modules[_part(label)], self.source, job.block)
        made = program(
            job.passage.text,
            examples=[row.inputs for row in job.examples],
            count=self.per_call,
            label=label,
            meaning=self.source.meanings.get(label, ""),
            config=self._sampling(self.source.tokens * self.per_call, job.seed),
        )
        return tuple(made.rows)

    def _keep(self, row: Mapping[str, Any], job: _Job) -> None:
        label = job.passage.label
        origin = Provenance(
            METHOD,
            parents=tuple(example.id for example in job.examples),
            teacher=str(self.materials.lm.model),
            prompt_hash=stable_hash(
                [
                    self.source.instructions,
                    label,
                    [dict(e.inputs) for e in job.examples],
                    *self.materials.compiled(METHOD, _part(label)),
                ]
            ),
            seed=job.seed,
            level=CHECKED,
            block=job.block,
            attributes=job.passage.origin,
        )
        record = Record(dict(row), {self.source.label_field: label} if label else {}, origin)
        text = record_text(row)
        plain, passage = normalize(text), normalize(job.passage.text)
        reason = "repeated" if plain in self.seen else ""
        # Where a task has several inputs, one of them may be the passage.
        if len(self.source.fields) == 1 and self.mentions_text(text):
            reason = "mentions_text"
        if len(self.source.fields) == 1 and len(plain.split()) >= _COPIED and plain in passage:
            reason = "copies_passage"
        if not all(str(value).strip() for value in row.values()):
            reason = "empty"
        self.seen.add(plain)
        self.records.append(record.reject(reason) if reason else record)
        self.new[label] += not reason

    def _empty(self, grades: Mapping[str, int]) -> StageEmpty:
        lost = self.counts + Counter(self.calls.counts) + Counter(r.reason for r in self.records if r.reason)
        why = ", ".join(f"{count} {reason}" for reason, count in lost.most_common())
        graded = f"; passages by grade: {dict(grades)}" if grades else ""
        return StageEmpty(
            f"{METHOD} wrote no row ({why or self.calls.first_error}){graded}",
            hint="a larger --teacher, or --documents on the task's subject",
        )


def _part(label: str) -> str:
    return "exercise" if label else "open_exercise"


def _dealt(values: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Return `count` values, every one before any comes again."""
    dealt: list[str] = []
    while len(dealt) < count:
        dealt += rng.sample(values, len(values))
    return dealt[:count]
