"""What every stage of one run shares: the task with its split, the teacher, the student's plan, the folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import dspy

from limbeck.compile.split import Split
from limbeck.models import LM
from limbeck.models.kinds import is_local
from limbeck.pipeline.config import Effort, RunConfig
from limbeck.pipeline.labelers import Folds
from limbeck.pipeline.runfolder import RunFolder
from limbeck.pipeline.students import StudentPlan, callers
from limbeck.task import Task


def weights_of(lm: LM) -> str:
    """Return what names a model's weights or server, whichever program and number type runs them today."""
    return str(getattr(lm.backend, "weights", lm.backend.fingerprint))


@dataclass(frozen=True)
class Context:
    """One run at work. `plan.task` and `task` are the same object; `given` are the user's own label descriptions.

    `models` names what answers beside the models' names: a file behind a name may change. `judge` is the model that
    judges answers, None without one. `writes_with` and `answers_with` are the teacher's adapters with passages of
    documents in view, None without `--ground`; `documents` is then a hash of what the documents hold.
    """

    run: RunFolder
    task: Task
    split: Split
    teacher: LM
    plan: StudentPlan
    given: Mapping[str, str]
    models: tuple[str, ...] = ()
    judge: LM | None = None
    writes_with: Any = None
    answers_with: Any = None
    documents: str = ""

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.run.config

    @property
    def spend(self) -> Effort:
        """The effort level's counts."""
        return self.run.config.spend

    @property
    def answerer(self) -> LM:
        """The teacher as it answers the task's inputs; local weights stop at the plan's `max_tokens`."""
        return self.teacher.copy(max_tokens=self.plan.max_tokens) if is_local(self.config.teacher) else self.teacher

    @property
    def writing_adapter(self) -> Any:
        """The adapter under which the teacher writes rows."""
        return self.writes_with or self.plan.adapter

    @property
    def answering_adapter(self) -> Any:
        """The adapter under which the teacher answers; labels are answered as they were compiled, without passages."""
        return self.plan.adapter if self.closed else self.answers_with or self.plan.adapter

    @property
    def grounds(self) -> list[str]:
        """What grounding adds to the keys of stages in which the teacher writes or answers with passages in view."""
        return ["grounded", self.documents] if self.documents else []

    @property
    def callers(self) -> int:
        """How many calls wait at once: servers limit their rate."""
        return callers(self.config.teacher)

    @property
    def closed(self) -> bool:
        """Whether the task is one closed set of labels that is scored, not written."""
        return self.plan.closed

    @property
    def output(self) -> str:
        """The first output field; the only one of a closed task."""
        return self.task.output_fields[0]

    def gold_inputs(self) -> list[dict[str, Any]]:
        """Return the inputs of the gold rows, in the split's order."""
        return [self.task_inputs(e) for e in self.split.gold]

    def folds(self) -> Folds:
        """Return the gold rows' classes and folds for the labelers of a closed task."""
        index = {label: i for i, label in enumerate(self.task.labels)}
        return Folds(
            tuple(index[self.task.label_of(e)] for e in self.split.gold),
            self.split.folds,
            self.split.n_folds,
            self.task.labels,
        )

    def key(self, *parts: Any) -> list[Any]:
        """Return a stage key: the run's identity, the data's hash, and what the stage itself depends on."""
        tagged = ["tagged"] if self.plan.tagged else []
        return [self.config.identity(), self.task.fingerprint, self.models, *tagged, *parts]

    def task_inputs(self, row: Mapping[str, Any] | dspy.Example) -> dict[str, Any]:
        """Return the input fields of one row."""
        return {name: cast(Any, row)[name] for name in self.task.input_fields}
