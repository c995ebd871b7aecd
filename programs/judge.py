"""Judges as DSPy modules: a rating, yes or no, and a comparison whose position bias is cancelled and measured.

Judges favour an answer for its place (Zheng et al. 2023, arXiv:2306.05685), so a comparison is asked in both
orders and the probabilities are averaged. What a model answers outside the closed set is read with suspicion; what
cannot be read is counted, and ends nothing.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false, reportMissingTypeStubs=false

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import dspy
from dspy.utils.exceptions import AdapterParseError

from limbeck.errors import CallFailed, InputError, PromptTooLong
from limbeck.models import label_probabilities, probability_source
from limbeck.models.labels import closed_values
from limbeck.signatures.judge import (
    ACCEPTABLE,
    ANSWER,
    BETTER,
    FIRST,
    RATING,
    REASONS,
    REQUEST,
    SCALE,
    SECOND,
    YES,
    A,
    B,
    accept_answer,
    compare_answers,
    grade_answer,
)
from limbeck.stats import Estimate, mean_ci

_VOTE_TEMPERATURE = 0.7
_SHOWN_ERROR = 200
EVEN = 1e-9  # a probability this near to a half is one, but for rounding
_NAMED = r"(?:final |overall )?(?:answer|verdict|better|acceptable|rating|score|grade|response)"


@dataclass(frozen=True)
class Opinion:
    """What a judge said to one question: a probability for every value, {} where nothing could be read.

    `source` is "exact", "logprobs", "votes:K", or "answer" for one answer without probabilities. `calls` and
    `unparsable` count the answers that were asked for and those that could not be read; `lost` of these never came.
    """

    probabilities: Mapping[str, float] = field(default_factory=dict[str, float])
    source: str = ""
    reasons: str = ""
    calls: int = 1
    unparsable: int = 0
    error: str = ""
    lost: int = 0


class _Judge(dspy.Module):
    """One closed question to a model; `votes` answers are counted where it gives no probabilities."""

    answers: tuple[str, ...] = (ANSWER,)

    def __init__(self, signature: Any, name: str, votes: int) -> None:
        super().__init__()
        self.name, self.votes = name, votes
        self.values = tuple(closed_values(signature.output_fields[name].annotation) or ())
        self.judge = dspy.Predict(signature)

    def opinion(self, **inputs: str) -> Opinion:
        """Return what the model says; BudgetExceeded and a lost server's ModelError pass through."""
        first = self._once(inputs, {})
        if self.votes < 2 or first.source not in ("answer", ""):
            return first
        settings = [{"rollout_id": i, "temperature": _VOTE_TEMPERATURE} for i in range(1, self.votes)]
        return _counted([first, *(self._once(inputs, one) for one in settings)], self.values)

    def _once(self, inputs: Mapping[str, str], settings: Mapping[str, Any]) -> Opinion:
        try:
            made = cast(Any, self.judge(**inputs, config=dict(settings)))
        except AdapterParseError as error:
            value = read_choice(str(error.lm_response), self.values)
            if value is None:
                return Opinion(unparsable=1, error=str(error.lm_response)[:_SHOWN_ERROR])
            return Opinion({value: 1.0}, "answer")
        except (CallFailed, PromptTooLong) as error:
            return Opinion(unparsable=1, error=str(error)[:_SHOWN_ERROR], lost=int(isinstance(error, CallFailed)))
        reasons, scored = str(made.get(REASONS) or ""), label_probabilities(made).get(self.name)
        if scored:
            return Opinion(scored, probability_source(made), reasons)
        return Opinion({str(made[self.name]): 1.0}, "answer", reasons)


def _counted(opinions: Sequence[Opinion], values: Sequence[str]) -> Opinion:
    heard = [opinion for opinion in opinions if opinion.probabilities]
    unparsable, lost = sum(opinion.unparsable for opinion in opinions), sum(opinion.lost for opinion in opinions)
    if not heard:
        return Opinion(calls=len(opinions), unparsable=unparsable, error=opinions[0].error, lost=lost)
    shares = {value: sum(o.probabilities.get(value, 0.0) for o in heard) / len(heard) for value in values}
    return Opinion(shares, f"votes:{len(heard)}", heard[0].reasons, len(opinions), unparsable, lost=lost)


