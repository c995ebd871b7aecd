"""Bootstrapped rationales: what a teacher reasons on its way to answers that are known to be right.

STaR (Zelikman et al. 2022, arXiv:2203.14465): the teacher answers a row several times, a rationale that leads to the
right answer is kept (rejection sampling), and where none does, it is told the answer and tries once more; that it was
told is no part of what is kept. Kept rationales become demonstrations for the rows that are left, in the place of
the paper's fine-tuning between rounds. Beyond the paper, a rationale is refused that calculates wrong or breaks off
although the answer is right, and one that says it was told. The student will learn to write text that no person has
read, so the records are of level 4 although inputs and answers are the user's own.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import dspy

from limbeck.checks import wrong_equations
from limbeck.compile.children import child_of, output_specs, pick_rows
from limbeck.compile.concurrent import concurrently
from limbeck.compile.label import FAILED, Labeler, prompt_hash
from limbeck.compile.prompts import blind
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import Cost, Materials, Synthesized, block_of_child
from limbeck.errors import BudgetExceeded, InputError, StageEmpty
from limbeck.metrics import is_number, likeness, same_number
from limbeck.models.labels import label_text
from limbeck.programs.rationale import Attempt, Reasoner, attempt, fitted, mentions_answer, reasons
from limbeck.records import Record, stable_hash
from limbeck.signatures.tasks import FieldSpec, build_signature
from limbeck.verifiers import votes

METHOD = "star"
DIRECT, RATIONALIZED = "direct", "rationalized"
Progress = Callable[[int, int], None]
_SHOWN = 160
# The last characters of a rationale, in which it must have come to a number that it gives as its answer.
_END = 200
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?%?")


@dataclass(frozen=True)
class StarConfig:
    """What is tried for each row.

    `samples` answers, the first at temperature 0 and the others at `temperature`, then with `rationalize` one more
    that is told the answer. An answer is right from the score `accept` of the metric on. Later tries show up to
    `demos` kept rationales of other rows. StageEmpty when the first `patience` calls cannot be read.
    """

    samples: int = 3
    temperature: float = 0.8
    accept: float = 0.99
    rationalize: bool = True
    demos: int = 3
    patience: int = 24
    threads: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Starred:
    """One record a row, rejected ones among them; how many came about how, and what it took."""

    records: tuple[Record, ...]
    direct: int
    rationalized: int
    failed: int
    calls: int
    unreadable: int


class Star:
    """Rationales for the rows it is given; see `limbeck.compile.rationales`.

    A program that reasons is asked as it was compiled, so that its records train it; for any other task it is a chain
    of thought over the same fields. Kept rationales stand before the demonstrations of a compiled prompt.
    """

    name = METHOD
    begins = False
    cost = Cost(calls=3.0, answers=0.0, each=True)

    def __init__(self, config: StarConfig | None = None) -> None:
        self.config = config or StarConfig()

    def check(self, source: Source, options: Mapping[str, Any]) -> None:
        """Raise InputError where no row has an answer to reason to."""
        if not any(row.outputs for row in source.gold):
            raise InputError(
                f"--method {self.name} reasons to known answers, and no row has one", valid="labelled rows"
            )

    def programs(self, source: Source) -> dict[str, dspy.Module]:
        """Return the program that answers the rows of a task whose own program does not reason."""
        inputs = [FieldSpec(name, annotation) for name, annotation in source.fields.items()]
        return {"reason": Reasoner(build_signature(inputs, output_specs(source), source.instructions))}

    def labeler(self, materials: Materials) -> Labeler:
        """Return what answers rows with a rationale: the task's own program, else a chain of thought."""
        labeler = replace(materials.labeler, lm=materials.lm)
        if reasons(next(iter(labeler.programs.values())), labeler.output_fields):
            return labeler
        program, source = materials.programs(self)["reason"], materials.source
        return replace(labeler, programs={b: blind(program, source, b) for b in (-1, *source.blocks)})

    def __call__(self, records: Sequence[Record], materials: Materials, wanted: int) -> Synthesized:
        """Return one record a row, of at most `wanted` rows, with its rationale."""
        # A label that is scored needs one answer, a rationale still several tries.
        samples = max(self.config.samples, materials.samples)
        done = star(
            pick_rows(records, wanted, materials.seed),
            materials.source,
            self.labeler(materials),
            config=replace(self.config, samples=samples, threads=materials.threads, seed=materials.seed),
            progress=materials.show("reasoning to known answers"),
        )
        log = {DIRECT: done.direct, RATIONALIZED: done.rationalized, FAILED: done.failed, "calls": done.calls}
        return Synthesized(done.records, {"failed_calls": done.unreadable} if done.unreadable else {}, {METHOD: log})


