"""A judge of open answers in a run: tried on the user's labels first, and refused where it does not prove itself.

The rows of the trial are gold inputs, some with an answer that is right (the gold one, and what the uncompiled teacher
got right), about as many with a wrong one (what it got wrong, else another gold row's answer). A gold row is on one
side only, so that no row of one fold is another fold's row with the other verdict. Every score is asked for before
curation, many at once; what curation is given looks them up.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import dspy

from limbeck.compile.concurrent import concurrently
from limbeck.compile.judges import CalibrateConfig, CalibratedJudge, Calibration, Labelled, Rate, calibrated_judge
from limbeck.compile.label import gold_records, prompt_hash
from limbeck.errors import BudgetExceeded, InputError, ModelError
from limbeck.evaluate import LOST_SHARE
from limbeck.metrics import likeness, normalize
from limbeck.pipeline.config import RunConfig
from limbeck.pipeline.context import Context, weights_of
from limbeck.pipeline.data import RIGHT, WARM, answers_to_gold, progress_of
from limbeck.pipeline.students import callers
from limbeck.programs.judge import Approver, ProgramJudge, as_request
from limbeck.records import Record, stable_hash
from limbeck.signatures.judge import ANSWER

Row = tuple[Mapping[str, Any], Mapping[str, Any]]
# Tens of labels: with two folds a threshold would be chosen on half of them.
_FOLDS = 5


@dataclass(frozen=True)
class Opinions:
    """A judge whose scores are known already: it looks them up by the row and asks nothing."""

    name: str
    scores: Mapping[str, float | None]

    def __call__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> float | None:
        """Return the row's score; KeyError for a row that was not asked about."""
        return self.scores[pair_key(inputs, outputs)]


@dataclass(frozen=True)
class RunJudge:
    """What came of a judge's trial: the calibrated judge, None where it is `refused` for the reason given.

    `key` names the trial, `rows` counts its rows by where they come from, and `right` is the share of the teacher's
    answers to gold inputs that were right.
    """

    model: str
    key: str
    calibrated: CalibratedJudge | None
    refused: str
    rows: Mapping[str, int]
    right: Rate

    def verifier(self, context: Context, records: Sequence[Record]) -> CalibratedJudge | None:
        """Return the judge with its scores of all records that are not rejected yet; None where it is refused."""
        if self.calibrated is None:
            return None
        rows = [(record.inputs, record.outputs) for record in records if record.kept]
        scores = ask_all(context, rows, "judging new rows")
        return replace(self.calibrated, judge=Opinions(self.calibrated.judge.name, scores))

    def log(self, rejected: Mapping[str, int]) -> dict[str, Any]:
        """Return the report's entry, given how many rows curation rejected by reason."""
        told = {"model": self.model, "labelled": dict(self.rows), "teacher_right": self.right.report()}
        if self.calibrated is None:
            return {**told, "refused": self.refused}
        found = self.calibrated
        expected = expected_precision(found.calibration, self.right)
        left_out = rejected.get(f"verifier:{found.name}", 0)
        return {**told, **found.report(), "expected_precision": expected, "rejected": left_out}


def check_judge(config: RunConfig, closed: bool) -> None:
    """Raise InputError for a judge of a task whose labels all labelers judge together."""
    if not config.judge and config.judge_precision != RunConfig(out="").judge_precision:
        raise InputError("--judge-precision needs a judge", valid="--judge MODEL, such as --judge teacher")
    if config.judge and closed:
        raise InputError(
            f"--judge {config.judge} judges open answers, and this task has one closed set of labels: all labelers "
            "together judge those",
            valid="a task whose answers are written, such as text, numbers or extraction",
            hint="leave --judge out",
        )


def judge_stage(context: Context) -> RunJudge | None:
    """Return what came of the trial of the run's judge, None where the run has none; tell a person.

    Raises BudgetExceeded, and ModelError where the judge or the teacher cannot be reached.
    """
    if context.judge is None:
        return None
    gold, model = gold_records(context.split.gold), context.config.judge_model
    bare = context.task.program
    parts = (model, weights_of(context.judge), prompt_hash(_approver(context)), prompt_hash(bare))
    payload = context.run.stage(
        "judge", context.key("judge", *parts, *context.grounds), lambda: _trial(context, gold, bare)
    )
    rows = _rows(gold, payload["rows"])
    scores = {pair_key(*row): one["score"] for row, one in zip(rows, payload["rows"], strict=True)}
    labelled = [Labelled(*row, one["accepted"]) for row, one in zip(rows, payload["rows"], strict=True)]
    config = CalibrateConfig(precision=context.config.judge_precision, folds=_FOLDS, seed=context.config.seed)
    counts, right = Counter(one["from"] for one in payload["rows"]), Rate(*payload["right"])
    found, refused = None, ""
    try:
        found = calibrated_judge(Opinions("judge", scores), labelled, config)
        context.run.reporter.note(told(model, found.calibration, right))
    except InputError as error:
        refused = error.message
        hint = f"; next: {error.hint}" if error.hint else ""
        context.run.warn(f"judge: {model} is not used: {refused}{hint}")
    return RunJudge(model, payload["key"], found, refused, counts, right)


