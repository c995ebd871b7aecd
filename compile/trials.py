"""Compile the programs that write rows against the user's labels, with the optimizers that the task's own program has.

A trial says what a part of a method is given of a gold row and what its answer is worth by the labels, in [0, 1]. With
it a part is a task like any other: it is compiled on the training rows, and kept only where it beats the plain part on
dev rows. What a prompt shows of gold rows comes from the training rows and never from the row that is asked about.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import dspy

from limbeck.compile.optimize import Compiled, Effort, Progress, compile_program
from limbeck.compile.optimizers import Job, Optimizer, built_in, for_effort
from limbeck.compile.prompts import ANY, SEEN, row_key
from limbeck.compile.rewriting import answers_of
from limbeck.compile.source import Source
from limbeck.compile.split import Split
from limbeck.compile.synthesizers import Materials, WithPrograms
from limbeck.errors import InputError
from limbeck.metrics import likeness
from limbeck.models.labels import label_text
from limbeck.records import Record, stable_hash
from limbeck.task import Task

# They show labelled rows as they are: a program that writes rows has other fields than the rows.
ROWS_ALONE = ("labeled", "knn")
# It asks for feedback in words, and a trial gives a number.
NEEDS_WORDS = ("gepa",)


@dataclass(frozen=True)
class Ground:
    """What a trial is made of: the method with its plain programs, what they may use, and the gold rows by their use.

    Gold rows stand in `materials.source`, training rows first; `dev` of them, the last ones, are dev rows.
    """

    method: WithPrograms
    materials: Materials
    dev: int

    @property
    def source(self) -> Source:
        """What the writers know of the task."""
        return self.materials.source

    @cached_property
    def programs(self) -> dict[str, Any]:
        """The method's plain programs by part."""
        return dict(self.method.programs(self.source))

    def dev_of(self, rows: Sequence[Record]) -> int:
        """Return how many of these rows, the last ones, are dev rows: a third of those that are not gold."""
        gold = [row.id for row in self.source.gold]
        held = set(gold[len(gold) - self.dev :])
        return sum(row.id in held for row in rows) if {row.id for row in rows} <= set(gold) else len(rows) // 3

    def seed(self, row: Record, number: int = 0) -> int:
        """Return the seed of a row's call, the same for every candidate prompt."""
        return int(stable_hash([self.materials.seed, number, row_key(row.inputs)])[:7], 16)

    def without(self, row: Record) -> Source:
        """Return the source with the training rows alone, the row left out: what a prompt may show when asked of it."""
        source, key = self.source, row_key(row.inputs)
        train = len(source.gold) - self.dev
        folds = source.folds or (-1,) * len(source.gold)
        kept = [
            (one, fold)
            for one, fold in list(zip(source.gold, folds, strict=True))[:train]
            if row_key(one.inputs) != key
        ]
        return replace(
            source, gold=tuple(one for one, _ in kept), folds=tuple(fold for _, fold in kept) if source.folds else ()
        )

    def label_of(self, row: Record) -> str:
        """Return the row's label."""
        return str(row.outputs[self.source.label_field])

    def likeness(self, row: Record, outputs: Mapping[str, Any]) -> float:
        """Return the task's metric of outputs for a row, in a task of labels whether they are the row's own."""
        metric = self.materials.labeler.metric
        if metric is None:
            return float(all(label_text(row.outputs[n]) == label_text(outputs.get(n)) for n in row.outputs))
        gold: Any = dspy.Example(**row.inputs, **row.outputs).with_inputs(*row.inputs)
        return likeness(metric, gold, dspy.Prediction(**outputs))

    def read_back(self, inputs: Sequence[Mapping[str, Any]], row: Record) -> list[float]:
        """Return the probability of the row's label that the compiled program reads in each text, 0 where it cannot.

        It is the program that never shows the row's fold; of a server without probabilities they are vote shares.
        """
        blocks, label = [row.provenance.block] * len(inputs), self.label_of(row)
        found = answers_of(inputs, blocks, self.materials, method=self.method.name, samples=self.materials.samples)
        said = [one.soft or {str(one.outputs.get(self.source.label_field)): 1.0} for one in found]
        return [0.0 if one.reason else soft.get(label, 0.0) for one, soft in zip(found, said, strict=True)]

    def answerable(self, inputs: Sequence[Mapping[str, Any]], row: Record) -> list[float]:
        """Return how far the compiled program agrees with itself on each text; 0 where verifiers refuse its answers.

        Of a label that is its probability, of an open answer the mean likeness of two samples or more.
        """
        blocks, samples = [row.provenance.block] * len(inputs), self.materials.samples
        samples = samples if self.source.labels else max(2, samples)
        found = answers_of(inputs, blocks, self.materials, method=self.method.name, samples=samples)
        return [
            0.0 if one.reason else max(one.soft.values()) if one.soft else one.scores.get("agreement", 1.0)
            for one in found
        ]


@dataclass(frozen=True)
class Trial:
    """How labels measure one part.

    `run` asks the part about a row, `score` says what its prediction is worth, in [0, 1] and from one half on good
    enough to be shown as a demonstration. `shown` names the gold rows that a prompt sees, and so what comes of it.
    `rows` are those it is tried on, None for all gold rows; of rows that are not gold the last third are dev rows.
    """

    run: Callable[[Any, Record], Any]
    score: Callable[[Record, Any], float]
    shown: Callable[[Record], Sequence[Record]] = lambda row: (row,)
    rows: Sequence[Record] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Trial:
        # DSPy copies programs freely; the models and rows behind a trial exist once.
        return self