def star(
    records: Sequence[Record],
    source: Source,
    labeler: Labeler,
    *,
    config: StarConfig | None = None,
    progress: Progress | None = None,
) -> Starred:
    """Return the rows with a rationale that leads to their answer, the same for the same seed.

    `labeler.programs` maps blocks to programs that reason, the lowest serves blocks it does not name; its metric, else
    equality, says whether an answer is right, and of a row without outputs its verifiers say so. A row is answered by
    the program of its child's block and never sees itself as a demonstration. `progress` gets (rows done, rows).
    Raises StageEmpty where no rationale is kept; BudgetExceeded and KeyboardInterrupt pass through.
    """
    config = config or StarConfig()
    run = _Run(source, labeler, config, progress, [_Row(record, block_of_child(record, source)) for record in records])
    for number in range(config.samples):
        run.wave(number, told=False)
    if config.rationalize:
        run.wave(config.samples, told=True)
    done = tuple(run.record(row) for row in run.rows)
    ways = Counter(record.provenance.attributes for record in done if record.kept)
    if not ways:
        why = ", ".join(f"{n} {reason}" for reason, n in Counter(record.reason for record in done).items())
        raise StageEmpty(
            f"no rationale led to a known answer in {run.calls} calls ({why or 'no row has one'})",
            hint="a larger --teacher",
        )
    failed = len(done) - ways.total()
    return Starred(done, ways[DIRECT], ways[RATIONALIZED], failed, run.calls, run.unreadable)


def explained(records: Sequence[Record], materials: Materials) -> Starred:
    """Return the rows in their order, each with a rationale for the answer that it has, by one call that is told it.

    Raises what `star` does.
    """
    config = StarConfig(samples=0, threads=materials.threads, seed=materials.seed)
    show = materials.show("reasoning to known answers")
    return star(records, materials.source, Star().labeler(materials), config=config, progress=show)


def with_rationales(gold: Sequence[Record], records: Sequence[Record]) -> list[Record]:
    """Return the gold rows, each with the rationale and calls of the kept record that was made from it alone."""
    made = {record.provenance.parents: record for record in records if record.kept and record.rationale}
    children = [made.get((row.id,)) for row in gold]
    return [
        replace(row, rationale=child.rationale, calls=child.calls) if child else row
        for row, child in zip(gold, children, strict=True)
    ]


@dataclass
class _Row:
    """One row: the block of its child, its last try, and why that was refused ("" once one is kept)."""

    record: Record
    block: int
    last: Attempt = field(default_factory=lambda: Attempt({}, "", ()))
    reason: str = FAILED
    way: str = DIRECT
    tries: int = 0


