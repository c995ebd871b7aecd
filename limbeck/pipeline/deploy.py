"""What a run returns: a program with its student, ready to predict; from the run folder alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import dspy

from limbeck.compile.nearest import NearestDemos
from limbeck.errors import InputError
from limbeck.ledger import Ledger
from limbeck.models import LM, CompactAdapter, connect
from limbeck.models.kinds import is_local
from limbeck.pipeline.config import RunConfig, read_config
from limbeck.pipeline.context import Context
from limbeck.pipeline.learn import ADAPTERS
from limbeck.pipeline.runfolder import labels_copy
from limbeck.pipeline.students import Recipe, callers
from limbeck.pipeline.ways import OWN, student_program
from limbeck.task import Task

TEACHERS = ("teacher", "teacher_compiled")
BASE = "student_base"


def write_students(context: Context, chosen: str, recipes: Mapping[str, Recipe], *, nearest: int = 0) -> None:
    """Write students.json: the chosen system, and each trained student's program file, adapter folder and way.

    `nearest` is how many demonstrations the compiled teacher retrieves for each input, 0 where they are fixed.
    """
    systems: dict[str, Any] = {BASE: {"program": "student_base.json", "adapter": ""}}
    cast(Any, context.plan.task.program).save(str(context.run.path / "student_base.json"))
    for name, recipe in recipes.items():
        cast(Any, context.plan.program(recipe)).save(str(context.run.path / f"{name}.json"))
        systems[name] = {"program": f"{name}.json", "adapter": ADAPTERS[name], "way": recipe.way}
    if not context.config.weak:
        systems["teacher_compiled"] = {"program": "program.json", "adapter": "", "nearest": nearest}
    payload = {
        "chosen": chosen,
        "systems": systems,
        "inputs": [context.task.columns.get(name, name) for name in context.task.input_fields],
        "kind": context.task.kind if len(context.task.output_fields) == 1 else "",
        "descriptions": dict(context.task.label_descriptions),
        "max_tokens": context.plan.max_tokens,
    }
    text = json.dumps(payload, indent=2, ensure_ascii=False)
    part = context.run.path / "students.json.part"
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(context.run.path / "students.json")


@dataclass(frozen=True)
class Deployed:
    """One system of a finished run: `program` answers under `lm` and `adapter`.

    >>> deployed = load_run(Path("runs/tickets"))  # doctest: +SKIP
    >>> deployed({"message": "where is my card?"})  # doctest: +SKIP
    {'label': 'card_arrival'}
    """

    system: str
    task: Task
    program: dspy.Module
    lm: LM
    adapter: Any

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs of one row, under the user's column names."""
        return next(iter(self.predict([row])))

    def predict(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        probabilities: bool = False,
        threads: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterable[dict[str, Any]]:
        """Return each row's outputs, in order; a row without a usable answer has None and an `error`.

        With `probabilities` a closed field's distribution stands under `FIELD_probabilities`. `threads` calls wait
        at once: by default as many as local weights answer in batches, few for a server.
        """
        from limbeck.compile.concurrent import concurrently
        from limbeck.models import label_probabilities

        inputs = [self.task.inputs_of(row) for row in rows]
        finished: list[int] = []

        def one(values: Mapping[str, Any]) -> dict[str, Any]:
            try:
                with cast(Any, dspy).context(lm=self.lm, adapter=self.adapter, trace=None):
                    prediction = cast(Any, self.program)(**values)
            except Exception as error:  # one row without an answer must not lose the others
                blank = dict.fromkeys(self.task.columns.get(f, f) for f in self.task.output_fields)
                return {**blank, "error": f"{type(error).__name__}: {error}"[:300]}
            found = self.task.outputs_of(prediction)
            if probabilities:
                found |= {f"{name}_probabilities": p for name, p in label_probabilities(prediction).items()}
            return found

        def done(_: dict[str, Any]) -> None:
            finished.append(1)
            if progress:
                progress(len(finished), len(inputs))

        return concurrently(one, inputs, threads=threads or callers(str(cast(Any, self.lm).model)), done=done)


def load_run(folder: Path, system: str = "", task: Task | None = None) -> Deployed:
    """Return a system of a finished run: the one that the verdict chose, or the one named.

    The task is rebuilt from the folder; `task` takes its place where the run was started from Python. Raises
    InputError for a folder without a finished run and for an unknown system.
    """
    config = read_config(folder)
    path = folder / "students.json"
    if not path.is_file():
        raise InputError(f"{folder} has no finished run", hint=f"limbeck run {folder}")
    stored = json.loads(path.read_text(encoding="utf-8"))
    if config.labels and "inputs" not in stored:
        raise InputError(f"{folder} is of an earlier version", hint=f"limbeck run {folder}: what is finished is kept")
    name = system or str(stored["chosen"])
    if name not in stored["systems"]:
        raise InputError(f"no system {name!r} in {folder}", valid=", ".join(stored["systems"]))
    files = stored["systems"][name]
    found = task or _task(config, folder, stored)
    if found.label_field:
        found = found.with_descriptions(stored["descriptions"])
    program = student_program(found, files.get("way", OWN))
    cast(Any, program).load(str(folder / files["program"]))
    if files.get("nearest"):
        program = NearestDemos.restored(program, k=files["nearest"])
    model = config.teacher if name in TEACHERS else config.student
    adapter = folder / files["adapter"] if files["adapter"] else None
    bounds: dict[str, Any] = {"max_tokens": int(stored["max_tokens"])} if is_local(model) else {}
    # What a server answered once is not paid for again; the run's own account stays as it was.
    ledger = None if is_local(model) else Ledger(folder / "predict.sqlite", siblings=[folder / "ledger.sqlite"])
    lm = connect(
        model,
        adapter=adapter,
        api_base=(config.api_base or None) if name in TEACHERS else None,
        ledger=ledger,
        role="predict",
        in_bulk=True,
        **bounds,
    )
    return Deployed(name, found, program, lm, CompactAdapter())


def _task(config: RunConfig, folder: Path, stored: Mapping[str, Any]) -> Task:
    """Return the task as it was trained: from the folder's copy of the labels, or the user's task.py.

    Inputs and kind come from the run: there they followed from the test and unlabelled rows as well.
    """
    from limbeck.pipeline.prepare import read_task

    config = replace(config, test="", unlabeled="", descriptions="")
    if config.labels:
        config = replace(config, labels=str(labels_copy(folder, config)), inputs=tuple(stored["inputs"]))
        config = replace(config, kind=stored["kind"] or config.kind)
    for given in (config.labels, config.task_file):
        if given and not Path(given).exists():
            raise InputError(
                f"the run's task is built from {given}, which is not there",
                hint=f"put it back, or: limbeck run {folder}",
            )
    return read_task(config)
