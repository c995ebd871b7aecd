"""`limbeck compile --program`: the programs of methods of writing rows, compiled against the user's labels.

What is kept stands in the run folder as METHOD.PART.json, and whatever writes rows in that folder uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import dspy

from limbeck.compile.label import prompt_hash
from limbeck.compile.optimize import UNCOMPILED, Compiled
from limbeck.compile.parts import TRIALS, resolve_programs
from limbeck.compile.prompts import FOLDER, file_of, stamp
from limbeck.compile.source import source_of
from limbeck.compile.synthesizers import WithPrograms, load_method
from limbeck.compile.trials import Ground, compile_part, usable_optimizers
from limbeck.errors import InputError
from limbeck.pipeline.config import RunConfig
from limbeck.pipeline.context import Context
from limbeck.pipeline.data import gold_hash, labeler_of, materials_of, method_files_hash
from limbeck.pipeline.teacher import reflection
from limbeck.task import Task


def check_programs(config: RunConfig, task: Task) -> None:
    """Raise InputError for a program that is unknown or that labels do not measure, before anything is spent."""
    if not config.program:
        return
    resolve_programs(config.program, task, source_of(task, task.examples), config.method_options())
    if config.optimizer and config.optimizer not in usable_optimizers():
        raise InputError(
            f"--optimizer {config.optimizer} shows labelled rows as they are, which are no demonstrations for a "
            "program that writes rows",
            valid=", ".join(usable_optimizers()),
            hint="leave --optimizer or --program out",
        )


def compile_programs(context: Context, demos: int, program: dspy.Module) -> None:
    """Compile what `--program` names, a stage each; `demos` and `program` are the compile stage's own result.

    A program that does not beat the plain one on dev rows is not kept, and an older one of its name goes.
    """
    config, run = context.config, context.run
    if not config.program:
        return
    source = source_of(context.task, context.split.gold)
    names, notes = resolve_programs(config.program, context.task, source, config.method_options())
    for text in notes:
        run.reporter.note(text)
    made_from = gold_hash(context)
    for name in names:
        # The demonstrations of the task's own program read back and answer what is written.
        key = context.key(
            "program", name, demos, method_files_hash(context), prompt_hash(program), made_from, *context.grounds
        )
        payload = run.stage(f"compile {name}", key, partial(_compile, context, name, demos, program, made_from))
        if not payload["kept"]:  # a file of other settings would still be used
            (run.path / file_of(name)).unlink(missing_ok=True)
        for text in payload["notes"]:
            run.warn(text)
        run.reporter.note(_told(name, payload))


def _compile(context: Context, name: str, demos: int, program: dspy.Module, made_from: str) -> dict[str, Any]:
    config, run = context.config, context.run
    method, part = name.split(".")
    materials = materials_of(context, labeler_of(context, demos, program), compiled=False)
    ground = Ground(cast(WithPrograms, load_method(method)), materials, len(context.split.dev))
    compiled = compile_part(
        part,
        ground,
        TRIALS[name](ground),
        optimizer=config.optimizer,
        effort=config.effort,
        reflection_lm=reflection(run),
        progress=lambda what, done, total: run.reporter.step(f"{name}: {what}", done, total),
    )
    path = run.path / file_of(name)
    path.unlink(missing_ok=True)
    if compiled.kept:
        (run.path / FOLDER).mkdir(exist_ok=True)
        cast(Any, compiled.program).save(str(path))
        stamp(path, made_from)
    kept = compiled.optimizer if compiled.kept else UNCOMPILED
    scores = {"baseline": compiled.baseline_score, "compiled": compiled.compiled_score}
    return {
        "files": [file_of(name)] if compiled.kept else [],
        "notes": [f"{name}: {note}" for note in compiled.notes],
        "tried": compiled.optimizer,
        "kept": compiled.kept,
        **scores,
        "log": {"records_in": len(context.split.gold), "kept": kept, **scores, **_interval(compiled)},
    }


def _interval(compiled: Compiled) -> dict[str, Sequence[float]]:
    return {"gain_ci95": compiled.paired.ci95} if compiled.paired else {}


def _told(name: str, payload: Mapping[str, Any]) -> str:
    before, after, tried = payload["baseline"], payload["compiled"], payload["tried"]
    if tried == UNCOMPILED:
        return f"{name} stays as it is: nothing was there to compare"
    scores = f"{after:.2f} on dev rows, {before:.2f} before"
    if payload["kept"]:
        return f"{name} is compiled by {tried}: {scores}"
    return f"{name} stays as it is: {tried} did not beat it ({scores})"
