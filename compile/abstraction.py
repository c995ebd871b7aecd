"""Chains of abstraction as training data: worked solutions whose results are placeholders that tools fill in.

Gao et al. 2024 (arXiv:2401.17464): a model rewrites gold solutions with placeholders, and a rewriting is kept that a
tool run brings to the gold answer. Here equations that stand in a solution, marked <<5+3=8>> or plain, are first
rewritten by rules, which cost nothing and invent nothing; a model rewrites what the rules cannot, and writes the chain
where a row has only its answer. A solution rewritten by rules keeps the words of whoever wrote it: level 2, like other
rows that a machine cleaned; a chain that a model wrote is level 4.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dspy

from limbeck.answers import final_answer, same_answer
from limbeck.chains import ChainError, Tool, parse_chain, run_chain, shown
from limbeck.compile.children import child_of, pick_rows
from limbeck.compile.concurrent import concurrently
from limbeck.compile.equations import abstract, calculates
from limbeck.compile.label import prompt_hash
from limbeck.compile.prompts import blind
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import Cost, Materials, Synthesized, block_of_child
from limbeck.errors import BudgetExceeded, InputError, StageEmpty
from limbeck.metrics import is_number
from limbeck.programs.abstraction import ChainRewriter, ChainWriter, demo_of
from limbeck.programs.judge import as_request
from limbeck.records import CHECKED, CLEANED, Record, stable_hash

METHOD = "chain_of_abstraction"
RULES, REWRITTEN, WRITTEN = "by rules", "rewritten", "written"
Progress = Callable[[int, int], None]
_SHOWN = 160
_FINAL = re.compile(r"\n?\s*####.*$", re.DOTALL)


@dataclass(frozen=True)
class AbstractionConfig:
    """What is tried for each row.

    Rules first, then `samples` chains of the model, the first at temperature 0; each prompt shows up to `demos` chains
    that have been kept. `tools` are run beside the calculator, by the name that a chain calls them by.
    StageEmpty when the first `patience` calls cannot be read.
    """

    samples: int = 3
    temperature: float = 0.7
    demos: int = 2
    tools: Mapping[str, Tool] = field(default_factory=dict[str, Tool])
    max_tokens: int = 400
    patience: int = 24
    threads: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Abstracted:
    """One record a row, rejected ones among them, with the number kept by each way and what it took."""

    records: tuple[Record, ...]
    ways: Mapping[str, int]
    calls: int
    unreadable: int


class ChainOfAbstraction:
    """Rationales whose results are placeholders; see `limbeck.compile.abstraction`.

    Demonstrations of a compiled prompt take the place of the built-in ones; kept chains stand behind them.
    """

    name = METHOD
    begins = False
    cost = Cost(calls=2.0, answers=0.0, each=True)

    def __init__(self, config: AbstractionConfig | None = None) -> None:
        self.config = config or AbstractionConfig()

    def check(self, source: Source, options: Mapping[str, Any]) -> None:
        """Raise InputError where no row has an answer that a tool could bring out."""
        if not any(answer_of(row, self.config.tools) for row in source.gold):
            raise InputError(
                f"--method {self.name} needs answers that are numbers, and no row has one",
                valid="rows whose answer is a number, or a text that ends in one; other tools by the Python API",
            )

    def programs(self, source: Source) -> dict[str, dspy.Module]:
        """Return the programs that rewrite a solution and that write a chain."""
        tools = list(self.config.tools)
        return {"rewrite": ChainRewriter(tools), "write": ChainWriter(tools)}

    def __call__(self, records: Sequence[Record], materials: Materials, wanted: int) -> Synthesized:
        """Return one record a row, of at most `wanted` rows, with a chain as its rationale."""
        samples = max(self.config.samples, materials.samples)
        done = abstract_rows(
            pick_rows(records, wanted, materials.seed),
            materials.source,
            lm=materials.lm,
            adapter=materials.adapter,
            config=replace(self.config, samples=samples, threads=materials.threads, seed=materials.seed),
            programs=materials.programs(self),
            progress=materials.show("writing abstract chains"),
        )
        counts = {"failed_calls": done.unreadable} if done.unreadable else {}
        return Synthesized(done.records, counts, {METHOD: {**done.ways, "calls": done.calls}})


def abstract_rows(
    records: Sequence[Record],
    source: Source,
    *,
    lm: dspy.LM,
    adapter: Any,
    config: AbstractionConfig | None = None,
    programs: Mapping[str, dspy.Module] | None = None,
    progress: Progress | None = None,
) -> Abstracted:
    """Return the rows, each with a chain that a tool run brings to its answer; the same for the same seed.

    `programs` are those of `ChainOfAbstraction.programs`. A row without a chain is rejected for what its last one
    lacked: unparsable, undefined_variable, cycle, no_placeholder, tool_error or wrong_result; no_number where its
    answer is none. Raises StageEmpty where no chain is kept; BudgetExceeded and KeyboardInterrupt pass through.
    """
    config = config or AbstractionConfig()
    run = _Run(source, lm, adapter, config, programs or ChainOfAbstraction(config).programs(source), progress)
    run.rows = [_Row.of(record, block_of_child(record, source), config.tools) for record in records]
    for row in run.rows:
        if row.reason != "no_number":
            run.by_rules(row)
    for number in range(config.samples):
        run.wave(number)
    done = tuple(run.record(row) for row in run.rows)
    ways = Counter(record.provenance.attributes for record in done if record.kept)
    if not ways:
        why = ", ".join(f"{n} {reason}" for reason, n in Counter(record.reason for record in done).items())
        raise StageEmpty(f"no chain led to a known answer in {run.calls} calls ({why})", hint="a larger --teacher")
    return Abstracted(done, dict(ways), run.calls, run.unreadable)


def refused(chain: str, answer: str, tools: Mapping[str, Tool] | None = None) -> str:
    """Return why a chain is not kept, "" for one that a tool run brings to the answer.

    >>> refused("[2 + 3 = y1]", "5"), refused("[2 + y2 = y1]", "5"), refused("[2 + 3 = y1]", "6")
    ('', 'undefined_variable', 'wrong_result')
    """
    try:
        found = run_chain(parse_chain(chain), tools).answer
    except ChainError as error:
        return error.reason
    return "" if same_answer(answer, shown(found)) else "wrong_result"


def answer_of(record: Record, tools: Mapping[str, Tool]) -> str:
    """Return the answer that a row's chain must come to: its number, or with tools its text; "" where it has none."""
    values = list(record.outputs.values())
    number = next((str(value) for value in values if is_number(value)), "")
    if number or not values:
        return number
    ends = [final_answer(str(value)) for value in values if isinstance(value, str)]
    return next((end for end in ends if is_number(end)), str(values[-1]) if tools else "")