@dataclass
class _Run:
    """The state of one bootstrapping: what has been kept so far."""

    source: Source
    labeler: Labeler
    config: StarConfig
    progress: Progress | None
    rows: list[_Row]
    calls: int = 0
    unreadable: int = 0
    first_error: str = ""

    def wave(self, number: int, *, told: bool) -> None:
        """Answer the rows that are left once more; with `told` those whose answer is known, told it."""
        left = [row for row in self.rows if row.reason and (row.record.outputs or not told)]
        programs = [self._fitted(row, number, told) for row in left]
        lm = self._sampler(number)
        arrived: Counter[bool] = Counter()

        def ask(job: tuple[_Row, dspy.Module]) -> Attempt | str:
            row, program = job
            with dspy.context(lm=lm, adapter=self.labeler.adapter):
                try:
                    fields, untold = self.labeler.output_fields, self._program(row)
                    return attempt(program, row.record.inputs, fields, untold=untold)
                except BudgetExceeded:
                    raise
                except Exception as error:  # one unparsable answer never ends a stage
                    return f"{type(error).__name__}: {error}"[:_SHOWN]

        def watch(made: Attempt | str) -> None:
            arrived[isinstance(made, str)] += 1
            self.first_error = self.first_error or (made if isinstance(made, str) else "")
            if not self.calls and arrived[True] == arrived.total() == self.config.patience:
                raise StageEmpty(f"none of the first {arrived[True]} calls gave an answer: {self.first_error}")
            if self.progress is not None:
                self.progress(len(self.rows) - len(left) + arrived.total(), len(self.rows))

        jobs = list(zip(left, programs, strict=True))
        for row, made in zip(left, concurrently(ask, jobs, threads=self.config.threads, done=watch), strict=True):
            self._judge(row, made, told)
        self.calls += len(left)

    def record(self, row: _Row) -> Record:
        """Return the row's record, rejected with its last try's reason where none was kept."""
        program, given = self._program(row), row.record
        origin = child_of(
            given,
            self.source,
            METHOD,
            self.labeler.lm,
            seed=self.config.seed,
            prompt=prompt_hash(program),
            attributes=row.way,
        )
        several = len(cast(list[Any], program.predictors())) > 1
        outputs = dict(given.outputs or row.last.outputs)
        made = Record(
            given.inputs,
            outputs,
            origin,
            rationale=row.last.rationale,
            calls=_with_outputs(row.last.calls, outputs) if several else (),
            scores={**given.scores, "tries": float(row.tries)},
            weight=given.weight,
        )
        return made.reject(row.reason) if row.reason else made

    def _program(self, row: _Row) -> dspy.Module:
        return self.labeler.programs[self.labeler.block_for(row.block)]

    def _fitted(self, row: _Row, number: int, told: bool) -> dspy.Module:
        """Return the program to ask with: it shows kept rationales that have not seen the row's block either."""
        # A child of the same block was written without sight of that block's gold rows.
        kept = [one for one in self.rows if not one.reason and one.block == row.block and one is not row]
        rng = random.Random(f"{self.config.seed}:{number}:{row.record.id}")
        demos: dict[str, list[dspy.Example]] = {}
        for one in rng.sample(kept, min(self.config.demos, len(kept))):
            for call in _with_outputs(one.last.calls, one.record.outputs):
                demo = dspy.Example(**call["inputs"], **call["outputs"])
                demos.setdefault(call["predictor"], []).append(cast(Any, demo).with_inputs(*call["inputs"]))
        return fitted(self._program(row), row.record.inputs, demos, row.record.outputs if told else None)

    def _sampler(self, number: int) -> Any:
        if not number:
            return cast(Any, self.labeler.lm).copy(temperature=0.0)
        rollout = self.config.seed * 1000 + number
        return cast(Any, self.labeler.lm).copy(temperature=self.config.temperature, rollout_id=rollout)

    def _judge(self, row: _Row, made: Attempt | str, told: bool) -> None:
        row.tries += 1
        if isinstance(made, str):
            self.unreadable += 1
            return
        row.last, row.way = made, RATIONALIZED if told else DIRECT
        row.reason = self._refused(row.record, made, told)

    def _refused(self, record: Record, made: Attempt, told: bool) -> str:
        """Return the first rule that a try breaks, "" for one to keep."""
        if not made.rationale.strip():
            return "no_rationale"
        if record.outputs and not self._right(record, made.outputs):
            return "wrong_answer"
        if not record.outputs:
            verdicts = votes(self.labeler.verifiers, record.inputs, made.outputs)
            refused = next((f"verifier:{name}" for name, verdict in verdicts.items() if not verdict.ok), "")
            if refused or not verdicts:
                return refused or "unverified"
        if wrong_equations(made.rationale)[0]:
            return "wrong_equation"
        # One call writes the rationale and then the answer; of several calls the last one may hold the answer alone.
        if len(made.calls) == 1 and not comes_to(made.rationale, record.outputs or made.outputs):
            return "unfinished"
        return "mentions_answer" if told and mentions_answer(made.rationale, record.inputs) else ""

    def _right(self, record: Record, outputs: Mapping[str, Any]) -> bool:
        if self.labeler.metric is None:
            texts = [{name: label_text(found[name]) for name in record.outputs} for found in (record.outputs, outputs)]
            return stable_hash(texts[0]) == stable_hash(texts[1])
        gold = cast(Any, dspy.Example(**record.inputs, **record.outputs)).with_inputs(*record.inputs)
        return likeness(self.labeler.metric, gold, dspy.Prediction(**outputs)) >= self.config.accept


def comes_to(rationale: str, outputs: Mapping[str, Any]) -> bool:
    """Return whether a rationale ends at its answer, where that is a number: told the answer, a model may break off.

    >>> comes_to("3 + 4 = 7, so 7 are left.", {"answer": 7}), comes_to("We add 3 and", {"answer": 7})
    (True, False)
    """
    numbers = [value for value in outputs.values() if is_number(value)]
    ends = [found.rstrip(",") for found in _NUMBER.findall(rationale[-_END:])]
    return not numbers or any(same_number(value, end) for value in numbers for end in ends)


def _with_outputs(calls: Sequence[Mapping[str, Any]], outputs: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Return the calls with each output of the task as it is known, in the last call that writes it."""
    last = {name: at for at, call in enumerate(calls) for name in call["outputs"] if name in outputs}
    return tuple(
        {**call, "outputs": {**call["outputs"], **{name: outputs[name] for name, i in last.items() if i == at}}}
        for at, call in enumerate(calls)
    )