def _rows(gold: Sequence[Record], told: Sequence[Mapping[str, Any]]) -> list[Row]:
    return [(gold[int(one["row"])].inputs, one["outputs"]) for one in told]


def _trial(context: Context, gold: Sequence[Record], bare: dspy.Module) -> dict[str, Any]:
    """Return the payload: the labelled rows with the judge's scores, and how often the teacher was right."""
    examples, metric = context.split.gold, context.task.metric

    def score(row: int, outputs: Mapping[str, Any]) -> float:
        return likeness(metric, examples[row], dspy.Prediction(**outputs))

    answers = _teacher_answers(context, gold, bare)
    rows = labelled_rows(gold, answers, score, seed=context.config.seed)
    asked = _rows(gold, rows)
    scores = ask_all(context, asked, "trying the judge on the labels")
    told = [{**one, "score": scores[pair_key(*row)]} for one, row in zip(rows, asked, strict=True)]
    given = [(row, outputs) for row, found in enumerate(answers) for outputs in found]
    right = sum(score(row, outputs) >= RIGHT for row, outputs in given)
    log = {"records_in": len(gold), "kept": sum(one["score"] is not None for one in told)}
    return {"rows": told, "right": [right, len(given)], "log": log}


def _teacher_answers(context: Context, gold: Sequence[Record], bare: dspy.Module) -> list[list[Mapping[str, Any]]]:
    """Return, for each gold row, what the uncompiled teacher says to it in several tries; failed ones are left out."""
    found: list[list[Mapping[str, Any]]] = [[] for _ in gold]
    for sample in range(context.spend.samples):
        answers = answers_to_gold(context, bare, gold, sample=sample, temperature=WARM)
        for row, answer in zip(found, answers, strict=bool(answers)):
            if not answer.reason:
                row.append(answer.outputs)
    return found


