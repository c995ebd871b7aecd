"""Instruction Backtranslation: inputs written for passages of documents, and the pairs curated by the model itself.

Li et al. 2023 (arXiv:2308.06259). Self-augmentation: the model writes, for each passage y, the input x that it
answers, from gold rows turned round. Self-curation: it rates each pair on five points, reason first, and pairs
rated `keep` or more stay; the second iteration's model rates anew. What differs here, and why:

- The paper fine-tunes a model y -> x and one x -> y on the seeds, and the second rater on what the first kept.
  Here one model is prompted: gold rows are demonstrations of y -> x, and for the second rating the best and worst
  pairs of the first with their reviews are. That moves the scale less than training would, and can make a small
  model worse, so each rater is tried on gold pairs beside swapped ones, and the second's ratings count only where
  it tells them apart at least as well. The student is what is fine-tuned in the end.
- Pairs with 5 points come first and the default keeps 4 as well. With half a million segments the paper can afford
  the best 8%; of hundreds of passages these are a handful, and a model of 1.5B gives hardly any gold pair a 5.
- The paper sorts segments out by heuristics on headers and length; here short and repeated passages go, and inputs
  that speak of "the text", hold the answer or repeat an earlier one go before they are rated.

Rows from documents and labelled rows carry different tags, to be shown in the student's prompt.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import dspy
import numpy as np
from numpy.typing import NDArray

from limbeck.compile.clean_rows import Calls
from limbeck.compile.dedup import NearDuplicates, normalize, record_text
from limbeck.compile.prompts import blind
from limbeck.compile.retrieve import MentionsText, documents_of
from limbeck.compile.rouge import RougeIndex
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import GOLD, Cost, Materials, Synthesized
from limbeck.documents import Passage
from limbeck.errors import InputError, StageEmpty
from limbeck.programs.backtranslate import PairRater, RequestWriter
from limbeck.records import CHECKED, SELF_RATED, Provenance, Record, stable_hash
from limbeck.stats import Paired, paired_bootstrap

METHOD = "instruction_backtranslation"
SEED_TAG, DOCUMENT_TAG = "tag:seed", "tag:document"
# What a student's system prompt says beside rows of either kind.
TAGS: Mapping[str, str] = {
    SEED_TAG: "Answer the way an assistant does.",
    DOCUMENT_TAG: "Answer the way a document does.",
}
# A gold output of fewer words, in the middle, is a short answer: no passage is one.
_LEAST_WORDS = 6
_MAX_DEMO_WORDS = 600
# Passages of one wave, at least: the last few rows wanted are not tried one by one.
_WAVE = 8


@dataclass(frozen=True)
class BacktranslationConfig:
    """What is written and kept.

    Passages have `max_words` words at most (0: as many as the longest tenth of gold outputs, between 60 and 300).
    At most `per_row` passages a wanted row are tried; the paper kept 39% of pairs at 4 points and 8% at 5. A
    prompt shows `demos` gold rows, one of the second rating `rated_demos` pairs, half of them bad. Each rater is
    tried on `checked` gold pairs and as many swapped ones. `copied` words in a row make an input hold its answer.
    The temperature and top_p of writing are the paper's; ratings are greedy. StageEmpty when the first `patience`
    passages, or all of fewer, give nothing that is kept.
    """

    keep: int = 4
    rounds: int = 2
    demos: int = 6
    rated_demos: int = 4
    checked: int = 8
    max_words: int = 0
    per_row: int = 5
    copied: int = 10
    rouge: float = 0.7
    temperature: float = 0.7
    top_p: float = 0.9
    review_tokens: int = 160
    patience: int = 24


class InstructionBacktranslation:
    """Rows whose outputs are passages of documents and whose inputs are written for them.

    Demonstrations of compiled prompts stand before those that each call shows.
    """

    name = METHOD
    begins = True
    cost = Cost(calls=7.5, answers=0.0)

    def __init__(self, config: BacktranslationConfig | None = None) -> None:
        self.config = config or BacktranslationConfig()

    def check(self, source: Source, options: Mapping[str, Any]) -> None:
        """Raise InputError for a task other than one text in, one free text out, and for a folder without text."""
        outputs = list(source.gold[0].outputs) if source.gold else []
        if source.labels or len(source.fields) != 1 or len(outputs) != 1 or set(source.fields.values()) != {str}:
            what = f"{len(source.fields)} input fields and {len(source.labels)} labels"
            raise InputError(
                f"--method {self.name} writes the input that a document's text answers; this task has {what}",
                valid="a task of one text as input and one free text as output",
                hint="--method self_instruct, or label_conditioned for labels",
            )
        free = all(isinstance(value, str) for row in source.gold for value in row.outputs.values())
        if not free or np.median(output_lengths(source)) < _LEAST_WORDS:
            example = record_text(source.gold[0].outputs)[:60]
            raise InputError(
                f"--method {self.name}: no passage of a document is an output such as {example!r}",
                valid=f"outputs of free text, of {_LEAST_WORDS} words and more in the middle",
                hint="--method self_instruct",
            )
        documents_of(source, options, max_words=self._max_words(source))

    def programs(self, source: Source) -> dict[str, dspy.Module]:
        """Return the writer and the rater."""
        (name,), (output,), task = source.fields, source.gold[0].outputs, source.instructions
        return {"write": RequestWriter(name, output, task), "rate": PairRater(name, output, task)}

    def __call__(self, records: Sequence[Record], materials: Materials, wanted: int) -> Synthesized:
        """Return the pairs kept, at most `wanted`, best first where there are more, and the rejected ones."""
        documents = documents_of(materials.source, materials.options, max_words=self._max_words(materials.source))
        programs: dict[str, Any] = materials.programs(self)
        made = Pairing(materials, self.config, programs["write"], programs["rate"]).go(documents.passages, wanted)
        told = {
            "documents": len({passage.document for passage in documents.passages}),
            "passages": len(documents.passages),
            "warnings": list(documents.warnings),
        }
        return replace(made, log={**told, **made.log})

    def _max_words(self, source: Source) -> int:
        lengths = output_lengths(source)
        return self.config.max_words or int(np.clip(np.quantile(lengths, 0.9), 60, 300))


def tag_of(record: Record) -> str:
    """Return the sentence that tells the student where a row comes from, "" where no tag is due.

    >>> tag_of(Record({"x": "a"}, {"y": "b"}, Provenance("gold")))
    'Answer the way an assistant does.'
    """
    if record.provenance.method == GOLD:
        return TAGS[SEED_TAG]
    return next((TAGS[part] for part in record.provenance.attributes.split("; ") if part in TAGS), "")


class _Rating(NamedTuple):
    """What a rater said of a pair; the score is None where it could not be read."""

    pair: tuple[str, str]
    score: int | None
    review: str


@dataclass
class Pairing:
    """The state of one run: what has been written, and what each round said of it."""

    materials: Materials
    config: BacktranslationConfig
    writer: RequestWriter
    rater: PairRater
    records: list[Record] = field(default_factory=list[Record])
    rounds: list[dict[str, _Rating]] = field(default_factory=list[dict[str, _Rating]])
    counts: Counter[str] = field(default_factory=Counter[str])

    def __post_init__(self) -> None:
        self.source, self.seed = self.materials.source, self.materials.seed
        self.calls = Calls(self.materials, METHOD, self.config.patience)
        gold = [record_text(row.inputs) for row in self.source.gold]
        self.similar = RougeIndex(threshold=self.config.rouge)
        for text in gold:
            self.similar.add(text)
        self.mentions_text = MentionsText(gold)

    def go(self, passages: Sequence[Passage], wanted: int) -> Synthesized:
        """Write inputs and rate the pairs until enough are good, rate all anew, and keep the best."""
        left = self._fit(passages)[: self.config.per_row * wanted]
        show = self.materials.show("writing inputs for passages")
        self.rounds.append({})
        size = good = 0
        while left and good < wanted and (good or size == 0):
            size = max(2 * (wanted - good), _WAVE) if good else self.config.patience
            wave, left = left[:size], left[size:]
            written = self._written(wave)
            self.records += written
            self.rounds[0] |= self._rated([r for r in written if r.kept], ())
            good = len(self._good(1))
            show(min(good, wanted), wanted)
        return self._kept(wanted, *self._iterated()) if good else self._kept(wanted, 1, None, {})

    def _fit(self, passages: Sequence[Passage]) -> list[Passage]:
        """Return the passages that could be outputs, in a seeded order; the short and repeated ones are counted."""
        shortest = max(3, int(np.quantile(output_lengths(self.source), 0.1)) // 2)
        index = NearDuplicates()
        found: list[Passage] = []
        for passage in passages:
            if len(passage.body.split()) < shortest:
                self.counts["passage_short"] += 1
            elif index.find(passage.body):
                self.counts["passage_repeated"] += 1
            else:
                index.add(passage.place, passage.body)
                found.append(passage)
        return random.Random(self.seed).sample(found, len(found))

    def _written(self, passages: Sequence[Passage]) -> list[Record]:
        """Return one record a passage, rejected by the first rule that its input breaks."""
        blocks = self.source.blocks
        jobs = [(passage, blocks[int(stable_hash(passage.place), 16) % len(blocks)]) for passage in passages]
        records: list[Record] = []
        for (passage, block), text in zip(jobs, self.calls.run(self.write, jobs), strict=True):
            if not text:
                self.counts["no_input"] += text is not None  # a call that failed is counted as one
                continue
            shown = self.shown(block)
            origin = Provenance(
                METHOD,
                parents=tuple(row.id for row in shown),
                teacher=str(self.materials.lm.model),
                prompt_hash=self._hash(shown),
                seed=self._seed_of(passage),
                level=SELF_RATED,
                block=block,
                attributes=f"{DOCUMENT_TAG}; {passage.place}",
            )
            record = Record({self.writer.field: text}, {self.writer.output: passage.body}, origin)
            reason = self._reason(text, passage.body)
            records.append(record.reject(reason) if reason else record)
        return records

    def _hash(self, shown: Sequence[Record]) -> str:
        pairs = [[dict(row.inputs), dict(row.outputs)] for row in shown]
        return stable_hash([self.source.instructions, pairs, *self.materials.compiled(METHOD, "write")])

    def write(self, job: tuple[Passage, int]) -> str:
        """Return the input that the model writes for a passage with a block's demonstrations."""
        passage, block = job
        made: Any = blind(self.writer, self.source, block)(passage.body, **self.settings(passage, block))
        return str(made.text)

    def settings(self, passage: Passage, block: int) -> dict[str, Any]:
        """Return what a call is told beside the passage: demonstrations and sampling."""
        config = {
            "temperature": self.config.temperature,
            "top_p": self.config.top_p,
            "max_tokens": max(self.source.tokens, 64),
            "rollout_id": self._seed_of(passage),
        }
        return {"demos": self.writer.demos([self._pair(row) for row in self.shown(block)]), "config": config}

    def shown(self, block: int) -> list[Record]:
        """Return a block's demonstrations, the same for all passages, so that the prompt's beginning is cached."""
        rows = self.source.shown(block)
        drawn = random.Random(f"{self.seed}:{block}").sample(rows, min(self.config.demos, len(rows)))
        words = np.cumsum([len(" ".join(self._pair(row)).split()) for row in drawn])
        return [row for i, row in enumerate(drawn) if not i or words[i] <= _MAX_DEMO_WORDS]

    def _seed_of(self, passage: Passage) -> int:
        return int(stable_hash([self.seed, passage.place])[:7], 16)

    def _reason(self, text: str, answer: str) -> str:
        """Return the name of the first rule that an input breaks, "" for one that passes and is remembered."""
        if self.mentions_text(text):
            return "mentions_text"
        words, said, run = normalize(text).split(), f" {normalize(answer)} ", self.config.copied
        if any(f" {' '.join(words[i : i + run])} " in said for i in range(len(words) - run + 1)):
            return "holds_answer"
        if self.similar.similar(text):
            return "similar"
        self.similar.add(text)
        return ""

    def _iterated(self) -> tuple[int, Paired | None, dict[str, Any]]:
        """Rate all pairs anew as often as the rounds say; return the round that counts, its rater's trial, a log."""
        counted, trusted = 1, self._tried(())
        log: dict[str, Any] = {"rater_1": _told(trusted)}
        for number in range(2, self.config.rounds + 1):
            shown = self._extremes(number - 1)
            if not shown:
                log["rounds"] = f"{number - 1}: not both good and bad pairs to show in another"
                break
            self.rounds.append(self._rated([r for r in self.records if r.kept], shown))
            again = self._tried(shown)
            log[f"rater_{number}"] = _told(again)
            if trusted is None or (again is not None and again.difference >= trusted.difference):
                counted, trusted = number, again
        return counted, trusted, log

    def _extremes(self, number: int) -> list[_Rating]:
        """Return a round's worst and best pairs in turn, the shorter of equals; none where one kind is missing."""
        rated = [rating for rating in self.rounds[number - 1].values() if rating.score]
        length = {rating.pair: len(" ".join(rating.pair).split()) for rating in rated}
        half = self.config.rated_demos // 2
        best = [r for r in rated if (r.score or 0) >= self.config.keep]
        worst = [r for r in rated if (r.score or 0) < self.config.keep]
        best.sort(key=lambda r: (-(r.score or 0), length[r.pair]))
        worst.sort(key=lambda r: (r.score or 0, length[r.pair]))
        return [r for both in zip(worst[:half], best[:half], strict=False) for r in both]

    def _rated(self, records: Sequence[Record], shown: Sequence[_Rating]) -> dict[str, _Rating]:
        """Return what a rater says of each record, by its id."""
        ratings = self._ratings([self._pair(record) for record in records], shown)
        return {record.id: rating for record, rating in zip(records, ratings, strict=True)}

    def _ratings(self, pairs: Sequence[tuple[str, str]], shown: Sequence[_Rating]) -> list[_Rating]:
        config = {"temperature": 0.0, "max_tokens": self.config.review_tokens}

        def rate(pair: tuple[str, str]) -> _Rating:
            # A pair that is itself shown would be told its answer.
            demos = [self.rater.demo(*one.pair, one.review) for one in shown if one.pair != pair]
            rater = blind(self.rater, self.source, -1, {self.writer.field: pair[0]})
            made: Any = rater(*pair, demos=demos, config=config)
            return _Rating(pair, made.score, str(made.review))

        found = self.calls.run(rate, pairs)
        return [rating or _Rating(pair, None, "") for pair, rating in zip(pairs, found, strict=True)]

    def _tried(self, shown: Sequence[_Rating]) -> Paired | None:
        """Return by how many points a rater puts gold pairs over the same inputs with other outputs."""
        gold = random.Random(f"{self.seed}:gold").sample(self.source.gold, len(self.source.gold))
        right = [self._pair(row) for row in gold[: self.config.checked]]
        wrong = [(x, right[i - 1][1]) for i, (x, _) in enumerate(right)]
        ratings = self._ratings([*right, *wrong], shown)
        both = [(a.score, b.score) for a, b in zip(ratings[: len(right)], ratings[len(right) :], strict=True)]
        scores = [(a, b) for a, b in both if a and b]
        if len(scores) < 2:
            return None
        return paired_bootstrap([float(a) for a, _ in scores], [float(b) for _, b in scores], self.seed)

    def _pair(self, record: Record) -> tuple[str, str]:
        return str(record.inputs[self.writer.field]), str(record.outputs[self.writer.output])

    def _score(self, record: Record, counted: int) -> int | None:
        """Return the last score up to a round that could be read."""
        scores = [rated[record.id].score for rated in self.rounds[:counted] if record.id in rated]
        return next((score for score in reversed(scores) if score), None)

    def _good(self, counted: int) -> list[Record]:
        good = [r for r in self.records if r.kept and (self._score(r, counted) or 0) >= self.config.keep]
        return sorted(good, key=lambda r: -(self._score(r, counted) or 0))

    def _kept(self, wanted: int, counted: int, trusted: Paired | None, log: Mapping[str, Any]) -> Synthesized:
        level = CHECKED if trusted is not None and trusted.ci95[0] > 0 else SELF_RATED
        chosen = {record.id for record in self._good(counted)[:wanted]}
        told: list[Record] = []
        for record in self.records:
            score = self._score(record, counted)
            scores = {
                f"rating_{number}": float(rated[record.id].score or 0)
                for number, rated in enumerate(self.rounds, 1)
                if record.id in rated and rated[record.id].score
            }
            told.append(replace(record, scores=scores, provenance=replace(record.provenance, level=level)))
            if record.kept and record.id not in chosen:
                low = "unrated" if score is None else "low_rating"
                told[-1] = told[-1].reject("surplus" if (score or 0) >= self.config.keep else low)
        by_score = {
            str(number): dict(sorted(Counter(str(r.score or "unrated") for r in rated.values()).items()))
            for number, rated in enumerate(self.rounds, 1)
        }
        if not chosen:
            lost = self.counts + Counter(self.calls.counts) + Counter(r.reason for r in told)
            why = ", ".join(f"{n} {reason}" for reason, n in lost.most_common())
            raise StageEmpty(
                f"{METHOD} kept nothing ({why or self.calls.first_error}); ratings by round: {by_score}",
                hint="a larger --teacher, or documents that read more like the outputs",
            )
        more = {"candidates": len(told), "keep": self.config.keep, "ratings": by_score, "round": counted}
        return Synthesized(tuple(told), {**+self.counts, **self.calls.counts}, {**more, **log})


def output_lengths(source: Source) -> NDArray[np.int64]:
    """Return the number of words of every gold row's outputs."""
    return np.array([len(record_text(row.outputs).split()) for row in source.gold], dtype=np.int64)


def _told(trial: Paired | None) -> dict[str, Any]:
    if trial is None:
        return {"told_apart": None}
    return {"told_apart": round(trial.difference, 2), "ci95": [round(end, 2) for end in trial.ci95]}
