"""Adaptation: rows of a nearby real data set (`--related`), brought into this task's form and label distribution.

Rows are chosen by the similarity of their text to the gold rows, in a closed task a share for each label, and
rewritten to the tone and length of gold rows that stand in the prompt. A row that already reads like them may stay as
it is. In a closed task the compiled program labels what was written, and rows beyond their label's share are rejected.

Where the file has the task's output columns with values that this task knows, they are what the row is meant to be:
text and label then come from people and a machine changed the wording alone, so the level is `CLEANED`, provided the
program reads the label back. Everywhere else a machine gives the label, and no person's text makes that a person's
label: the level is `CHECKED`. Both take the user's word that the related rows were written by people.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dspy

from limbeck.compile.dedup import normalize, record_text
from limbeck.compile.label import Answer, answered, prompt_hash
from limbeck.compile.prompts import blind
from limbeck.compile.related import RELATED, Choice, Related, read_related, usable_rows
from limbeck.compile.rewriting import Calls, answers_of, is_closed, require_text, text_of, tokens_for
from limbeck.compile.rouge import RougeIndex
from limbeck.compile.source import Source
from limbeck.compile.synthesize import SynthesisConfig, label_counts
from limbeck.compile.synthesizers import Cost, Materials, Synthesized
from limbeck.metrics import likeness
from limbeck.programs.rewrite import Adapter, changed_fields
from limbeck.records import CHECKED, CLEANED, Provenance, Record, stable_hash
from limbeck.signatures.rewrite import new_names

_RIGHT = 0.99
_LEAKS = ("[[ ##", "examples:")


@dataclass(frozen=True)
class AdaptConfig:
    """What is chosen, shown and accepted.

    Of a larger file `max_rows` are looked at, rows of more than `most_words` never. A row is as similar as the mean
    cosine of its `nearest` gold rows. `examples` gold rows stand in a prompt. A rewriting over `rouge` with a gold row
    copies it; one `length_factor` times shorter or longer than any of them is not in their form. Where the sentence
    encoder is installed, one below the cosine `meaning` with its own row says something else (fair rewritings lie
    above 0.6, answers and remarks below 0.5). At most `max_calls` rewritings (None: twice what is wanted); StageEmpty
    when the first `patience` give nothing.
    """

    max_rows: int = 4000
    most_words: int = 400
    nearest: int = 3
    examples: int = 8
    rouge: float = 0.7
    length_factor: float = 1.5
    meaning: float = 0.5
    temperature: float = 0.7
    top_p: float = 0.95
    wave: int = 32
    max_calls: int | None = None
    patience: int = 24


class Adaptation:
    """Rows of a related file, chosen by similarity and rewritten to the form of the gold rows.

    The gold rows of a call stand in its input: demonstrations of a compiled prompt are all there are.
    """

    name = "adaptation"
    begins = True
    cost = Cost(calls=1.5)

    def __init__(self, config: AdaptConfig | None = None) -> None:
        self.config = config or AdaptConfig()

    def check(self, source: Source, options: Mapping[str, Any]) -> None:
        """Raise InputError without --related, for a file without text, and for a task without a text input."""
        require_text(source, self.name)
        read_related(str(options.get(RELATED) or ""), source)

    def programs(self, source: Source) -> dict[str, dspy.Module]:
        """Return the rewriter."""
        changed = changed_fields(source.fields, [row.inputs for row in source.gold])
        return {"adapt": Adapter(source.fields, changed, source.instructions)}

    def __call__(self, records: Sequence[Record], materials: Materials, wanted: int) -> Synthesized:
        """Return about `wanted` adapted rows, rejected ones among them; open answers are left to the program.

        Raises StageEmpty when nothing passes; BudgetExceeded and KeyboardInterrupt pass through.
        """
        source = materials.source
        rows = read_related(str(materials.options.get(RELATED) or ""), source)
        config = self.config
        usable, counts = usable_rows(
            rows, source, max_rows=config.max_rows, most_words=config.most_words, seed=materials.seed
        )
        choice = Choice(usable, source, nearest=config.nearest)
        run = Adapting(materials, config, materials.programs(self)["adapt"], choice, wanted)
        show = materials.show("adapting related rows")
        limit = self.config.max_calls or 2 * wanted
        while (missing := wanted - run.kept) > 0 and run.calls.made < limit:
            if not run.wave(min(missing, self.config.wave, limit - run.calls.made)):
                break
            show(min(run.kept, wanted), wanted)
            if not run.kept and run.calls.made >= self.config.patience:
                break
        if not run.kept:
            raise run.calls.empty(run.done)
        log = {"related": len(rows), "looked_at": len(usable), "calls": run.calls.made, **run.tally()}
        return Synthesized(tuple(run.done), {**counts, **run.calls.counts}, {self.name: log})


@dataclass(frozen=True)
class Job:
    """One row to adapt: by which block's prompt, to how many words, with the seed of its call."""

    related: Related
    similarity: float
    block: int
    words: int
    seed: int


