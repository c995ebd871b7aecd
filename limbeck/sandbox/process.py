"""One run at one level: watch its outputs, its folder and the clock, end it, and say what each program did."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from limbeck.errors import LimbeckError
from limbeck.sandbox.folder import folder_bytes, run_folder
from limbeck.sandbox.host import Host
from limbeck.sandbox.launch import Program, Started, launch
from limbeck.sandbox.values import SHARED, Level, Limits, Ran, Status

_MIB, _KIB = 1 << 20, 1 << 10
_TICK = 0.1  # seconds between two looks at a folder that only a watch can bound
_GRACE = 2.0  # seconds the sandbox's own process has to end a run before it is ended itself
_DRAIN = 0.5  # seconds for outputs to close once their writers are dead
_CHUNK = 1 << 16


def execute(programs: Sequence[Program], limits: Limits, level: Level, host: Host) -> list[Ran]:
    """Run the programs beside each other until the first ends, and return what each did.

    Two programs are joined by pipes: each reads the other on file 4 and writes to it on file 5. Only the first has
    outputs. Raises LimbeckError where the sandbox itself does not start.
    """
    start = time.monotonic()
    with run_folder() as folder:
        started = launch(programs, limits, level, folder, host)
        watch = _Watch(started, limits, folder if level in SHARED else None)
        try:
            watch.run(start + limits.seconds)
        finally:
            watch.end()
    seconds = time.monotonic() - start
    ends = _ends(watch)
    return [_ran(index, ends.get(index), watch, level, seconds) for index in range(len(programs))]


@dataclass
class _Watch:
    started: Started
    limits: Limits
    folder: Path | None  # one whose size nothing else bounds
    stopped: Status | None = None
    texts: dict[str, bytearray] = field(default_factory=dict[str, bytearray])
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    next_look: float = 0.0

    def __post_init__(self) -> None:
        streams: dict[str, IO[bytes]] = {
            "report": self.started.report,
            "stdout": self.started.stdout,
            "stderr": self.started.stderr,
        }
        for name, stream in streams.items():
            self.texts[name] = bytearray()
            self.selector.register(stream, selectors.EVENT_READ, name)

    def run(self, deadline: float) -> None:
        """Return when the programs have ended or would not be ended; `deadline` is on the monotonic clock."""
        while "report" in self._read(deadline if self.folder is None else min(deadline, self.next_look)):
            now = time.monotonic()
            if self.stopped is None:
                self.stopped = self._reason_to_stop(now, deadline)
                if self.stopped is not None:
                    deadline = now + _GRACE
                    self.started.stop.close()
            elif now >= deadline:
                return

    def end(self) -> None:
        """End whatever is left and take the last of the outputs."""
        self.started.stop.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the second of a group of zombies
            os.killpg(self.started.process.pid, signal.SIGKILL)
        self.started.process.wait()
        last = time.monotonic() + _DRAIN
        while self.selector.get_map() and time.monotonic() < last:
            self._read(last)
        self.selector.close()
        for stream in (self.started.report, self.started.stdout, self.started.stderr):
            stream.close()

    def text(self, name: str) -> str:
        """Return an output as text, cut at its limit."""
        return self.texts[name][: self.limits.output_kib * _KIB].decode("utf-8", "replace")

    def _read(self, until: float) -> set[str]:
        """Take what has come, at the latest at `until`; return which streams are still open."""
        for key, _ in self.selector.select(max(0.0, until - time.monotonic())):
            chunk = os.read(key.fd, _CHUNK)
            if not chunk:
                self.selector.unregister(key.fileobj)
            elif len(self.texts[key.data]) <= self.limits.output_kib * _KIB:
                self.texts[key.data] += chunk
        return {key.data for key in self.selector.get_map().values()}

    def _reason_to_stop(self, now: float, deadline: float) -> Status | None:
        if now >= deadline:
            return "timeout"
        if any(len(self.texts[name]) > self.limits.output_kib * _KIB for name in ("stdout", "stderr")):
            return "output"
        if self.folder is not None and now >= self.next_look:
            self.next_look = now + _TICK
            if folder_bytes(self.folder) > self.limits.disk_mib * _MIB:
                return "disk"
        return None


@dataclass(frozen=True)
class _End:
    exit_code: int
    cpu_seconds: float


def _ends(watch: _Watch) -> dict[int, _End]:
    """Return how the programs ended by their place; raises LimbeckError if the sandbox did not start them."""
    lines = [line.partition(" ") for line in watch.texts["report"].decode("utf-8", "replace").splitlines()]
    failures = [rest for word, _, rest in lines if word == "fail"]
    if failures or (watch.stopped is None and all(word != "start" for word, _, _ in lines)):
        why = (failures or watch.text("stderr").strip().splitlines()[-1:] or ["no reason given"])[0]
        raise LimbeckError(f"the sandbox does not start: {why}", hint="limbeck doctor")
    fields = [rest.split() for word, _, rest in lines if word == "done"]
    return {int(index): _End(os.waitstatus_to_exitcode(int(status)), float(cpu)) for index, status, cpu in fields}


def _ran(index: int, end: _End | None, watch: _Watch, level: Level, seconds: float) -> Ran:
    stdout, stderr = (watch.text("stdout"), watch.text("stderr")) if index == 0 else ("", "")
    if index == 0 and watch.stopped is not None:
        return Ran(watch.stopped, None, stdout, stderr, end.cpu_seconds if end else 0.0, seconds, level)
    if end is None:  # the sandbox's own process was killed by what it ran, where that can reach it
        return Ran("killed", None, stdout, stderr, 0.0, seconds, level)
    return Ran(_status(end, watch.limits, stderr), end.exit_code, stdout, stderr, end.cpu_seconds, seconds, level)


def _status(end: _End, limits: Limits, stderr: str) -> Status:
    if end.exit_code == 0:
        return "ok"
    spent = end.exit_code == -signal.SIGKILL and end.cpu_seconds >= limits.cpu_seconds
    if spent or end.exit_code == -signal.SIGXCPU:
        return "timeout"
    if end.exit_code < 0:
        return "killed"
    last = stderr.rstrip().rsplit("\n", 1)[-1]
    return "memory" if last.startswith("MemoryError") else "error"
