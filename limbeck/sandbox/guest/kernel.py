"""What the modules of the sandbox's own process share: its job, and calls to the C library."""

from __future__ import annotations

import ctypes
import os
import sys

TYPE_CHECKING = False  # `typing` takes longer to load than a sandbox takes to start
if TYPE_CHECKING:
    from typing import Any, TypedDict

    class Job(TypedDict):
        """What the parent asks for; sizes in bytes, times in seconds."""

        level: str
        folder: str  # the run's folder on the host, empty
        home: str  # the temporary folder as the programs see it
        paths: list[str]
        links: list[tuple[str, str]]
        commands: list[list[str]]
        files: list[tuple[int, int]]  # each program's text and standard input
        report: int
        stop: int
        null: int
        stranger: int  # an identity that owns nothing on this machine; 0: stay who you are
        cpu: int
        memory: int
        tasks: int
        file: int
        disk: int
        filter: bytes
        landlock: int  # the version of its interface; 0: do not use it


LINUX = sys.platform == "linux"
LIBC: Any = ctypes.CDLL(None, use_errno=True)
GUEST = 1000  # the identity inside namespaces, which is no one's and has no rights
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


def checked(result: int, what: str) -> int:
    """Return the result of a call to the C library; raises OSError if it failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