def solution_of(record: Record) -> str:
    """Return a row's worked solution: its rationale, else an output that calculates; "" where it has none."""
    texts = [value for value in record.outputs.values() if isinstance(value, str)]
    found = record.rationale or next(filter(calculates, texts), "")
    return _FINAL.sub("", found).strip()


@dataclass
class _Row:
    """One row: what its chain is made of and must come to, the last chain, and why it was refused."""

    record: Record
    block: int
    problem: str
    solution: str
    answer: str
    chain: str = ""
    reason: str = "no_placeholder"
    way: str = WRITTEN
    tries: int = 0

    @classmethod
    def of(cls, record: Record, block: int, tools: Mapping[str, Tool]) -> _Row:
        answer = answer_of(record, tools)
        row = cls(record, block, as_request(record.inputs), solution_of(record), answer)
        row.reason = row.reason if answer else "no_number"
        return row


@dataclass
class _Run:
    """The state of one rewriting: what has been kept so far."""

    source: Source
    lm: dspy.LM
    adapter: Any
    config: AbstractionConfig
    programs: Mapping[str, dspy.Module]
    progress: Progress | None
    rows: list[_Row] = field(default_factory=list[_Row])
    calls: int = 0
    unreadable: int = 0
    first_error: str = ""

    def by_rules(self, row: _Row) -> None:
        """Rewrite a row's solution by rules, where it has one."""
        if not row.solution:
            return
        chain = abstract(row.solution, row.problem)
        row.way = RULES
        row.chain = _with_answer(chain, row.answer, self.config.tools)
        row.reason = refused(row.chain, row.answer, self.config.tools)

    def wave(self, number: int) -> None:
        """Ask the model once more for the rows that are left."""
        left = [row for row in self.rows if row.reason and row.reason != "no_number"]
        jobs = [(row, self._demos(row, number)) for row in left]
        arrived: Counter[bool] = Counter()

        def watch(made: tuple[str, str]) -> None:
            arrived[bool(made[1])] += 1
            self.first_error = self.first_error or made[1]
            if not self.calls and arrived[True] == arrived.total() == self.config.patience:
                raise StageEmpty(f"none of the first {arrived[True]} calls gave a chain: {self.first_error}")
            if self.progress is not None:
                self.progress(len(self.rows) - len(left) + arrived.total(), len(self.rows))

        def ask(job: tuple[_Row, list[dspy.Example]]) -> tuple[str, str]:
            return self._ask(*job, number)

        made = concurrently(ask, jobs, threads=self.config.threads, done=watch)
        for row, (chain, error) in zip(left, made, strict=True):
            row.tries += 1
            self.unreadable += bool(error)
            if not error:
                row.chain, row.way = chain, REWRITTEN if row.solution else WRITTEN
                row.reason = refused(chain, row.answer, self.config.tools)
        self.calls += len(left)

    def record(self, row: _Row) -> Record:
        """Return the row's record, rejected with its last chain's fault where none was kept."""
        program = self.programs["rewrite" if row.solution else "write"]
        by_rules = row.way == RULES
        origin = child_of(
            row.record,
            self.source,
            METHOD,
            self.lm,
            seed=self.config.seed,
            prompt="" if by_rules else prompt_hash(program),
            attributes=row.way,
            level=CLEANED if by_rules else CHECKED,
        )
        if by_rules:  # no teacher but the one that wrote the solution, if any did
            origin = replace(origin, teacher=row.record.provenance.teacher)
        made = Record(
            row.record.inputs,
            row.record.outputs,
            origin,
            rationale=row.chain,
            scores={**row.record.scores, "tries": float(row.tries)},
            weight=row.record.weight,
        )
        return made.reject(row.reason) if row.reason else made

    def _demos(self, row: _Row, number: int) -> list[dspy.Example]:
        """Return kept chains of rows that have not seen the row's block either."""
        kept = [one for one in self.rows if not one.reason and one.block == row.block]
        kept = [one for one in kept if bool(one.solution) or not row.solution]
        rng = random.Random(f"{self.config.seed}:{number}:{row.record.id}")
        drawn = rng.sample(kept, min(self.config.demos, len(kept)))
        return [demo_of(one.problem, one.chain, one.solution if row.solution else "") for one in drawn]

    def _ask(self, row: _Row, demos: Sequence[dspy.Example], number: int) -> tuple[str, str]:
        """Return the chain that the model writes, or "" and what went wrong."""
        seed = int(stable_hash([self.config.seed, number, row.record.id])[:7], 16)
        config = {
            "temperature": self.config.temperature if number else 0.0,
            "max_tokens": self.config.max_tokens,
            "rollout_id": seed,
        }
        program = self.programs["rewrite" if row.solution else "write"]
        program = blind(program, self.source, row.block, row.record.inputs)
        given = [row.problem, row.solution] if row.solution else [row.problem]
        with dspy.context(lm=self.lm, adapter=self.adapter, trace=None):
            try:
                made: Any = program(*given, demos=demos, config=config)
            except BudgetExceeded:
                raise
            except Exception as error:  # one unparsable answer never ends a stage
                return "", f"{type(error).__name__}: {error}"[:_SHOWN]
        return str(made.chain), ""


def _with_answer(chain: str, answer: str, tools: Mapping[str, Tool]) -> str:
    """Return the chain with a last sentence that names the result which is the answer, the last one of several."""
    try:
        found = run_chain(parse_chain(chain), tools).values
    except ChainError:
        return chain
    right = [name for name, value in found.items() if same_answer(answer, shown(value))]
    return f"{chain.rstrip().rstrip('.')}. The answer is {right[-1]}." if right else chain