def read_choice(text: str, values: Sequence[str]) -> str | None:
    """Return the value that a model's own words name, None where they name none or several.

    The first and the last line are read; a value is at its beginning or after "rating:" and the like. Numbers
    outside the scale are none of the values.

    >>> values = ["1", "2", "3", "4", "5"]
    >>> read_choice("It is good.\\nScore: 4/5", values), read_choice("Rating: 7", values), read_choice("4.5", values)
    ('4', None, None)
    >>> read_choice("B, since it is shorter.", ["A", "B"]), read_choice("A good answer", ["A", "B"])
    ('B', None)
    """
    lines = [line for line in text.strip().splitlines() if line.strip()]
    choices = "|".join(re.escape(value) for value in values)
    # "4/5" and "4 out of 5" end a rating, "4.5" does not; "A" before a word is an article.
    ends = r"(?:\s*/\s*\d+|\s+out of \d+)?(?=[\s\"'*\])]*$|[\"'*\])]*[,;:!]|\.(?!\d)|\s+(?:is|because|since)\b)"
    pattern = re.compile(rf"(?:^\W*|\b{_NAMED}\W+(?:is\W+)?)(?<![-\u2212])({choices}){ends}", re.IGNORECASE)
    by_case = {value.casefold(): value for value in values}
    for line in (lines[-1:] + lines[:1]) if lines else []:
        found = {by_case[match[1].casefold()] for match in pattern.finditer(line)}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


class Grader(_Judge):
    """Rates an answer on a scale, reasons first.

    The prediction has `rating` (the most probable number), `expected` (the mean under the probabilities) and
    `score`, the latter brought to [0, 1]; all are None where the rating could not be read.
    """

    def __init__(self, criteria: str = "", *, scale: Mapping[int, str] = SCALE, votes: int = 0) -> None:
        super().__init__(grade_answer(criteria, scale=scale), RATING, votes)
        self.low, self.high = min(scale), max(scale)

    def forward(self, request: str, answer: str) -> dspy.Prediction:
        """Rate one answer."""
        opinion = self.opinion(**{REQUEST: request, ANSWER: answer})
        if not opinion.probabilities:
            return _prediction(opinion, None, rating=None, expected=None)
        expected = sum(int(value) * p for value, p in opinion.probabilities.items())
        rating = int(max(opinion.probabilities, key=lambda value: opinion.probabilities[value]))
        score = (expected - self.low) / (self.high - self.low)
        return _prediction(opinion, score, rating=rating, expected=expected)


class Approver(_Judge):
    """Says whether an answer is acceptable; the prediction's `score` is the probability of yes, or None."""

    def __init__(self, criteria: str = "", *, reasons: bool = False, votes: int = 0) -> None:
        super().__init__(accept_answer(criteria, reasons=reasons), ACCEPTABLE, votes)

    def forward(self, request: str, answer: str) -> dspy.Prediction:
        """Judge one answer."""
        opinion = self.opinion(**{REQUEST: request, ANSWER: answer})
        score = opinion.probabilities.get(YES, 0.0) if opinion.probabilities else None
        return _prediction(opinion, score, acceptable=None if score is None else score > 0.5)


class Comparer(_Judge):
    """Says which of two answers is better, asked in both orders.

    The prediction's `score` is the mean probability that `answer_a` is the better one; `forwards` and `backwards` are
    that probability with it in the first and in the second place, `first` the mean probability given to the first
    place (0.5 without bias). `better` is "A", "B" or "tie". All are None where one order could not be read.
    """

    answers = (FIRST, SECOND)

    def __init__(self, criteria: str = "", *, reasons: bool = False, votes: int = 0) -> None:
        super().__init__(compare_answers(criteria, reasons=reasons), BETTER, votes)

    def forward(self, request: str, answer_a: str, answer_b: str) -> dspy.Prediction:
        """Compare two answers."""
        one = self.opinion(**{REQUEST: request, FIRST: answer_a, SECOND: answer_b})
        two = self.opinion(**{REQUEST: request, FIRST: answer_b, SECOND: answer_a})
        both = Opinion(
            source=one.source if one.source == two.source else f"{one.source}, {two.source}",
            reasons=one.reasons,
            calls=one.calls + two.calls,
            unparsable=one.unparsable + two.unparsable,
            error=one.error or two.error,
            lost=one.lost + two.lost,
        )
        if not (one.probabilities and two.probabilities):
            return _prediction(both, None, better=None, forwards=None, backwards=None, first=None)
        forwards, second_first = one.probabilities.get(A, 0.0), two.probabilities.get(A, 0.0)
        score = (forwards + 1 - second_first) / 2
        better = "tie" if abs(score - 0.5) < EVEN else A if score > 0.5 else B
        first = (forwards + second_first) / 2
        return _prediction(both, score, better=better, forwards=forwards, backwards=1 - second_first, first=first)