@dataclass
class Adapting:
    """The state of one adaptation: what has been written so far."""

    materials: Materials
    config: AdaptConfig
    adapter: dspy.Module
    choice: Choice
    wanted: int
    done: list[Record] = field(default_factory=list[Record])
    similarities: list[float] = field(default_factory=list[float])

    def __post_init__(self) -> None:
        source = self.materials.source
        self.closed = is_closed(source)
        self.changed = changed_fields(source.fields, [row.inputs for row in source.gold])
        self.calls = Calls(self.materials, Adaptation.name, self.config.patience)
        self.examples = {block: self._examples(block) for block in source.blocks}
        self.hash = prompt_hash(self.adapter)
        self.lengths = [len(text_of(row.inputs, self.changed).split()) for row in source.gold]
        self.leaks = (*_LEAKS, *new_names(source.fields, self.changed).values())
        self.seen: set[str] = set()
        self.gold = RougeIndex(threshold=self.config.rouge)
        for row in source.gold:
            self.gold.add(text_of(row.inputs, self.changed))
        asked, focus = self.materials.distribution, self.materials.focus
        shares = SynthesisConfig(total=self.wanted, distribution=asked, focus=focus)
        self.shares = label_counts(source, shares) if self.closed else {"": self.wanted}

    @property
    def kept(self) -> int:
        """How many rows are kept so far."""
        return sum(record.kept for record in self.done)

    def labels(self) -> Counter[str]:
        """Return how many rows of each label are kept ("" for all of an open task)."""
        name = self.materials.source.label_field
        return Counter(str(r.outputs[name]) if self.closed else "" for r in self.done if r.kept)

    def tally(self) -> dict[str, Any]:
        """Return what the log says beside the counts."""
        mean = sum(self.similarities) / max(1, len(self.similarities))
        found = {"similarity": round(mean, 3), "own_outputs": sum(r.provenance.level == CLEANED for r in self.done)}
        return {**found, "shares": self.shares, "labels": dict(self.labels())} if self.closed else found

    def wave(self, size: int) -> int:
        """Adapt the next rows and return how many there were."""
        kept = self.labels()
        missing = {label: share - kept[label] for label, share in self.shares.items()}
        return self.adapt([self.job(*taken) for taken in self.choice.take(missing, size)])

    def adapt(self, jobs: Sequence[Job]) -> int:
        """Adapt these rows and return how many there were."""
        self.similarities += [job.similarity for job in jobs]
        rows = self.calls.run(self._adapt, jobs)
        made = [(job, self._record(job, row)) for job, row in zip(jobs, rows, strict=True) if row is not None]
        records = self._meant(made)
        asked = [r for r in records if r.kept and (self.closed or r.outputs)]
        blocks = [record.provenance.block for record in asked]
        answers = answers_of([r.inputs for r in asked], blocks, self.materials, method=Adaptation.name) if asked else []
        told = {id(record): self._told(record, answer) for record, answer in zip(asked, answers, strict=True)}
        for record in records:
            self.done.append(self._within_share(told.get(id(record), record)))
        return len(jobs)

    def _examples(self, block: int) -> list[str]:
        shown = self.materials.source.shown(block)
        drawn = random.Random(f"{self.materials.seed}:{block}").sample(shown, min(self.config.examples, len(shown)))
        return [text_of(row.inputs, self.changed) for row in drawn]

    def job(self, similarity: float, related: Related, block: int) -> Job:
        """Return the rewriting of a related row by a block's prompt, as long as one of the gold rows it may show."""
        seed = int(stable_hash([self.materials.seed, related.id])[:7], 16)
        shown = self.materials.source.shown(block)
        like = shown[seed % len(shown)].inputs
        return Job(related, similarity, block, len(text_of(like, self.changed).split()), seed)

    def settings(self, job: Job) -> dict[str, Any]:
        """Return what a call is told beside the row: examples, length and sampling."""
        row = {name: job.related.inputs[name] for name in self.materials.source.fields}
        config = {
            "temperature": self.config.temperature,
            "top_p": self.config.top_p,
            "max_tokens": tokens_for(row, self.changed, job.words),
            "rollout_id": job.seed,
        }
        return {"examples": self.examples[job.block], "words": job.words, "config": config}

    def _adapt(self, job: Job) -> Mapping[str, Any]:
        row = {name: job.related.inputs[name] for name in self.materials.source.fields}
        made: Any = blind(self.adapter, self.materials.source, job.block, row)(row, **self.settings(job))
        return made.row

    def _record(self, job: Job, row: Mapping[str, Any]) -> Record:
        origin = Provenance(
            Adaptation.name,
            parents=(job.related.id,),
            teacher=str(self.materials.lm.model),
            prompt_hash=stable_hash([self.hash, self.examples[job.block]]),
            seed=job.seed,
            level=CLEANED if job.related.outputs else CHECKED,
            block=job.block,
            attributes=job.related.where,
        )
        record = Record(dict(row), dict(job.related.outputs), origin, scores={"similarity": job.similarity})
        reason = self._reason(row)
        return record.reject(reason) if reason else record

    def _reason(self, row: Mapping[str, Any]) -> str:
        """Return the first rule about the text that an adapted row breaks, "" for none."""
        text = text_of(row, self.changed)
        words, key, factor = len(text.split()), normalize(record_text(row)), self.config.length_factor
        if any(phrase in text.casefold() for phrase in self.leaks):
            return "leaked"
        if self.gold.similar(text):
            return "copies_gold"
        if key in self.seen:
            return "duplicate"
        if not min(self.lengths) / factor <= words <= max(self.lengths) * factor:
            return "too_short" if words < min(self.lengths) else "too_long"
        self.seen.add(key)
        return ""

    def _meant(self, made: Sequence[tuple[Job, Record]]) -> list[Record]:
        """Return the records, those rejected that do not say what their row said."""
        from limbeck.engine.loading import encoder_path

        if encoder_path() is None or not made:
            return [record for _, record in made]
        old, new = (
            self.choice.encode([text_of(row, self.changed) for row in rows])
            for rows in ([job.related.inputs for job, _ in made], [record.inputs for _, record in made])
        )
        close = [float(cosine) for cosine in (old * new).sum(axis=1)]
        return [
            record.reject("other_meaning") if record.kept and cosine < self.config.meaning else record
            for (_, record), cosine in zip(made, close, strict=True)
        ]

    def _told(self, record: Record, answer: Answer) -> Record:
        """Return the record with the program's answer, rejected where its own outputs are not read back."""
        filled = answered(record, answer)
        if not filled.kept or not record.outputs:
            return filled
        labeler = self.materials.labeler
        if labeler.metric is None:
            same = all(str(record.outputs[name]) == str(answer.outputs.get(name)) for name in record.outputs)
        else:
            gold: Any = dspy.Example(**record.inputs, **record.outputs).with_inputs(*record.inputs)
            same = likeness(labeler.metric, gold, dspy.Prediction(**answer.outputs)) >= _RIGHT
        return filled if same else replace(filled, outputs=record.outputs).reject("not_read_back")

    def _within_share(self, record: Record) -> Record:
        if not self.closed or not record.kept:
            return record
        label = str(record.outputs[self.materials.source.label_field])
        return record.reject("over_share") if self.labels()[label] >= self.shares.get(label, 0) else record