def labelled_rows(
    gold: Sequence[Record],
    answers: Sequence[Sequence[Mapping[str, Any]]],
    score: Callable[[int, Mapping[str, Any]], float],
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """Return the rows that a judge is tried on: "row" (of gold), "outputs", "accepted", and "from" where they come.

    `answers` are the teacher's to each gold row and `score(row, outputs)` is the metric's. Gold rows with wrong answers
    are rejected with them ("wrong"), but for half of all gold rows at most; the others are accepted, with the gold
    answer ("gold") and other right ones ("right"). As long as there are fewer rejected than accepted rows, a gold row
    changes sides, with the answer of another one ("other"). There are never more rejected rows than accepted ones.
    """
    order = random.Random(f"{seed}:judge").sample(range(len(gold)), len(gold))
    right: list[list[Mapping[str, Any]]] = []
    wrong: list[list[Mapping[str, Any]]] = []
    for row, found in enumerate(answers):
        new = _distinct(found, gold[row].outputs)
        right.append([outputs for outputs in new if score(row, outputs) >= RIGHT])
        wrong.append([outputs for outputs in new if score(row, outputs) < RIGHT])
    bad = [row for row in order if wrong[row]][: len(gold) // 2]
    # A row's second wrong answer comes after the first one of all.
    rejected = [_row(row, wrong[row][0], "wrong") for row in bad]
    rejected += [_row(row, outputs, "wrong") for row in bad for outputs in wrong[row][1:]]
    good = [row for row in order if row not in bad]
    for row in good.copy():
        other = _other(row, gold, order, score)
        if other is not None and len(rejected) < sum(1 + len(right[one]) for one in good if one != row):
            good.remove(row)
            rejected.append(other)
    accepted = [_row(row, gold[row].outputs, "gold") for row in good]
    accepted += [_row(row, outputs, "right") for row in good for outputs in right[row]]
    return [*accepted, *rejected[: len(accepted)]]


def _row(row: int, outputs: Mapping[str, Any], source: str) -> dict[str, Any]:
    return {"row": row, "outputs": dict(outputs), "accepted": source in ("gold", "right"), "from": source}


def _other(
    row: int, gold: Sequence[Record], order: Sequence[int], score: Callable[[int, Mapping[str, Any]], float]
) -> dict[str, Any] | None:
    """Return the row with another gold row's answer that is wrong for it, None where all are right."""
    at = order.index(row)
    others = [*order[at + 1 :], *order[:at]]
    found = next((other for other in others if score(row, gold[other].outputs) < RIGHT), None)
    return None if found is None else _row(row, gold[found].outputs, "other")


def _distinct(answers: Sequence[Mapping[str, Any]], known: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the answers without repetitions of each other and of the gold answer."""
    seen, found = {normalize(as_request(known))}, list[Mapping[str, Any]]()
    for outputs in answers:
        text = normalize(as_request(outputs))
        if text not in seen:
            seen.add(text)
            found.append(outputs)
    return found


def ask_all(context: Context, rows: Sequence[Row], what: str) -> dict[str, float | None]:
    """Return the score of each row by its key, asked for at once; None where the judge's answer cannot be read.

    Raises BudgetExceeded, and ModelError where more calls than a score bears get no answer.
    """
    asked = list({pair_key(*row): row for row in rows}.items())
    judge = ProgramJudge(_approver(context), context.judge, (ANSWER,), adapter=context.plan.adapter)
    names = context.task.output_fields
    done: list[Any] = []

    def ask(item: tuple[str, Row]) -> dspy.Prediction | None:
        inputs, outputs = item[1]
        try:
            return judge.ask(inputs, {ANSWER: as_request({name: outputs[name] for name in names})})
        except (BudgetExceeded, ModelError):
            raise
        except Exception:  # a stumble over one row
            return None

    def count(made: dspy.Prediction | None) -> None:
        done.append(made)
        progress_of(context, what)(len(done), len(asked))

    made = concurrently(ask, asked, threads=callers(context.config.judge_model), done=count)
    lost = [cast(Any, one) for one in made if one is not None and cast(Any, one).lost]
    # A row without a score is rejected for good, so an outage must not look like one.
    if len(lost) > max(LOST_SHARE * len(asked), 2):
        raise ModelError(
            f"{len(lost)} of {len(asked)} calls got no answer from the judge {context.config.judge_model}; the last: "
            f"{lost[-1].error}",
            valid=f"at most {LOST_SHARE:.0%} of the calls lost",
            hint="see that the server answers and is paid for, then the same command again: answers are kept",
        )
    return {key: None if one is None else cast(Any, one).score for (key, _), one in zip(asked, made, strict=True)}


def pair_key(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> str:
    """Return what a row's score is found by."""
    return stable_hash([inputs, outputs])


def _approver(context: Context) -> Approver:
    """Return the question: is the answer acceptable, given what the task asks; counted votes without probabilities."""
    instructions = " ".join(context.task.instructions.split())
    criteria = f"that the answer does what this task asks: {instructions}" if instructions else ""
    return Approver(criteria, votes=context.spend.samples)


def expected_precision(calibration: Calibration, right: Rate) -> float | None:
    """Return the share of right answers to expect among those that pass, where `right` is their share before.

    Of the labelled rows about half are right; the answers that a judge is for are as often right as the teacher is.

    >>> from types import SimpleNamespace
    >>> rates = SimpleNamespace(true_accept=Rate(8, 10), false_accept=Rate(1, 10))
    >>> round(expected_precision(rates, Rate(2, 10)), 2)
    0.67
    """
    share, passed, slipped = right.share, calibration.true_accept.share, calibration.false_accept.share
    if share is None or passed is None or slipped is None or not passed * share + slipped * (1 - share):
        return None
    return passed * share / (passed * share + slipped * (1 - share))


def told(model: str, found: Calibration, right: Rate) -> str:
    """Return the trial in one line for a person."""
    text = (
        f"judge {model} on {found.rows} labelled answers: lets {_share(found.true_accept)} of the right and "
        f"{_share(found.false_accept)} of the wrong ones pass; of those that pass {_share(found.precision)} are right"
    )
    expected = expected_precision(found, right)
    if expected is None:
        return text
    return f"{text}; of answers that are right as often as the teacher's ({right.share:.0%}) it would be {expected:.0%}"


def _share(rate: Rate) -> str:
    return "none" if rate.share is None else f"{rate.share:.0%} [{rate.low:.0%}, {rate.high:.0%}]"
