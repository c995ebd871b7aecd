"""A user's task.py: their own signature, module, metric and verifiers, run as the code it is."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from limbeck.errors import InputError
from limbeck.task import Task


def load_task(path: str | Path) -> Task:
    """Return the task of a Python file: its `task`, or what its `build()` returns.

    The file is the user's own code and runs as such. Raises `InputError` if there is no such file, if it
    fails, or if it defines no `Task`.
    """
    path = Path(path)
    if not path.is_file() or path.suffix != ".py":
        raise InputError(f"there is no task file {path}", valid="a Python file that defines `task`", hint="ls *.py")
    hint = f"see that `python {path}` runs"
    try:
        module = _import_file(path)
        found = module.task if hasattr(module, "task") else module.build() if hasattr(module, "build") else None
    except InputError:
        raise
    except Exception as error:  # whatever the user's file does
        place = _line_in(path, error)
        raise InputError(
            f"{path}{place} failed: {type(error).__name__}: {error}", valid="a file that runs", hint=hint
        ) from error
    if not isinstance(found, Task):
        what = "neither `task` nor `build()`" if found is None else f"a {type(found).__name__} for a task"
        raise InputError(
            f"{path} defines {what}",
            valid="task = limbeck.Task.from_program(program, examples, metric)",
            hint=hint,
        )
    return found


def _import_file(path: Path) -> Any:
    name = f"limbeck_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a .py file has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # pydantic looks up a signature's annotations in its module, and the file may import its neighbours.
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def _line_in(path: Path, error: BaseException) -> str:
    trace, line = error.__traceback__, 0
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).name == path.name:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f", line {line}" if line else ""
