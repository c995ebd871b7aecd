"""Label-conditioned generation: choose the label first, then have an input written for it.

Generating the input is the easy direction (Josifoski et al. 2023, arXiv:2303.04132), and it gives control
over the label distribution. Variety comes from attributes (Yu et al. 2023, arXiv:2306.15895), from
demonstrations drawn anew for every block and wave, and from a seed per call. A block's prompts never show its
gold fold.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import dspy

from limbeck.compile.attributes import Attributes, lengths_of, propose
from limbeck.compile.concurrent import concurrently
from limbeck.compile.dedup import normalize, record_text
from limbeck.compile.focus import Focus
from limbeck.compile.label import prompt_hash
from limbeck.compile.prompts import blind
from limbeck.compile.source import Source, writer_of
from limbeck.errors import BudgetExceeded, InputError, StageEmpty
from limbeck.programs.generate import ANY_STYLE, Condition, InputWriter, TopicProposer
from limbeck.records import CHECKED, Provenance, Record, stable_hash

METHOD = "label_conditioned"
Distribution = Literal["uniform", "observed"] | Mapping[str, float]
Progress = Callable[[int, int], None]
_SHOWN = 160


@dataclass(frozen=True)
class SynthesisConfig:
    """What is written and what it may cost.

    `total` inputs over the labels by `distribution`; at most `max_calls` calls (None: twice what is needed
    if every call gave what it was asked for), `per_call` texts each. It ends after `patience` calls in a row
    without anything new. `demos` rows of the label and two other labels' rows stand in each prompt. `styled` is the
    share of calls that ask for a style (attributes); the others ask for more of what gold rows are like. A
    135M model follows no style and writes better without: give it 0. `focus` is what a student got wrong;
    `method` stands in each record's provenance.
    """

    total: int = 240
    distribution: Distribution = "uniform"
    per_call: int = 5
    demos: int = 4
    other_labels: int = 2
    temperature: float = 0.8
    top_p: float = 0.95
    styled: float = 0.5
    topics: bool = True
    max_calls: int | None = None
    patience: int = 24
    threads: int = 16
    seed: int = 0
    focus: Focus = field(default_factory=Focus)
    method: str = METHOD


@dataclass(frozen=True)
class Synthesis:
    """The records written, with what it took: calls, calls that gave nothing, and by label calls that were refused.

    Copies are still among the records; `new` counts each input once, `wanted` is what was asked for.
    """

    records: tuple[Record, ...]
    calls: int
    failed: int
    wanted: Mapping[str, int]
    new: Mapping[str, int]
    attributes: Attributes
    refused: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to say of labels that the model declined to write for."""
        return tuple(
            f"label {label!r}: the teacher refused {n} calls and wrote {self.new.get(label, 0)} of "
            f"{self.wanted[label]} rows; label descriptions or another teacher may help"
            for label, n in self.refused.items()
        )


