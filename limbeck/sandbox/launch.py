"""Start the sandbox's own process with all that it needs to know.

Texts and standard inputs reach the programs as open files that can be read and not written.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import marshal
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from limbeck.errors import LimbeckError
from limbeck.sandbox.host import Host
from limbeck.sandbox.seccomp import build_filter
from limbeck.sandbox.values import SHARED, Level, Limits

if TYPE_CHECKING:
    from limbeck.sandbox.guest.kernel import Job

_MIB = 1 << 20
# -I would ignore PYTHONHASHSEED; the environment holds nothing else that Python heeds.
_FLAGS = ("-s", "-P", "-S", "-B", "-X", "utf8", "-c")
_RUN_TEXT = "exec(compile(open(3, 'rb').read(), 'main.py', 'exec'))"
# Own modules are found where an import looks first, so that they can import each other.
_RUN_OWN = """import marshal, sys
for name, code in marshal.loads(open({}, "rb").read()):
    exec(code, vars(sys.modules.setdefault(name, type(sys)(name))))
"""
_SUPERVISOR = ("kernel", "rights", "namespaces", "supervisor")


@dataclass(frozen=True)
class Program:
    """Python to run: its text, or limbeck's own code as `compile_own` gives it, and its standard input."""

    code: str | bytes
    stdin: str = ""


@dataclass(frozen=True)
class Started:
    """A sandbox that runs: closing `stop` ends its programs, `report` says how each ended."""

    process: subprocess.Popen[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]
    report: IO[bytes]
    stop: IO[bytes]


@functools.cache
def compile_own(*modules: str) -> bytes:
    """Return modules of the guest folder as bytes that a Python of the same version runs; the last is the program."""
    folder = importlib.resources.files("limbeck.sandbox.guest")
    texts = {name: folder.joinpath(f"{name}.py").read_text(encoding="utf-8") for name in modules}
    names = {name: f"limbeck.sandbox.guest.{name}" for name in modules[:-1]} | {modules[-1]: "__main__"}
    return marshal.dumps([(names[name], compile(text, f"{name}.py", "exec")) for name, text in texts.items()])


def launch(programs: Sequence[Program], limits: Limits, level: Level, folder: Path, host: Host) -> Started:
    """Start the programs in the folder of their run; raises LimbeckError where no process can be made."""
    with contextlib.ExitStack() as ours:  # what is open here only until the other process has it

        def give(name: str, content: str | bytes) -> int:
            path = folder / name
            path.write_bytes(_bytes(content))
            file = ours.enter_context(path.open("rb", buffering=0))
            path.unlink()  # open files stay; the folder is the programs'
            return file.fileno()

        (report, report_end), (stop_end, stop) = _pipe(), _pipe()
        null = ours.enter_context(open(os.devnull, "r+b", buffering=0)).fileno()
        job = _job(programs, limits, level, folder, host)
        job["files"] = [(give(f"code{i}", p.code), give(f"stdin{i}", p.stdin)) for i, p in enumerate(programs)]
        job["report"] = ours.enter_context(report_end).fileno()
        job["stop"] = ours.enter_context(stop_end).fileno()
        job["null"] = null
        own, order = give("supervisor", compile_own(*_SUPERVISOR)), give("job", marshal.dumps({**job}))
        command = [host.python, "-I", "-S", "-B", "-c", _RUN_OWN.format(own), str(order)]
        if level is Level.BUBBLEWRAP:
            command = [*host.bubblewrap(limits), *command]
        passed = [job["report"], job["stop"], null, own, order, *(fd for pair in job["files"] for fd in pair)]
        try:
            process = _popen(command, passed)
        except OSError as error:
            report.close()
            stop.close()
            raise LimbeckError(f"the sandbox does not start: {error}", hint="limbeck doctor") from error
    assert process.stdout is not None
    assert process.stderr is not None
    return Started(process, process.stdout, process.stderr, report, stop)


def _popen(command: list[str], passed: list[int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        bufsize=0,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=passed,
        env={},
        cwd="/",
        start_new_session=True,
    )


def _pipe() -> tuple[IO[bytes], IO[bytes]]:
    read, write = os.pipe()
    return open(read, "rb", buffering=0), open(write, "wb", buffering=0)


def _bytes(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")


def _bootstrap(program: Program) -> str:
    return _RUN_TEXT if isinstance(program.code, str) else _RUN_OWN.format(3)


def _job(programs: Sequence[Program], limits: Limits, level: Level, folder: Path, host: Host) -> Job:
    shared, stranger = level in SHARED, host.stranger(level)
    # Linux holds root to no number of processes: where root cannot become someone else, none are made.
    forks = not (shared and host.root and not stranger)
    return {
        "level": level.value,
        "folder": str(folder),
        "home": str(folder) if shared else host.home,
        "paths": list(host.paths),
        "links": list(host.links),
        "commands": [[host.python, *_FLAGS, _bootstrap(program)] for program in programs],
        "files": [],
        "report": -1,
        "stop": -1,
        "null": -1,
        "stranger": stranger,
        "cpu": limits.cpu_seconds,
        "memory": limits.memory_mib * _MIB,
        "tasks": host.tasks(level, limits) + len(programs) - 1,
        "file": limits.file_mib * _MIB,
        "disk": limits.disk_mib * _MIB,
        "filter": build_filter(shared=shared, forks=forks),
        "landlock": host.landlock if level is Level.LANDLOCK else 0,
    }
