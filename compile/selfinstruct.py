"""New inputs for open outputs the Self-Instruct way, answered by rejection sampling.

Wang et al. 2023 (arXiv:2212.10560): eight demonstrations a prompt, up to two of them generated, the others
gold; inputs of three words or fewer, over 150 words, with blacklisted words or too close (ROUGE-L over 0.7)
to any earlier one are rejected. A limit that gold rows themselves break is widened to fit them. Each input is
answered by several samples of the compiled program; verifiers refuse, agreement under the metric chooses.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from limbeck.compile.concurrent import concurrently
from limbeck.compile.dedup import normalize, record_text
from limbeck.compile.focus import Focus
from limbeck.compile.label import LabelConfig, Labeler, answer_all, answered
from limbeck.compile.pairs import sampled_preferences
from limbeck.compile.prompts import blind
from limbeck.compile.rouge import RougeIndex
from limbeck.compile.source import Source, writer_of
from limbeck.compile.synthesize import written_by
from limbeck.errors import BudgetExceeded, StageEmpty
from limbeck.preferences import Preference
from limbeck.programs.generate import Condition, InputWriter
from limbeck.records import CHECKED, Provenance, Record, stable_hash

METHOD = "self_instruct"
Progress = Callable[[str, int, int], None]
# What a text model cannot see or do, from the paper's own filter.
BLACKLIST = (
    "image",
    "images",
    "graph",
    "graphs",
    "picture",
    "pictures",
    "file",
    "files",
    "map",
    "plot",
    "draw",
)
# Demonstrations together hold no more words than this: long rows would fill a small model's context.
_MAX_DEMO_WORDS = 700
_SHOWN = 160


@dataclass(frozen=True)
class SelfInstructConfig:
    """What is written and what it may cost.

    `total` accepted inputs in at most `max_calls` calls (None: three times what is needed if every line were
    accepted), `per_call` texts each and `wave` calls between two looks at the pool; then `samples` answers
    an input. StageEmpty when the first `patience` calls give nothing that passes.
    """

    total: int = 120
    demos: int = 8
    generated_demos: int = 2
    per_call: int = 4
    wave: int = 16
    min_words: int = 4
    max_words: int = 150
    rouge: float = 0.7
    temperature: float = 0.8
    top_p: float = 0.95
    samples: int = 3
    answer_temperature: float = 0.7
    max_calls: int | None = None
    patience: int = 24
    threads: int = 16
    seed: int = 0
    focus: Focus = field(default_factory=Focus)


@dataclass(frozen=True)
class SelfInstructed:
    """The records, rejected ones among them, with the calls that wrote the inputs and a count by reason.

    `preferences` are pairs of answers that verifiers told apart.
    """

    records: tuple[Record, ...]
    calls: int
    failed: int
    counts: Mapping[str, int]
    preferences: tuple[Preference, ...] = ()


def self_instruct(
    source: Source,
    labeler: Labeler,
    *,
    config: SelfInstructConfig | None = None,
    writer: InputWriter | None = None,
    progress: Progress | None = None,
) -> SelfInstructed:
    """Return records of new inputs with their answers, the same for the same seed.

    `labeler.programs` needs the blocks of `source`; `writer` may have a compiled prompt. A rejected input is not
    answered. `progress` gets ("write" or "answer", done, wanted). StageEmpty when nothing passes; BudgetExceeded and
    KeyboardInterrupt pass through.
    """
    config = config or SelfInstructConfig()
    writer = writer or writer_of(source, labelled=False)
    run = _Run(source, writer, labeler.lm, labeler.adapter, config, progress)
    run.write()
    asked = [record for record in run.records if record.kept]
    answers = answer_all(
        [record.inputs for record in asked],
        labeler,
        blocks=[record.provenance.block for record in asked],
        config=LabelConfig(
            METHOD,
            config.samples,
            config.answer_temperature if config.samples > 1 else None,
            config.threads,
            config.seed,
            config.patience,
        ),
        progress=(lambda done, wanted: progress("answer", done, wanted)) if progress else None,
    )
    filled = iter(answered(r, a) for r, a in zip(asked, answers, strict=True))
    records = tuple(next(filled) if record.kept else record for record in run.records)
    counts: Mapping[str, int] = Counter(r.reason for r in records if r.reason)
    preferences = tuple(sampled_preferences(asked, answers, seed=config.seed))
    return SelfInstructed(records, run.calls, run.failed, dict(counts), preferences)


class InputFilter:
    """Self-Instruct's rules on one new input, in order; what passes is remembered.

    Limits and blacklist give way to what the gold rows themselves contain.
    """

    def __init__(self, gold: Sequence[str], config: SelfInstructConfig) -> None:
        lengths = [len(text.split()) for text in gold] or [config.min_words]
        self.shortest = min(config.min_words, *lengths) if gold else config.min_words
        self.longest = max(config.max_words, *lengths) if gold else config.max_words
        used = {word for text in gold for word in normalize(text).split()}
        self.blacklist = frozenset(BLACKLIST) - used
        self.index = RougeIndex(threshold=config.rouge)
        for text in gold:
            self.index.add(text)

    def reason(self, text: str) -> str:
        """Return the name of the first rule the text breaks, "" for one that passes."""
        words = len(text.split())
        if words < self.shortest:
            return "too_short"
        if words > self.longest:
            return "too_long"
        if self.blacklist & set(normalize(text).split()):
            return "blacklisted"
        if self.index.similar(text):
            return "similar"
        self.index.add(text)
        return ""


@dataclass(frozen=True)
class _Job:
    block: int
    shown: tuple[Record, ...]
    demos: tuple[dspy.Example, ...]
    seed: int


@dataclass
class _Run:
    """The state of one Self-Instruct run: what has been written so far."""

    source: Source
    writer: InputWriter
    lm: dspy.LM
    adapter: Any
    config: SelfInstructConfig
    progress: Progress | None
    records: list[Record] = field(default_factory=list[Record])
    calls: int = 0
    failed: int = 0
    first_error: str = ""

    def __post_init__(self) -> None:
        self.filter = InputFilter([record_text(row.inputs) for row in self.source.gold], self.config)

    @property
    def accepted(self) -> list[Record]:
        return [record for record in self.records if record.kept]

    def write(self) -> None:
        """Write inputs wave by wave until enough are accepted or the calls are spent."""
        per_call = self.config.per_call if self.writer.several else 1
        limit = self.config.max_calls or 3 * -(-self.config.total // per_call)
        while (missing := self.config.total - len(self.accepted)) > 0 and self.calls < limit:
            size = min(self.config.wave, -(-missing // per_call), limit - self.calls)
            jobs = [self._job(self.calls + i) for i in range(size)]
            written = concurrently(lambda job: self._call(job, per_call), jobs, threads=self.config.threads)
            for job, rows in zip(jobs, written, strict=True):
                self._keep(job, rows)
            if self.progress is not None:
                self.progress("write", min(len(self.accepted), self.config.total), self.config.total)
            if not self.accepted and self.calls >= min(self.config.patience, limit):
                raise self._empty()

    def _job(self, number: int) -> _Job:
        """Return one call: demonstrations drawn from the block's gold rows and its own accepted inputs."""
        blocks = self.source.blocks
        block = blocks[number % len(blocks)]
        rng = random.Random(f"{self.config.seed}:{number}")
        made = [record for record in self.accepted if record.provenance.block == block]
        made = rng.sample(made, min(self.config.generated_demos, len(made)))
        gold = self.source.shown(block)
        seeds = self.config.focus.draw(gold, min(self.config.demos - len(made), len(gold)), rng)
        shown = within_words(rng.sample([*seeds, *made], len(seeds) + len(made)))
        demos = self.writer.demos([record.inputs for record in shown], Condition())
        seed = int(stable_hash([self.config.seed, number])[:7], 16)
        return _Job(block, tuple(shown), tuple(demos), seed)

    def _call(self, job: _Job, count: int) -> tuple[Mapping[str, Any], ...] | str:
        """Return the rows written, or what went wrong."""
        config = {
            "temperature": self.config.temperature,
            "top_p": self.config.top_p,
            "max_tokens": self.source.tokens * count,
            "rollout_id": job.seed,
        }
        writer = blind(self.writer, self.source, job.block)
        with dspy.context(lm=self.lm, adapter=self.adapter, trace=None):
            try:
                made: Any = writer(Condition(), count=count, demos=job.demos, config=config)
            except BudgetExceeded:
                raise
            except Exception as error:  # one unparsable answer never ends a stage
                return f"{type(error).__name__}: {error}"[:_SHOWN]
        return tuple(made.rows) or (f"it refuses: {made.refused}" if made.refused else "no line that is a text")

    def _keep(self, job: _Job, rows: tuple[Mapping[str, Any], ...] | str) -> None:
        self.calls += 1
        if isinstance(rows, str):
            self.failed += 1
            self.first_error = self.first_error or rows
            return
        for row in rows:
            origin = Provenance(
                METHOD,
                parents=tuple(record.id for record in job.shown),
                teacher=str(self.lm.model),
                prompt_hash=written_by(self.writer, self.source, job.demos),
                seed=job.seed,
                level=CHECKED,
                block=job.block,
            )
            record = Record(dict(row), {}, origin)
            reason = self.filter.reason(record_text(row))
            self.records.append(record.reject(reason) if reason else record)

    def _empty(self) -> StageEmpty:
        why = ", ".join(f"{n} {reason}" for reason, n in Counter(r.reason for r in self.records).items())
        return StageEmpty(
            f"no new input in {self.calls} calls ({why or self.first_error})",
            hint="give --unlabeled rows, or a larger --teacher",
        )


def within_words(rows: Sequence[Record]) -> list[Record]:
    """Return the rows, from the first on, that together are short enough for a prompt; one at least."""
    shown: list[Record] = []
    words = 0
    for row in rows:
        words += len(record_text(row.inputs).split())
        if shown and words > _MAX_DEMO_WORDS:
            break
        shown.append(row)
    return shown
