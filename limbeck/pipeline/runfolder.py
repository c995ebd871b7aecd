"""The run folder: configuration, ledger, stage results, and what a stage prints while it works."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from limbeck.errors import InputError, LimbeckError
from limbeck.ledger import Ledger
from limbeck.models import Budget
from limbeck.pipeline.config import RunConfig, write_config
from limbeck.records import stable_hash


class Reporter(Protocol):
    """Where progress goes: the command line draws it, tests and the Python API may ignore it."""

    def stage(self, name: str, *, cached: bool = False) -> None:
        """A stage begins; `cached` when its result of an earlier start is used."""
        ...

    def note(self, text: str) -> None:
        """One line worth keeping on screen."""
        ...

    def warn(self, text: str) -> None:
        """One named warning."""
        ...

    def step(self, what: str, done: int, total: int, detail: str = "") -> None:
        """`done` of `total` units of `what` are finished."""
        ...


class Silent:
    """A reporter that says nothing."""

    def stage(self, name: str, *, cached: bool = False) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""

    def warn(self, text: str) -> None:
        """Ignore."""

    def step(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Ignore."""


def _siblings(folder: Path) -> list[Path]:
    """Ledgers of other runs in the same parent folder: what they paid for is not paid again."""
    found = (p / "ledger.sqlite" for p in sorted(folder.resolve().parent.glob("*")) if p != folder.resolve())
    return [p for p in found if p.is_file()]


def labels_copy(folder: Path, config: RunConfig) -> Path:
    """Return where a run keeps its copy of the labels file."""
    return folder / "data" / f"labels{Path(config.labels).suffix}"


class RunFolder:
    """One run's folder, open for work.

    `stage(name, key, work)` returns the payload that `work` made in this or an earlier start with the same key;
    files a stage writes must be named in its payload: where one is missing or has changed since, the work is done
    again.
    """

    def __init__(self, config: RunConfig, reporter: Reporter) -> None:
        self.config, self.reporter = config, reporter
        self.path = config.folder
        with self._writing():
            (self.path / "data").mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(self.path / "ledger.sqlite", siblings=_siblings(self.path))
        self.budget = Budget(max_usd=config.max_usd, max_tokens=config.max_tokens, max_minutes=config.max_minutes)
        self.stage_log: list[dict[str, Any]] = []
        self.warnings: list[str] = []

    def keep_config(self, *, labels: bool) -> None:
        """Write the configuration, once it is known to be sound, and copy the labels: `limbeck predict` reads them.

        Where they are others than an earlier start's, its students no longer predict. `labels` False: a task that
        was given in Python has no file to copy.
        """
        with self._writing():
            write_config(self.config, self.path / "run.toml")
            if not labels or not self.config.labels:
                return
            source, copy = Path(self.config.labels), labels_copy(self.path, self.config)
            if not copy.is_file() or not filecmp.cmp(source, copy, shallow=False):
                (self.path / "students.json").unlink(missing_ok=True)
                shutil.copyfile(source, copy)

    @contextmanager
    def _writing(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"cannot write to the run folder {self.path}: {error.strerror or error}",
                valid="a folder on a disk with space that you may write to",
                hint="limbeck run ... --out OTHER_FOLDER",
            ) from error

    def warn(self, text: str) -> None:
        """Show a warning once and keep it for the report."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.ledger.event("warning", text=text)
            self.reporter.warn(text)

    def stage(
        self, name: str, parts: Any, work: Callable[[], Mapping[str, Any]], *, show: bool = True
    ) -> dict[str, Any]:
        """Return the stage's payload, from the ledger where this key was finished before.

        `payload["files"]` names files under the run folder that must exist for a finished stage to count;
        `payload["log"]`, where given, is the stage's line in report.json.
        """
        key = stable_hash([name, parts])
        payload = self.ledger.stage(name, key)
        if payload is not None and self._contents(payload) == payload.get("contents"):
            if show:
                self.reporter.stage(name, cached=True)
            for text in payload.get("warnings", ()):
                self.warn(text)
        else:
            if show:
                self.reporter.stage(name)
            started, warned = time.monotonic(), len(self.warnings)
            payload = dict(work())
            payload["warnings"] = self.warnings[warned:]
            seconds = time.monotonic() - started
            payload["seconds"] = round(seconds, 2)
            payload["contents"] = self._contents(payload)
            self.ledger.finish_stage(name, key, payload, seconds)
        if "log" in payload:
            self.stage_log.append({"name": name, "seconds": payload["seconds"], **payload["log"]})
        return {**payload, "key": key}

    def _contents(self, payload: Mapping[str, Any]) -> dict[str, str]:
        """Return a hash of each file, or each folder's files, that a payload names; "" for what is not there."""
        return {name: content_hash(self.path / name) for name in payload.get("files", ())}

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()


def content_hash(path: Path) -> str:
    """Return 16 hex digits of a file's, or a folder's files', names and bytes; "" for what is not there."""
    if not path.exists():
        return ""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _is_full(error: Exception) -> bool:
    """Return whether a disk or a quota is full; safetensors and pyarrow say it in exceptions of their own."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in numbers or any(os.strerror(n) in str(error) for n in numbers)


@contextmanager
def open_run(config: RunConfig, reporter: Reporter) -> Generator[RunFolder]:
    """Open a run folder for the time of a `with` block; a full disk becomes a clear error."""
    run = RunFolder(config, reporter)
    try:
        yield run
    except Exception as error:
        if _is_full(error):
            raise LimbeckError(
                f"the disk is full: {run.path}",
                valid="space for the run; what was finished is kept",
                hint=f"free some space, then: limbeck run {run.path}",
            ) from error
        raise
    finally:
        run.close()
