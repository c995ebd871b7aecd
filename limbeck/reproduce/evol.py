"""Evol-Instruct (Xu et al. 2023): are problems made harder round by round worth more than as many of the originals?

Originals are sums of one or two operations. In the place of the paper's large model stands a small one that learned
from examples to make a sum harder, to write another one, and to say what a second sum asks beyond a first; the rounds,
the operations and the rules are those of `EvolInstruct`. What it keeps is worked out exactly. Students learn originals
alone, or originals with evolved sums, and answer sums of one to four operations.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, cast

import dspy

from limbeck.compile.evolve import EvolInstruct, EvolveConfig
from limbeck.compile.label import FAILED, Labeler
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import GOLD, Materials
from limbeck.engine.loading import LoadedModel, load_model
from limbeck.engine.torch_engine import TorchEngine
from limbeck.errors import InputError
from limbeck.finetune.adapters import detach_lora
from limbeck.finetune.rows import tokenize_rows
from limbeck.models import LM, CompactAdapter, Rendered, TorchBackend, render
from limbeck.records import MANUAL, Provenance, Record
from limbeck.reproduce.outcome import Arm, Claim, Outcome
from limbeck.reproduce.setting import Setting
from limbeck.reproduce.solver import GREEDY, INSTRUCTIONS, LARGEST, LEARNING, fit, graded, worked
from limbeck.signatures.evolve import ADDED, HOW, IN_DEPTH, NOTHING
from limbeck.sums import Sum, make_sums, parse_sum

ORIGINALS, EVOLVED, LONGER = "originals", "originals and evolved", "originals, as many tokens"
GAIN_HARDER, GAIN_EASIER = "gain, 3 or 4 operations", "gain, 1 or 2 operations"
CLAIMS = (
    Claim(EVOLVED, ORIGINALS, "training on evolved problems beats training on as many originals"),
    Claim(GAIN_HARDER, GAIN_EASIER, "it gains more on harder problems"),
)
_EASIER, _HARDER = (1, 2), (3, 4)
_CALLERS = 64


@dataclass(frozen=True)
class Sizes:
    """Rows of a student, sums that the evolver's examples are made of, rounds, and tests: easier and as many harder."""

    rows: int
    shown: int
    tested: int
    rounds: int = 2

    @property
    def kept(self) -> int:
        """How many of the rows are originals where the others are evolved from them: a quarter."""
        return max(1, self.rows // 4)


@dataclass(frozen=True)
class NewSums:
    """New sums of one or two operations, and as many of three or four."""

    easier: tuple[Sum, ...]
    harder: tuple[Sum, ...]

    @property
    def problems(self) -> set[str]:
        """All of them as texts."""
        return {one.problem for one in (*self.easier, *self.harder)}


def run(setting: Setting, sizes: Sizes | None = None) -> Outcome:
    """Teach the evolver, evolve originals, train the students and compare them on easier and harder sums."""
    sizes = sizes or setting.pick(Sizes(40, 24, 50), Sizes(160, 60, 200))
    easier = mixed(sizes.tested + 3 * sizes.rows, _EASIER, setting.seed)
    tests = NewSums(tuple(easier[: sizes.tested]), tuple(mixed(sizes.tested, _HARDER, setting.seed)))
    originals = easier[sizes.tested :]
    evolver = _evolver(setting, sizes.shown)
    engine, wanted = TorchEngine(evolver), sizes.rows - sizes.kept
    setting.say(f"{wanted} rows are evolved from {sizes.kept} sums in {sizes.rounds} rounds")
    try:
        lm = LM(f"memory/{evolver.name}", TorchBackend(engine))
        made = evolve(lm, originals[: sizes.kept], wanted, rounds=sizes.rounds, seed=setting.seed)
    finally:
        engine.close()
    detach_lora(evolver.model)
    setting.say(f"rows by rule: {made.rules}")
    return students(setting, sizes, originals, made, tests)


def mixed(n: int, operations: Sequence[int], seed: int) -> list[Sum]:
    """Return `n` different sums, each number of operations in turn.

    >>> [len(one.operations) for one in mixed(5, (1, 2), seed=0)]
    [1, 2, 1, 2, 1]
    """
    each = -(-n // len(operations))
    kinds = [make_sums(each, operations=count, largest=LARGEST, seed=seed) for count in operations]
    return [one for group in zip(*kinds, strict=True) for one in group][:n]


# -- the model that evolves ----------------------------------------------------------------------------------


class Taught(EvolInstruct):
    """Evol-Instruct for a model that has learned what it is asked: no prompt shows the built-in demonstrations."""

    def programs(self, source: Source) -> dict[str, dspy.Module]:
        """Return what evolves rows and what compares them with their parents."""
        programs = super().programs(source)
        for program in programs.values():
            for predictor in cast(list[Any], program.predictors()):
                predictor.demos = []
        return programs


def source_of_sums(sums: Sequence[Sum]) -> Source:
    """Return the task of working out sums, with these as its gold rows."""
    gold = [
        Record({"problem": one.problem}, {"answer": "\n".join(one.steps)}, Provenance(GOLD, seed=place, level=MANUAL))
        for place, one in enumerate(sums)
    ]
    return Source({"problem": str}, INSTRUCTIONS, tuple(gold))


def lessons(sums: Sequence[Sum], seed: int) -> list[Rendered]:
    """Return what the evolver learns from, as the product asks for it: sums of two operations and more.

    Each is what its own beginning becomes when it is made harder. By turns one is also another row of the same kind,
    what a comparison finds to be added, or the same sum in other words, which adds nothing.
    """
    programs: dict[str, Any] = dict(Taught().programs(source_of_sums(sums)))
    deepen, broaden = programs["evolve"].deepen, programs["evolve"].broaden
    rng, rows = random.Random(f"{seed}:lessons"), list[Rendered]()

    def learn(predictor: Any, inputs: dict[str, str], outputs: dict[str, str]) -> None:
        rows.append(render(predictor, adapter=CompactAdapter(), inputs=inputs, outputs=outputs))

    def compare(first: str, second: str, added: str) -> None:
        learn(programs["compare"].compare, {"first": first, "second": second}, {ADDED: added})

    for place, one in enumerate(sums):
        parent, problem = Sum(one.start, one.operations[:-1]).problem, one.problem
        how = IN_DEPTH[rng.choice(list(IN_DEPTH))]
        learn(deepen, {"problem": parent, HOW: how}, {"new_problem": problem})
        if place % 3 == 0:
            alike = [two for two in sums if two != one and len(two.operations) == len(one.operations)]
            other = rng.choice(alike or [one]).problem
            learn(broaden, {"problem": problem}, {"new_problem": other})
            compare(problem, other, NOTHING if other == problem else other.rpartition(" What")[0])
        elif place % 3 == 1:
            compare(parent, problem, problem.split(". ")[-2] + ".")
        else:
            said = problem.replace("Start with", "Take").replace("What is the result?", "What comes out?")
            compare(problem, said, NOTHING)
    return rows


def _evolver(setting: Setting, shown: int) -> LoadedModel:
    """Teach the base model to evolve and to compare."""
    base = load_model(setting.model)
    # Other sums than those of students and tests.
    sums = mixed(shown, (2, 3, 4), setting.seed + 1)
    return fit(setting, "evolver", base, tokenize_rows(base.tokenizer, lessons(sums, setting.seed)), LEARNING)


# -- rounds --------------------------------------------------------------------------------------------------


class Calculator(dspy.Module):
    """Works out a problem exactly: what stands in for the compiled program that answers."""

    def forward(self, problem: str) -> dspy.Prediction:
        """Return a prediction with the worked `answer`; raises InputError for what is no sum or leaves the bounds."""
        one = parse_sum(problem)
        if one is None or not all(0 <= value <= LARGEST for value in one.values):
            raise InputError(f"{problem!r} is no sum within 0 to {LARGEST}")
        return dspy.Prediction(answer="\n".join(one.steps))


@dataclass(frozen=True)
class Made:
    """The sums that were kept, and how many rows were kept or eliminated by which rule."""

    sums: tuple[Sum, ...]
    rules: dict[str, int]


def evolve(lm: LM, originals: Sequence[Sum], wanted: int, *, rounds: int, seed: int) -> Made:
    """Return about `wanted` sums that the model made of the originals and that all rules let pass.

    Raises StageEmpty where none does.
    """
    source, adapter = source_of_sums(originals), CompactAdapter()
    labeler = Labeler({-1: Calculator()}, lm, adapter, ("answer",))
    materials = Materials(source, lm, adapter, labeler, samples=1, threads=_CALLERS, seed=seed)
    done = Taught(EvolveConfig(rounds=rounds))(source.gold, materials, wanted)
    kept = [parse_sum(record.inputs["problem"]) for record in done.records if record.kept]
    rules = Counter(_rule(record) for record in done.records) + Counter(done.counts)
    return Made(tuple(one for one in kept if one is not None), dict(rules))


def _rule(record: Record) -> str:
    if record.reason != FAILED:
        return record.reason or "kept"
    return "no sum" if parse_sum(record.inputs["problem"]) is None else "out of bounds"


# -- students ------------------------------------------------------------------------------------------------


def students(setting: Setting, sizes: Sizes, originals: Sequence[Sum], made: Made, tests: NewSums) -> Outcome:
    """Train a student on each set of rows, as many in the first two, and compare them."""
    first = originals[: sizes.kept]
    fresh = [one for one in dict.fromkeys(made.sums) if one.problem not in tests.problems]
    chosen = random.Random(f"{setting.seed}:evolved").sample(fresh, min(len(fresh), sizes.rows - len(first)))
    rows = {EVOLVED: [*first, *chosen]}
    rows[ORIGINALS] = list(originals[: len(rows[EVOLVED])])
    scores: dict[str, tuple[float, ...]] = {}
    for name in (ORIGINALS, EVOLVED, LONGER):
        student = load_model(setting.model)
        if name == LONGER:
            rows[name] = _as_long(student, rows[EVOLVED], originals)
        student = fit(setting, name, student, worked(student, rows[name]), LEARNING)
        scores[name] = graded(student, [*tests.easier, *tests.harder])
        detach_lora(student.model)
    n = len(tests.easier)
    gains = [b - a for a, b in zip(scores[ORIGINALS], scores[EVOLVED], strict=True)]
    arms = [Arm(name, tuple(fmean(pair) for pair in zip(s[:n], s[n:], strict=True))) for name, s in scores.items()]
    arms += [Arm(GAIN_EASIER, tuple(gains[:n])), Arm(GAIN_HARDER, tuple(gains[n:]))]
    apart = "; ".join(f"{name} {fmean(s[:n]):.3f} and {fmean(s[n:]):.3f}" for name, s in scores.items())
    lengths = sorted(Counter(len(one.operations) for one in chosen).items())
    return setting.conclude(
        "evol",
        CLAIMS,
        arms,
        unit=f"{GREEDY}, mean of an easier and a harder one",
        settings={
            "rows": len(rows[EVOLVED]),
            "evolved": len(chosen),
            "rounds": sizes.rounds,
            "examples of the evolver": sizes.shown,
        },
        notes=[
            "The evolver is the small model itself, tuned on examples of sums made harder and of comparisons; it has "
            f"the part of the paper's large one. Rows by rule: {made.rules}.",
            f"Operations of the evolved sums learned from: {dict(lengths)}. Sums of one or two operations and of three "
            f"or four: {apart}.",
            f"{LONGER}: {len(rows[LONGER])} rows.",
        ],
    )


def _as_long(student: LoadedModel, evolved: Sequence[Sum], originals: Sequence[Sum]) -> list[Sum]:
    """Return so many originals that they have the tokens of the evolved rows, or all that there are."""
    room = sum(row.length for row in worked(student, evolved))
    taken: list[Sum] = []
    for one, row in zip(originals, worked(student, originals), strict=True):
        if row.length > room:
            break
        room -= row.length
        taken.append(one)
    return taken
