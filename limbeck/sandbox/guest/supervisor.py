"""The sandbox's own process: it shuts itself in, starts the programs, waits for them and says how they ended.

It takes only modules that load in a millisecond. The programs are executed afresh, so that nothing of this process
is in their memory.
"""

from __future__ import annotations

import _thread
import fcntl
import marshal
import os
import sys

from limbeck.sandbox.guest.namespaces import enter_namespaces
from limbeck.sandbox.guest.rights import drop_rights, set_limits

TYPE_CHECKING = False  # `typing` takes longer to load than a sandbox takes to start
if TYPE_CHECKING:
    from limbeck.sandbox.guest.kernel import Job


def main() -> None:
    """Do the job whose file is named by its number on the command line."""
    with open(int(sys.argv[1]), "rb") as file:
        job: Job = marshal.loads(file.read())
    os.umask(0o022)  # a guest that is someone else must reach Python through the folders made for it
    for fd in (job["report"], job["stop"], job["null"], *(fd for pair in job["files"] for fd in pair)):
        os.set_inheritable(fd, False)
    try:
        if job["level"] == "namespaces":
            enter_namespaces(job)
        elif job["stranger"]:
            os.chown(job["folder"], job["stranger"], job["stranger"])
        _supervise(job)
    except BaseException as error:
        _say(job, f"fail {type(error).__name__}: {error}")
    os._exit(0)


def _say(job: Job, line: str) -> None:
    os.write(job["report"], " ".join(line.splitlines()).encode("utf-8", "replace")[:500] + b"\n")


def _supervise(job: Job) -> None:
    _say(job, "start")
    to_first, to_second = os.pipe(), os.pipe()
    channels = ((to_first[0], to_second[1]), (to_second[0], to_first[1]))
    running = {_spawn(job, i, channels[i] if len(job["commands"]) > 1 else ()): i for i in range(len(job["commands"]))}
    for fd in (*to_first, *to_second):
        os.close(fd)
    _thread.start_new_thread(_kill_when_told, (job["stop"], running))
    while 0 in running.values():
        _await_one(job, running)
    while running:
        _kill(running)
        _await_one(job, running)


def _await_one(job: Job, running: dict[int, int]) -> None:
    pid, status, usage = os.wait4(-1, 0)
    if pid in running:  # else an orphan that came to process 1
        _say(job, f"done {running.pop(pid)} {status} {usage.ru_utime + usage.ru_stime:.6f}")


def _kill_when_told(stop: int, running: dict[int, int]) -> None:
    os.read(stop, 1)  # returns when the parent closes its end, be it by dying
    _kill(running)


def _kill(running: dict[int, int]) -> None:
    for pid in list(running):
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            continue


def _spawn(job: Job, index: int, channel: tuple[int, ...]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        _become_program(job, index, channel)
    except BaseException as error:
        _say(job, f"fail {type(error).__name__}: {error}")
    os._exit(127)


def _become_program(job: Job, index: int, channel: tuple[int, ...]) -> None:
    program, stdin = job["files"][index]
    outputs = (1, 2) if index == 0 else (job["null"], job["null"])
    # First out of the way, then to their places: a place may hold one that is still needed.
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in (stdin, *outputs, program, *channel)]
    for place, fd in enumerate(moved):
        os.dup2(fd, place)
    if job["level"] in ("namespaces", "bubblewrap"):
        os.setsid()  # else kill(0, ...) reaches the processes that started this one
    os.chdir(job["home"])
    set_limits(job)
    drop_rights(job)
    command = job["commands"][index]
    environment = {
        "HOME": job["home"],
        "TMPDIR": job["home"],
        "PYTHONHASHSEED": "0",  # the same code gives the same run
        "MALLOC_ARENA_MAX": "1",  # else each thread takes 64 MiB of what may be addressed
    }
    os.execve(command[0], command, environment)


if __name__ == "__main__":
    main()