def synthesize(
    source: Source,
    *,
    lm: dspy.LM,
    adapter: Any,
    config: SynthesisConfig | None = None,
    writer: InputWriter | None = None,
    progress: Progress | None = None,
) -> Synthesis:
    """Return records of written inputs with the labels they were written for, the same for the same seed.

    Works in waves: each asks for what is still missing of every label, with demonstrations drawn anew. `writer` may
    have a compiled prompt. `progress` gets (new inputs, inputs wanted). Raises InputError for a distribution over
    unknown labels, StageEmpty when nothing new comes; BudgetExceeded and KeyboardInterrupt pass through.
    """
    config = config or SynthesisConfig()
    wanted = label_counts(source, config)
    attributes = _attributes(source, lm, adapter, config)
    writer = writer or writer_of(source, labelled=True)
    run = _Run(source, writer, lm, adapter, config, wanted, progress)
    per_call = config.per_call if writer.several else 1
    limit = config.max_calls or 2 * sum(-(-n // per_call) for n in wanted.values())
    wave = barren = 0
    while barren < config.patience and run.calls < limit:
        jobs = run.plan(attributes, wave, per_call)[: limit - run.calls]
        if not jobs:
            break
        before = sum(run.new.values())
        run.write(jobs)
        barren = barren + len(jobs) if sum(run.new.values()) == before else 0
        wave += 1
    if not run.records:
        raise run.empty()
    return Synthesis(tuple(run.records), run.calls, run.failed, wanted, dict(run.new), attributes, dict(run.refused))


def label_counts(source: Source, config: SynthesisConfig) -> dict[str, int]:
    """Return how many inputs to write for each label; they sum to `config.total` (largest remainders)."""
    labels, given = source.labels, config.distribution
    if given == "uniform":
        shares = dict.fromkeys(labels, 1.0)
    elif given == "observed":
        seen = Counter(str(row.outputs.get(source.label_field)) for row in source.gold)
        shares = {label: float(seen[label]) for label in labels}
    else:
        shares = {label: float(n) for label, n in given.items()}
        unknown = sorted(set(shares) - set(labels))
        if unknown or min(shares.values(), default=0.0) < 0:
            raise InputError(f"label distribution over {unknown or shares}", valid=", ".join(labels))
    if sum(shares.values()) <= 0:
        raise InputError("a label distribution needs a share above 0", valid=", ".join(labels))
    exact = {label: config.total * share for label, share in config.focus.distribution(shares).items()}
    counts = {label: int(n) for label, n in exact.items()}
    rest = sorted(exact, key=lambda label: counts[label] - exact[label])
    for label in rest[: config.total - sum(counts.values())]:
        counts[label] += 1
    return counts


class Prompt(NamedTuple):
    """The demonstrations of a prompt, the ids of those gold rows that have the wanted label, and all rows shown."""

    demos: tuple[dspy.Example, ...]
    parents: tuple[str, ...]
    shown: tuple[Record, ...]


@dataclass(frozen=True)
class _Job:
    """One call: what to write, shown what, and under which seed."""

    condition: Condition
    count: int
    block: int
    prompt: Prompt
    seed: int


@dataclass(frozen=True)
class _Written:
    rows: tuple[Mapping[str, Any], ...]
    error: str = ""
    refused: bool = False


@dataclass
class _Run:
    """The state of one synthesis: what has been written so far."""

    source: Source
    writer: InputWriter
    lm: dspy.LM
    adapter: Any
    config: SynthesisConfig
    wanted: Mapping[str, int]
    progress: Progress | None
    records: list[Record] = field(default_factory=list[Record])
    new: Counter[str] = field(default_factory=Counter[str])
    calls: int = 0
    failed: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])
    first_error: str = ""

    def __post_init__(self) -> None:
        self.seen = {normalize(record_text(row.inputs)) for row in self.source.gold}

    def plan(self, attributes: Attributes, wave: int, per_call: int) -> list[_Job]:
        """Return the calls that would fill what is missing, prompts with a common beginning together."""
        jobs: list[_Job] = []
        blocks, prompts = self.source.blocks, dict[tuple[str, int], Prompt]()
        for turn, (label, wanted) in enumerate(self.wanted.items()):
            calls = -(-max(0, wanted - self.new[label]) // per_call)
            for i, style in enumerate(attributes.styles(label, calls, self.config.seed + wave)):
                # Labels begin with different blocks: with one call a label, all blocks are still used.
                block = blocks[(i + turn + wave) % len(blocks)]
                if (label, block) not in prompts:
                    prompts[label, block] = prompt_of(self.source, self.writer, label, block, wave, config=self.config)
                share = self.config.styled
                style = style if int((i + 1) * share) > int(i * share) else ANY_STYLE
                condition = Condition(label, self.source.meanings.get(label, ""), style)
                seed = int(stable_hash([self.config.seed, wave, label, i])[:7], 16)
                jobs.append(_Job(condition, per_call, block, prompts[label, block], seed))
        return sorted(jobs, key=lambda job: job.block)

    def write(self, jobs: Sequence[_Job]) -> None:
        """Make the calls and keep what they give, in the order of the jobs."""
        arrived: Counter[str] = Counter()

        def watch(written: _Written) -> None:
            arrived["calls"] += not written.refused  # one label that is refused says nothing of the others
            arrived["rows"] += len(written.rows)
            self.first_error = self.first_error or written.error
            if not arrived["rows"] and not self.records and arrived["calls"] >= self.config.patience:
                raise self.empty(arrived["calls"])
            if self.progress is not None:
                goal = sum(self.wanted.values())
                self.progress(min(goal, sum(self.new.values()) + arrived["rows"]), goal)

        results = concurrently(self._call, jobs, threads=self.config.threads, done=watch)
        for job, written in zip(jobs, results, strict=True):
            self.calls += 1
            self.failed += not written.rows
            self.refused.update([job.condition.label] if written.refused else [])
            for row in written.rows:
                self._keep(row, job)

    def empty(self, calls: int = 0) -> StageEmpty:
        """Return the error that says why nothing was written."""
        return StageEmpty(
            f"synthesis gave no input in {calls or self.calls} calls; the first answer: {self.first_error}",
            hint="give --unlabeled rows, or a larger --teacher",
        )

    def _call(self, job: _Job) -> _Written:
        config = {
            "temperature": self.config.temperature,
            "top_p": self.config.top_p,
            "max_tokens": self.source.tokens * job.count,
            "rollout_id": job.seed,
        }
        writer = blind(self.writer, self.source, job.block)
        with dspy.context(lm=self.lm, adapter=self.adapter, trace=None):
            try:
                made: Any = writer(job.condition, count=job.count, demos=job.prompt.demos, config=config)
            except BudgetExceeded:
                raise
            except Exception as error:  # one unparsable answer never ends a stage
                return _Written((), f"{type(error).__name__}: {error}"[:_SHOWN])
        if made.refused:
            return _Written((), f"it refuses: {made.refused}"[:_SHOWN], refused=True)
        return _Written(tuple(made.rows), "" if made.rows else "no line that is a text")

    def _keep(self, row: Mapping[str, Any], job: _Job) -> None:
        origin = Provenance(
            self.config.method,
            parents=job.prompt.parents,
            teacher=str(self.lm.model),
            prompt_hash=written_by(self.writer, self.source, job.prompt.demos),
            seed=job.seed,
            level=CHECKED,
            block=job.block,
            attributes=job.condition.style,
        )
        self.records.append(Record(dict(row), {self.source.label_field: job.condition.label}, origin))
        text = normalize(record_text(row))
        if text and text not in self.seen:
            self.seen.add(text)
            self.new[job.condition.label] += 1


def prompt_of(
    source: Source, writer: InputWriter, label: str, block: int, wave: int = 0, *, config: SynthesisConfig
) -> Prompt:
    """Return demonstrations of other labels, the same for all labels of a block without a focus, then of this."""
    rng = random.Random(f"{config.seed}:{wave}:{block}")
    others = config.focus.others(label, rng.sample(source.labels, len(source.labels)))
    chosen = [o for o in others[: config.other_labels + 1] if o != label][: config.other_labels]
    demos: list[dspy.Example] = []
    shown: dict[str, list[Record]] = {}
    for name in (*chosen, label):
        rows = source.shown(block, name)
        size = config.demos if name == label else max(1, config.demos - 1)
        draw = random.Random(f"{config.seed}:{wave}:{block}:{name}")
        shown[name] = draw.sample(rows, min(size, len(rows)))
        condition = Condition(name, source.meanings.get(name, ""))
        demos += writer.demos([r.inputs for r in shown[name]], condition)
    every = tuple(row for rows in shown.values() for row in rows)
    return Prompt(tuple(demos), tuple(row.id for row in shown[label]), every)


def written_by(writer: InputWriter, source: Source, demos: Sequence[dspy.Example]) -> str:
    """Return the hash of a writer's prompt with a call's demonstrations; a compiled prompt counts as well."""
    own, plain = prompt_hash(writer), prompt_hash(writer_of(source, labelled=writer.labelled))
    return stable_hash([source.instructions, [dict(d.items()) for d in demos], *([own] if own != plain else [])])


def _attributes(source: Source, lm: dspy.LM, adapter: Any, config: SynthesisConfig) -> Attributes:
    texts = [record_text(row.inputs) for row in source.gold]
    if not config.topics or not config.styled:
        return Attributes(lengths_of(texts))
    proposer = TopicProposer(
        " and ".join(source.fields), source.instructions, labelled=True, described=bool(source.meanings)
    )
    # Topics are a few words that serve all blocks; one block's rows are shown for them.
    block = source.blocks[0]
    examples = {n: [record_text(r.inputs) for r in source.shown(block, n)] for n in source.labels}
    return propose(
        proposer,
        {label: rows for label, rows in examples.items() if rows},
        source.meanings,
        lm,
        adapter=adapter,
        lengths=lengths_of(texts),
        seed=config.seed,
    )
