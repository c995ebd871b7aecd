"""`BootstrapFinetune` that survives real teachers: DSPy's own, with its data preparation replaced.

DSPy 3.4's crashes on one unparsable answer, keeps failed rows, trains the student on the teacher's prompt
and mixes up predictors that are called twice. Jobs, providers and `BetterTogether` are DSPy's.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUntypedBaseClass=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.clients.utils_finetune import infer_data_format
from dspy.teleprompt.bootstrap_finetune import prepare_teacher

from limbeck.errors import BudgetExceeded, InputError, StageEmpty
from limbeck.metrics import score_of
from limbeck.models.adapter import render


@dataclass(frozen=True)
class Attempt:
    """One example answered by one teacher: its steps by predictor name, or why there are none."""

    steps: tuple[tuple[str, Mapping[str, Any], Mapping[str, Any]], ...]
    score: float
    failure: str = ""


class BootstrapFinetune(dspy.BootstrapFinetune):
    """Fine-tune a student on its teachers' good answers, rendered with the student's own prompt.

    An example counts if every predictor's answer parses and the metric gives at least `min_score`; without
    a metric all that parse count. Rows have the student's signature, demos and adapter (`adapter`, else
    `dspy.settings.adapter`, else ChatAdapter: what the student will run with). `exclude_demos` trains and
    leaves the student without demos. With `multitask=False` every predictor gets a model of its own.
    `attempts` of the last `compile` say what became of every example.
    """

    def __init__(
        self,
        metric: Callable[..., Any] | None = None,
        *,
        min_score: float = 0.5,
        multitask: bool = True,
        train_kwargs: Any = None,
        adapter: Any = None,
        exclude_demos: bool = False,
        num_threads: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            metric=metric,
            multitask=multitask,
            train_kwargs=train_kwargs,
            adapter=adapter,
            exclude_demos=exclude_demos,
            num_threads=num_threads,
        )
        self.min_score, self.seed = min_score, seed
        self.attempts: tuple[Attempt, ...] = ()

    def compile(self, student: Any, trainset: list[Any], teacher: Any = None) -> Any:
        """Return the student with fine-tuned LMs; teachers default to the student itself.

        Raises InputError where a predictor has no LM, StageEmpty before any job starts where no example is
        left, RuntimeError where a job failed.
        """
        missing = [name for name, predictor in student.named_predictors() if predictor.lm is None]
        if missing:
            raise InputError(f"no LM on {', '.join(missing)}", hint="student.set_lm(lm)")
        teachers = teacher if isinstance(teacher, list) else [teacher]
        programs = [prepare_teacher(student, one) for one in teachers]
        self.attempts = tuple(attempt for program in programs for attempt in self._answer_all(program, trainset))
        jobs = self._jobs(student)
        models = self.finetune_lms(jobs)
        for index, predictor in enumerate(student.predictors()):
            predictor.lm = models[self._key(predictor, index)]
            predictor.demos = [] if self.exclude_demos else predictor.demos
        student._compiled = True
        return student

    # -- the teacher's answers -------------------------------------------------------------------------------

    def _answer_all(self, program: Any, trainset: Sequence[Any]) -> list[Attempt]:
        threads = max(1, self.num_threads or dspy.settings.num_threads or 1)
        with ThreadPoolExecutor(threads) as pool:
            try:
                jobs = [pool.submit(copy_context().run, self._answer, program, example) for example in trainset]
                return [job.result() for job in jobs]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _answer(self, program: Any, example: Any) -> Attempt:
        names = {id(predictor): name for name, predictor in program.named_predictors()}
        with dspy.context(trace=[]):
            try:
                prediction = program(**example.inputs())
                trace: list[Any] = list(dspy.settings.trace or [])
                score = 1.0 if self.metric is None else score_of(self.metric(example, prediction, trace) or 0.0)
            except BudgetExceeded:
                raise
            except Exception as error:  # whatever one answer does to parser, program or metric
                return Attempt((), 0.0, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
        steps = tuple(
            (names[id(predictor)], inputs, dict(outputs))
            for predictor, inputs, outputs in trace
            if id(predictor) in names
        )
        return Attempt(steps, score, "" if steps else "no predictor of the program was called")

    # -- training rows ---------------------------------------------------------------------------------------

    def _key(self, predictor: Any, index: int) -> tuple[Any, int | None]:
        return (predictor.lm, None if self.multitask else index)

    def _jobs(self, student: Any) -> dict[Any, dict[str, Any]]:
        """Return DSPy's job arguments for every model to train; each has at least one row."""
        kept = [a for a in self.attempts if not a.failure and (self.metric is None or a.score >= self.min_score)]
        predictors: dict[str, Any] = dict(student.named_predictors())
        jobs: dict[Any, dict[str, Any]] = {}
        for index, (name, predictor) in enumerate(predictors.items()):
            lm = predictor.lm
            adapter = self.adapter[lm] or dspy.settings.adapter or dspy.ChatAdapter()
            rows = [
                self._row(predictor, adapter, inputs, outputs)
                for attempt in kept
                for step, inputs, outputs in attempt.steps
                if step == name
            ]
            job = jobs.setdefault(
                self._key(predictor, index),
                {
                    "lm": lm,
                    "train_data": [],
                    "train_data_format": infer_data_format(adapter),
                    "train_kwargs": self.train_kwargs[lm],
                },
            )
            job["train_data"] += rows
            if not job["train_data"] and not self.multitask:
                raise self._nothing(f"no training row for {name}")
        if not all(job["train_data"] for job in jobs.values()):
            raise self._nothing("no training row")
        for job in jobs.values():
            random.Random(self.seed).shuffle(job["train_data"])
        return jobs

    def _row(
        self, predictor: Any, adapter: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any]
    ) -> dict[str, Any]:
        demos = [] if self.exclude_demos else predictor.demos
        rendered = render(predictor, adapter=adapter, inputs=inputs, outputs=outputs, demos=demos)
        turns = [*rendered.messages, ("assistant", rendered.completions[0][0])]
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    def _nothing(self, message: str) -> StageEmpty:
        failures = Counter(a.failure for a in self.attempts if a.failure)
        low = sum(not a.failure and a.score < self.min_score for a in self.attempts)
        reasons = [f"{low} scored below {self.min_score}"] if low and self.metric else []
        reasons += [f"{count} failed: {failure}" for failure, count in failures.most_common(3)]
        return StageEmpty(
            f"{message}: of {len(self.attempts)} answers {'; '.join(reasons) or 'none called the predictor'}",
            valid="answers that parse and reach min_score",
            hint="a better teacher, or BootstrapFinetune(min_score=...)",
        )
