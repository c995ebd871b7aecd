"""Level 5: the student's own verified answers are its next training rows.

ReST-EM, also called rejection-sampling fine-tuning (Singh et al. 2023, arXiv:2312.06585): several answers a problem are
drawn from the student, those that a verifier or metric accepts are kept, no problem with more than a few, and the
student is trained on them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from limbeck.engine.requests import GenerateRequest, Generation, Message
from limbeck.engine.seq2seq import engine_of
from limbeck.errors import BudgetExceeded, InputError
from limbeck.finetune.rounds import Gathered
from limbeck.finetune.rows import PlainRow, tokenize_rows
from limbeck.records import SELF_RATED, Provenance, Record, stable_hash
from limbeck.verifiers import Verifier, votes

if TYPE_CHECKING:
    from limbeck.engine.loading import LoadedModel

# Why an answer is not trained on.
UNFINISHED, WRONG, DUPLICATE, ENOUGH = "unfinished", "not verified", "duplicate", "enough"


@dataclass(frozen=True)
class Problem:
    """A problem without its answer: the inputs of its records and the messages that ask the student."""

    inputs: Mapping[str, Any]
    messages: tuple[Message, ...]


Check = Callable[[Mapping[str, Any], str], float]


@dataclass
class SelfTraining:
    """What a round draws, and what it keeps of it.

    `check(inputs, answer)` is a verifier's or metric's score in [0, 1]; `threshold` and above is right. An answer that
    it raises at, or scores NaN, has 0; BudgetExceeded passes. `diversity` is taken over all answers of a round, such as
    `compile.distribution.distinct` with an order of n-grams that the answers are long enough for. `samples` answers a
    problem are drawn at `temperature`, at most `most` right ones that differ are trained on: without a bound easy
    problems crowd out hard ones. A held-out problem is answered greedily and scored by `check`. `output` names the
    answer's field in records.

    `records` holds every answer drawn, level 5, those not kept with their reason.
    """

    problems: Sequence[Problem]
    held_out: Sequence[Problem]
    check: Check
    diversity: Callable[[Sequence[str]], float]
    samples: int = 8
    most: int = 4
    threshold: float = 1.0
    temperature: float = 1.0
    max_tokens: int = 256
    output: str = "answer"
    seed: int = 0
    records: list[Record] = field(default_factory=list[Record], init=False, repr=False)

    def __post_init__(self) -> None:
        if self.samples < 1 or self.most < 1 or self.temperature <= 0:
            raise InputError(
                f"samples={self.samples}, most={self.most}, temperature={self.temperature:g}",
                valid="samples and most 1 or more, temperature above 0",
            )
        asked = {problem.messages for problem in self.problems}
        both = [problem for problem in self.held_out if problem.messages in asked]
        if both:
            raise InputError(
                f"{len(both)} held-out problems are trained on, such as {both[0].messages[-1][1][:80]!r}",
                valid="two sets of problems without overlap",
            )

    def gather(self, number: int, student: LoadedModel) -> Gathered:
        """Draw answers and return the right ones as training rows."""
        drawn = self._answer(student, self.problems, self.samples, self.temperature, number)
        records: list[Record] = []
        rows: list[PlainRow] = []
        for place, problem in enumerate(self.problems):
            own = self._sort(problem, drawn[place * self.samples : (place + 1) * self.samples], number, student)
            records += own
            rows += [PlainRow(problem.messages, ((one.outputs[self.output], 1.0),)) for one in own if one.kept]
        self.records += records
        reasons = Counter(one.reason for one in records if not one.kept)
        diversity = self.diversity([one.text for one in drawn])
        return Gathered(tokenize_rows(student.tokenizer, rows), diversity, {"answers": len(records), **reasons})

    def measure(self, student: LoadedModel) -> list[float]:
        """Return the score of the greedy answer to every held-out problem."""
        answers = self._answer(student, self.held_out, 1, 0.0, 0)
        return [self._score(problem, one.text) for problem, one in zip(self.held_out, answers, strict=True)]

    def _score(self, problem: Problem, answer: str) -> float:
        """Return the check's score; a check that fails has not found the answer right."""
        try:
            score = float(self.check(problem.inputs, answer))
        except BudgetExceeded:
            raise
        except Exception:
            return 0.0
        return score if math.isfinite(score) else 0.0

    def _answer(
        self, student: LoadedModel, problems: Sequence[Problem], samples: int, temperature: float, number: int
    ) -> list[Generation]:
        """Return the answers, those to one problem together."""
        engine = engine_of(student)
        try:
            return engine.generate_many(
                [
                    GenerateRequest(
                        problem.messages,
                        max_tokens=self.max_tokens,
                        temperature=temperature,
                        seed=int(stable_hash([self.seed, number, place, sample])[:7], 16),
                    )
                    for place, problem in enumerate(problems)
                    for sample in range(samples)
                ]
            )
        finally:
            engine.close()

    def _sort(self, problem: Problem, drawn: Sequence[Generation], number: int, student: LoadedModel) -> list[Record]:
        """Return one problem's answers as records, those that are not trained on rejected."""
        found: list[Record] = []
        kept: set[str] = set()
        for sample, one in enumerate(drawn):
            score = self._score(problem, one.text)
            record = Record(
                inputs=dict(problem.inputs),
                outputs={self.output: one.text},
                provenance=Provenance(
                    "self-training",
                    teacher=student.name,
                    seed=self.seed,
                    level=SELF_RATED,
                    attributes=f"round {number}, sample {sample}",
                ),
                scores={"verified": score},
            )
            reason = self._fault(one, score, kept)
            found.append(record.reject(reason) if reason else record)
            if not reason:
                kept.add(one.text.strip())
        return found

    def _fault(self, one: Generation, score: float, kept: set[str]) -> str:
        """Return why an answer is not trained on beside those kept before it, "" where it is."""
        if one.finish_reason != "stop":
            return UNFINISHED  # trained on, it would teach to end where it was cut
        if score < self.threshold:
            return WRONG
        if one.text.strip() in kept:
            return DUPLICATE
        return ENOUGH if len(kept) == self.most else ""


def check_by(verifiers: Sequence[Verifier], output: str = "answer") -> Check:
    """Return the check that every verifier passes the answer as the output field of that name.

    >>> from limbeck.verifiers import NonEmpty
    >>> check_by([NonEmpty("answer")])({}, " "), check_by([NonEmpty("answer")])({}, "4")
    (0.0, 1.0)
    """

    def check(inputs: Mapping[str, Any], answer: str) -> float:
        return float(all(verdict.ok for verdict in votes(verifiers, inputs, {output: answer.strip()}).values()))

    return check
