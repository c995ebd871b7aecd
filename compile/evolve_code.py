"""Evol-Instruct for code (Luo et al. 2023, arXiv:2306.08568): problems made harder, and kept where they can be checked.

Five operations of its own, three rounds (the paper's best). The model then solves the problem and, without seeing a
solution, writes tests for it. Both come from the problem's text alone, so that where they agree both are probably
right: of several solutions those that pass the same tests form a group, and the group that is largest and passes most
wins (Chen et al. 2022, CodeT, arXiv:2207.10397). A problem is kept where the winner passes at least two thirds of the
tests and two of them; tests it fails are dropped. Tests say nothing and do not count that a function passes which
returns None or what it gets, and neither do tests that all want the same value. All code runs in the sandbox.

For rows of MBPP's shape: a text that describes one function, the function as the output, and asserts in an input of
their own where the task has one.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import dspy

from limbeck.codecheck import Suite, check_many, unfence
from limbeck.compile.evolve import (
    Eliminator,
    Evolution,
    EvolveConfig,
    Job,
    compared,
    each_kept,
    origin_of,
    sampling,
    starts_of,
)
from limbeck.compile.label import prompt_hash
from limbeck.compile.prompts import blind
from limbeck.compile.rewriting import Calls
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import Cost, Materials, Synthesized, block_of_child
from limbeck.errors import InputError
from limbeck.programs.evolve import Comparer
from limbeck.programs.evolve_code import (
    CaseWriter,
    ProblemEvolver,
    Solver,
    functions_of,
    is_constant,
    read_function,
    read_tests,
)
from limbeck.records import Record
from limbeck.sandbox import Limits, require
from limbeck.signatures.evolve_code import CODE_OPERATIONS

# The share of gold answers that must be functions for the task to be one of code.
_MOST = 0.9
# What functions return that solve nothing.
_STUBS = ("None", "args[0]")


@dataclass(frozen=True)
class EvolveCodeConfig:
    """How problems are evolved (`evolve`) and when a solution and its tests agree.

    `tests` are asked for at a time; the solution has to pass `min_share` of those that say something, and `min_tests`
    of them. `limits` hold for one solution against one test. `allow_weak` lets code run where only limits hold it.
    """

    evolve: EvolveConfig = field(default_factory=lambda: EvolveConfig(rounds=3, max_added=60))
    tests: int = 6
    min_tests: int = 2
    min_share: float = 2 / 3
    limits: Limits = field(default_factory=lambda: Limits(seconds=5.0, cpu_seconds=4))
    allow_weak: bool = False


class Shape(NamedTuple):
    """Which fields of a task hold the problem, its asserts ("" where none does) and the code."""

    problem: str
    tests: str
    code: str


def shape_of(source: Source) -> Shape:
    """Return the fields of a task of MBPP's shape; InputError for any other.

    Inputs that are blank in all rows, such as a setup that no row needs, stay blank.
    """
    outputs = dict.fromkeys(name for row in source.gold for name in row.outputs)
    answers = [functions_of(unfence(str(row.outputs.get(name)))) for row in source.gold for name in outputs]
    if len(outputs) != 1 or sum(map(bool, answers)) < _MOST * len(source.gold):
        raise _refused(f"the outputs are {', '.join(outputs)} and hold {sum(map(bool, answers))} functions")
    filled = {name: [str(row.inputs.get(name) or "") for row in source.gold] for name in source.fields}
    filled = {name: values for name, values in filled.items() if any(v.strip() not in ("", "[]") for v in values)}
    tests = [name for name, values in filled.items() if all("assert " in value for value in values)]
    rest = [name for name in filled if name not in tests]
    if len(rest) != 1 or len(tests) > 1 or source.fields[rest[0]] is not str:
        raise _refused(f"the inputs are {', '.join(filled)}")
    return Shape(rest[0], "".join(tests), next(iter(outputs)))


def _refused(what: str) -> InputError:
    return InputError(
        f"--method evol_code needs a task of programming problems: {what}",
        valid="one text that describes a function, the whole Python function as the one output, and asserts as a "
        "second input if the task has them",
        hint="--input PROBLEM --input TESTS --output CODE",
    )


class EvolCode:
    """Programming problems made harder in rounds, with a solution that passes tests written beside it.

    Demonstrations of a compiled prompt take the place of the built-in ones.
    """

    name = "evol_code"
    begins = False
    cost = Cost(calls=4.5, answers=1.5)

    def __init__(self, config: EvolveCodeConfig | None = None) -> None:
        self.config = config or EvolveCodeConfig()

    def check(self, source: Source, options: Mapping[str, Any]) -> None:
        """Raise InputError for a task of another shape and where no code can run safely."""
        shape_of(source)
        require(allow_weak=self.config_for(options).allow_weak)

    def config_for(self, options: Mapping[str, Any]) -> EvolveCodeConfig:
        """Return the configuration with what the user allows."""
        return replace(self.config, allow_weak=self.config.allow_weak or bool(options.get("allow_code")))

    def programs(self, source: Source) -> dict[str, dspy.Module]:
        """Return what evolves, compares, solves and tests problems."""
        return {
            "evolve": ProblemEvolver(),
            "compare": Comparer(["problem"]),
            "solve": Solver(),
            "test": CaseWriter(),
        }

    def __call__(self, records: Sequence[Record], materials: Materials, wanted: int) -> Synthesized:
        """Return about `wanted` evolved problems with their solutions, rejected ones among them.

        Raises StageEmpty when nothing passes; BudgetExceeded and KeyboardInterrupt pass through.
        """
        evolve = self.config.evolve
        calls = Calls(materials, self.name, evolve.patience)
        steps = CodeSteps(materials, calls, self.config_for(materials.options), materials.programs(self))
        solved = [row for row in records if functions_of(unfence(str(row.outputs.get(steps.shape.code))))]
        starts = starts_of(solved, materials, (steps.shape.problem,), wanted)
        made = Evolution(starts, steps, calls, tuple(CODE_OPERATIONS), evolve).run(wanted)
        return Synthesized(made.records, made.counts, {self.name: dict(made.log)})


@dataclass(frozen=True)
class Written:
    """What the model wrote for one problem: solutions and tests."""

    solutions: tuple[str, ...]
    tests: tuple[str, ...]


@dataclass
class CodeSteps:
    """One step of problems: evolve, hold to the rules, compare, solve and test, let both meet in the sandbox."""

    materials: Materials
    calls: Calls
    config: EvolveCodeConfig
    programs: Mapping[str, dspy.Module]

    def __post_init__(self) -> None:
        source = self.materials.source
        self.shape = shape_of(source)
        self.changed = (self.shape.problem,)
        self.rules = Eliminator(source, self.changed, self.config.evolve, keyed=self.changed)
        self.hash = prompt_hash(self.programs["evolve"])
        codes = [str(row.outputs[self.shape.code]) for row in source.gold]
        # Two characters a token is generous for code, and a harder problem needs more of it.
        self.tokens = min(1024, max(map(len, codes)) // 2 + 128)
        self.lines: dict[str, str] = {}

    def __call__(self, jobs: Sequence[Job]) -> list[Record | None]:
        """Return what becomes of each job: a record, kept or rejected, None where the call failed."""
        made = self.calls.run(lambda job: self.evolve(job, self.programs["evolve"]), jobs)
        records = [self._record(job, new) if new else None for job, new in zip(jobs, made, strict=True)]
        records = each_kept(jobs, records, lambda pairs: compared(pairs, self.calls, self.programs, self.changed))
        return each_kept(jobs, records, self._solved)

    def line(self, record: Record) -> str:
        """Return the first line of the function that solves a problem, which its tests call or which comes last."""
        found = functions_of(unfence(str(record.outputs.get(self.shape.code, ""))))
        tests = str(record.inputs.get(self.shape.tests, ""))
        called = [line for name, line in found.items() if f"{name}(" in tests]
        return (called or list(found.values()))[-1]

    def evolve(self, job: Job, program: dspy.Module) -> tuple[str, str]:
        """Return the problem that the program makes of the job's parent, and the text that names its function."""
        problem = str(job.parent.inputs[self.shape.problem])
        config = sampling(job, job.parent.inputs, self.changed, self.config.evolve)
        # Two fields are written, parted by a blank line.
        config = {**{k: v for k, v in config.items() if k != "stop"}, "max_tokens": config["max_tokens"] + 48}
        made = self._blind(program, job)(problem, self.line(job.parent), job.operation, config=config)
        return str(made.problem), str(made.function)

    def _blind(self, program: dspy.Module, job: Job) -> Any:
        source = self.materials.source
        return blind(program, source, block_of_child(job.parent, source), job.parent.inputs)

    def _record(self, job: Job, new: tuple[str, str]) -> Record:
        problem, function = new
        row = dict.fromkeys(self.materials.source.fields, "") | {self.shape.problem: problem}
        record = Record(row, {}, origin_of(job, EvolCode.name, self.hash, self.materials))
        self.lines[record.id] = read_function(function, self.line(job.parent))
        reason = self.rules.text_reason(job, row)
        return record.reject(reason) if reason else record

    def _solved(self, pairs: Sequence[tuple[Job, Record]]) -> list[Record]:
        """Return the records with the solution and the tests that agree, rejected where none do."""
        written = self._write(pairs)
        usable = [self.useful(one) for one in written]
        passed = self.passes([(s, tests) for one, tests in zip(written, usable, strict=True) for s in one.solutions])
        told: list[Record] = []
        for (_, record), one, tests in zip(pairs, written, usable, strict=True):
            mine, passed = passed[: len(one.solutions)], passed[len(one.solutions) :]
            told.append(self._told(record, one, tests, mine))
        return told

    def _write(self, pairs: Sequence[tuple[Job, Record]]) -> list[Written]:
        samples = max(1, self.materials.samples)

        def ask(task: tuple[Job, Record, int]) -> str:
            job, record, number = task
            problem, line = str(record.inputs[self.shape.problem]), self.lines[record.id]
            config: dict[str, Any] = {"max_tokens": self.tokens, "rollout_id": job.seed + number}
            if number == samples:
                program = self._blind(self.programs["test"], job)
                made: Any = program(problem, line, count=self.config.tests, config={**config, "temperature": 0.0})
                return made.tests
            warm = self.config.evolve.temperature if number else 0.0
            made = self._blind(self.programs["solve"], job)(problem, line, config={**config, "temperature": warm})
            return made.code

        tasks = [(job, record, number) for job, record in pairs for number in range(samples + 1)]
        answers = [answer or "" for answer in self.calls.run(ask, tasks)]
        found: list[Written] = []
        for (_, record), at in zip(pairs, range(0, len(answers), samples + 1), strict=True):
            name = next(iter(functions_of(f"{self.lines[record.id]} pass")))
            codes = [unfence(text, f"def {name}") for text in answers[at : at + samples]]
            solutions = tuple(code.strip() for code in codes if name in functions_of(code))
            found.append(Written(solutions, tuple(read_tests(unfence(answers[at + samples]), name))))
        return found

    def useful(self, written: Written) -> tuple[str, ...]:
        """Return the tests that functions fail which return None or their first argument."""
        if not written.solutions or len(written.tests) < self.config.min_tests:
            return written.tests
        names = functions_of(written.solutions[0])
        stubs = ["\n".join(f"def {name}(*args, **named): return {value}" for name in names) for value in _STUBS]
        none, same = self.passes([(stub, written.tests) for stub in stubs])
        return tuple(test for test, a, b in zip(written.tests, none, same, strict=True) if not (a or b))

    def passes(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[tuple[bool, ...]]:
        """Return for each program which of its tests it passes, each in a run of its own."""
        runs = [(code, Suite.mbpp([test])) for code, tests in asked for test in tests]
        threads = self.materials.threads
        checked = (
            check_many(runs, threads=threads, limits=self.config.limits, allow_weak=self.config.allow_weak)
            if runs
            else []
        )
        results = iter(checked)
        return [tuple(next(results).ok for _ in tests) for _, tests in asked]

    def _told(
        self, record: Record, written: Written, tests: Sequence[str], passed: Sequence[tuple[bool, ...]]
    ) -> Record:
        if not written.solutions:
            return record.reject("no_solution")
        groups = Counter(passed)
        best = max(passed, key=lambda flags: (groups[flags] * sum(flags), sum(flags)))
        code = written.solutions[passed.index(best)]
        record = replace(record, outputs={self.shape.code: code})
        if len(written.tests) < self.config.min_tests:
            return record.reject("no_tests")
        if len(tests) < self.config.min_tests:
            return record.reject("weak_tests")
        scores = {"tests_passed": sum(best) / len(tests), "solutions_agree": groups[best] / len(passed)}
        record = replace(record, scores={**record.scores, **scores})
        agreed = [test for test, ok in zip(tests, best, strict=True) if ok]
        if self.shape.tests:
            # The id is that of the row as it is now, its tests included.
            record = replace(record, inputs={**record.inputs, self.shape.tests: self._as_gold(agreed or tests)})
        if len(agreed) < max(self.config.min_tests, self.config.min_share * len(tests)):
            return record.reject("disagree")
        return record.reject("weak_tests") if is_constant(agreed) else record

    def _as_gold(self, tests: Sequence[str]) -> Any:
        """Return tests in the form of the gold rows': a list or lines, and no more than any of them has."""
        values = [row.inputs[self.shape.tests] for row in self.materials.source.gold]
        most = max(str(value).count("assert ") for value in values)
        chosen = list(tests[:most])
        return chosen if isinstance(values[0], list) else "\n".join(chosen)