def _prediction(opinion: Opinion, score: float | None, **values: Any) -> dspy.Prediction:
    told = {"source": opinion.source, "reasons": opinion.reasons, "error": opinion.error}
    counts = {"calls": opinion.calls, "unparsable": opinion.unparsable, "lost": opinion.lost}
    return dspy.Prediction(score=score, **values, **told, **counts)


@dataclass(frozen=True)
class ProgramJudge:
    """A judge program (Grader, Approver or Comparer) under a model, for rows whose `answers` are output fields.

    A Comparer takes two fields, and its score is the probability that the first is the better one.
    """

    program: Any
    lm: Any
    answers: tuple[str, ...]
    adapter: Any = None
    name: str = "judge"

    def __post_init__(self) -> None:
        wanted = len(self.program.answers)
        if len(self.answers) != wanted:
            raise InputError(f"{len(self.answers)} answer fields for {self.name}: {self.answers}", valid=f"{wanted}")

    def ask(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> dspy.Prediction:
        """Return the program's whole prediction for a row."""
        given = {to: str(outputs[name]) for to, name in zip(self.program.answers, self.answers, strict=True)}
        settings = {"lm": self.lm, **({"adapter": self.adapter} if self.adapter is not None else {})}
        with dspy.context(**settings):
            return self.program(**{REQUEST: as_request(inputs)}, **given)

    def __call__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> float | None:
        """Return the row's score in [0, 1]."""
        score: float | None = self.ask(inputs, outputs)["score"]
        return score


def as_request(inputs: Mapping[str, Any]) -> str:
    """Return a row's inputs as the one text that a judge reads; empty values are left out.

    >>> as_request({"question": "Why?"}), as_request({"instruction": "Add.", "input": "1, 2"})
    ('Why?', 'instruction: Add.\\ninput: 1, 2')
    """
    given = {name: str(value) for name, value in inputs.items() if str(value).strip()}
    return next(iter(given.values())) if len(given) == 1 else "\n".join(f"{n}: {text}" for n, text in given.items())


@dataclass(frozen=True)
class PositionBias:
    """How a judge of pairs favours a place, over rows that were asked in both orders.

    `first` is the share of calls that preferred the first place with its 95% interval (0.5 without bias), `mean` the
    mean probability given to it, `flipped` the share of rows whose preference changed with the order, `rows` how
    many were readable in both orders and `unparsable` how many answers were not.
    """

    first: Estimate
    mean: float
    flipped: float
    rows: int
    unparsable: int

    def report(self) -> dict[str, Any]:
        """Return the numbers for report.json."""
        return {
            "first": self.first.mean,
            "ci95": [self.first.low, self.first.high],
            "mean_probability": self.mean,
            "flipped": self.flipped,
            "rows": self.rows,
            "unparsable": self.unparsable,
        }


def position_bias(comparisons: Sequence[Any], *, seed: int = 0) -> PositionBias | None:
    """Return the bias of a Comparer's predictions, None where no row was readable in both orders.

    >>> position_bias([dspy.Prediction(forwards=0.9, backwards=0.2, unparsable=0)]).flipped
    1.0
    """
    unparsable = sum(int(made.unparsable) for made in comparisons)
    pairs = [(float(made.forwards), float(made.backwards)) for made in comparisons if made.forwards is not None]
    if not pairs:
        return None
    # One number a row, since a row's two calls are not independent.
    shares = [((f > 0.5) + (f == 0.5) / 2 + (b < 0.5) + (b == 0.5) / 2) / 2 for f, b in pairs]
    mean = sum((f + 1 - b) / 2 for f, b in pairs) / len(pairs)
    flipped = sum((f - 0.5) * (b - 0.5) < 0 for f, b in pairs) / len(pairs)
    return PositionBias(mean_ci(shares, seed), mean, flipped, len(pairs), unparsable)