class _Seen:
    """Which gold rows each call of a part had in view, by what the call was given and what it said."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[str, set[str]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Seen:
        return self

    def note(self, signature: Any, values: Mapping[str, Any], rows: Sequence[Record]) -> None:
        with self._lock:
            self._rows.setdefault(_key(signature, values), set()).update(row_key(row.inputs) for row in rows)

    def tell(self, program: dspy.Module) -> None:
        """Write into each demonstration of a program what it has seen."""
        for predictor in cast(list[Any], program.predictors()):
            demos = [demo for demo in predictor.demos if demo.get("augmented")]
            for demo in demos:
                demo[SEEN] = " ".join(sorted(self._rows.get(_key(predictor.signature, demo), {ANY})))


def _key(signature: Any, values: Any) -> str:
    return stable_hash({name: values.get(name) for name in signature.fields})


class Bench(dspy.Module):
    """A part under trial as a program of the task's rows: inputs and outputs of a row in, the part's prediction out."""

    def __init__(self, part: dspy.Module, trial: Trial, rows: Mapping[str, Record], seen: _Seen) -> None:
        super().__init__()
        self.part = part
        self.trial, self.rows, self.seen = trial, _Rows(rows), seen

    def forward(self, **fields: Any) -> dspy.Prediction:
        """Ask the part about one row."""
        row, outer, own = self.rows.find(fields), cast("list[Any] | None", dspy.settings.trace), list[Any]()
        with dspy.context(trace=own):  # DSPy's list is shared by all threads: it holds other rows' calls as well
            made = self.trial.run(self.part, row)
        for predictor, given, said in own:
            self.seen.note(predictor.signature, {**given, **dict(said.items())}, self.trial.shown(row))
        if outer is not None:
            outer.extend(own)
        return made


class _Rows:
    """Rows by what they hold; shared by the copies of a bench."""

    def __init__(self, rows: Mapping[str, Record]) -> None:
        self._rows = rows

    def __deepcopy__(self, memo: dict[int, Any]) -> _Rows:
        return self

    def find(self, fields: Mapping[str, Any]) -> Record:
        return self._rows[stable_hash(dict(fields))]


@dataclass(frozen=True)
class _Writing:
    """An optimizer for programs that write rows.

    A predictor for which it found no demonstration keeps those it has: without them a small model loses the form.
    """

    inner: Optimizer

    @property
    def name(self) -> str:
        return self.inner.name

    def refuse(self, task: Task, split: Split, reflection_lm: dspy.LM | None) -> str:
        if self.name in ROWS_ALONE:
            return "it shows labelled rows as they are, which are no demonstrations for a program that writes rows"
        if not split.dev:
            return "there are no dev rows to compare on"
        return self.inner.refuse(task, split, reflection_lm)

    def run(self, job: Job) -> dspy.Module:
        made = self.inner.run(job)
        plain: dict[str, Any] = dict(job.task.program.named_predictors())
        for name, predictor in cast(list[tuple[str, Any]], made.named_predictors()):
            predictor.demos = predictor.demos or list(plain[name].demos)
        return made


def usable_optimizers() -> tuple[str, ...]:
    """Return the names of the optimizers that can compile a program which writes rows."""
    return tuple(name for name in built_in() if name not in (*ROWS_ALONE, *NEEDS_WORDS))


def compile_part(
    part: str,
    ground: Ground,
    trial: Trial,
    *,
    optimizer: str = "",
    effort: Effort = "quick",
    reflection_lm: dspy.LM | None = None,
    progress: Progress | None = None,
) -> Compiled:
    """Return the part compiled against the labels, or as it is where no candidate beats it on dev rows.

    `optimizer` "" stands for what the effort level tries. Each demonstration of the compiled program says which gold
    rows it has seen (`limbeck.compile.prompts.blind`). Raises InputError for an optimizer that refuses the rows;
    BudgetExceeded and KeyboardInterrupt pass through.
    """
    materials, seen = ground.materials, _Seen()
    rows = list(ground.source.gold if trial.rows is None else trial.rows)
    dev = ground.dev_of(rows)
    pairs = [({**row.inputs, **row.outputs}, row) for row in rows]
    # Everything is an input: a writer is given the label, and no output of the task is what it writes.
    examples = [cast(Any, dspy.Example(**fields)).with_inputs(*fields) for fields, _ in pairs]
    bench = Bench(ground.programs[part], trial, {stable_hash(fields): row for fields, row in pairs}, seen)

    def metric(example: Any, prediction: Any, trace: Any = None) -> float:
        return trial.score(bench.rows.find(dict(example.items())), prediction)

    split = Split(tuple(examples[: len(rows) - dev]), tuple(examples[len(rows) - dev :]), (), (0,) * len(rows), 0)
    names = tuple(dict.fromkeys(name for fields, _ in pairs for name in fields))
    task = Task(f"{ground.method.name}.{part}", bench, tuple(examples), metric, "trial", "program", names, ())
    known = {name: _Writing(one) for name, one in built_in().items()}
    tried = [known[optimizer]] if optimizer else [_Writing(one) for one in for_effort(effort, task)]
    if optimizer and (reason := known[optimizer].refuse(task, split, reflection_lm)):
        usable = [name for name, one in known.items() if not one.refuse(task, split, reflection_lm)]
        raise InputError(f"{optimizer} cannot compile {task.name}: {reason}", valid=", ".join(usable))
    compiled = compile_program(
        task,
        split,
        materials.lm,
        optimizer=tried[0] if optimizer else tried,
        effort=effort,
        seed=materials.seed,
        adapter=materials.adapter,
        reflection_lm=reflection_lm,
        progress=progress,
    )
    program = cast(Bench, compiled.program).part
    if compiled.kept:
        seen.tell(program)
    return replace(compiled, program=program)
