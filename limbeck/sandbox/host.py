"""What the sandbox needs to know of the machine: where its Python lives, who we are, what the kernel offers."""

from __future__ import annotations

import ctypes
import functools
import os
import secrets
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from limbeck.sandbox.values import SHARED, Level, Limits

_MIB = 1 << 20
_SYSTEM = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/etc/ld.so.cache")
_STORES = ("/nix/store", "/gnu/store")  # where a Python's libraries lie beside it, each in a folder of its own
# systemd's table of user identities leaves the range from here on unused: https://systemd.io/UIDS-GIDS
_UNUSED_IDENTITIES = 1_900_000_000
_OWN_TASKS = 4  # the sandbox's processes and thread that count against a plain user's limit


@dataclass(frozen=True)
class Host:
    """This machine, as far as it matters: `links` are links among the system's folders, as (path, target)."""

    python: str
    paths: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    root: bool
    others_can_run: bool
    landlock: int
    counts_per_namespace: bool

    @property
    def home(self) -> str:
        """The temporary folder's path as programs see it in a root of their own."""
        return "/sandbox" if any(path.startswith("/tmp/") for path in self.paths) else "/tmp"

    def stranger(self, level: Level) -> int:
        """Return an identity of which nothing else runs, for one run; 0 where there is none to be had."""
        possible = self.root and (level is Level.NAMESPACES or (level in SHARED and self.others_can_run))
        return _UNUSED_IDENTITIES + secrets.randbelow(100_000_000) if possible else 0

    def tasks(self, level: Level, limits: Limits) -> int:
        """Return the limit to set, which Linux compares with all processes and threads of the same user."""
        if self.root:
            return limits.processes
        apart = level in (Level.NAMESPACES, Level.BUBBLEWRAP) and self.counts_per_namespace
        return limits.processes + (_OWN_TASKS if apart else _OWN_TASKS + _tasks_of(os.getuid()))

    def bubblewrap(self, limits: Limits) -> list[str]:
        """Return the command that runs the rest of the line in bubblewrap."""
        command = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", "--new-session"]
        command += ["--uid", "1000", "--gid", "1000", "--hostname", "sandbox"]
        for path in self.paths:
            command += ["--ro-bind", path, path]
        for path, target in self.links:
            command += ["--symlink", target, path]
        for path in ("/dev/null", "/dev/zero", "/dev/urandom"):
            command += ["--dev-bind", path, path]
        command += ["--size", str(limits.disk_mib * _MIB), "--tmpfs", self.home]
        return [*command, "--remount-ro", "/", "--chdir", self.home, "--"]


@functools.cache
def this_host() -> Host:
    """Return what this machine is."""
    # An environment's own interpreter is a link to the one it was made from.
    python = os.path.realpath(str(getattr(sys, "_base_executable", "") or sys.executable))
    paths, links = _python_paths(python)
    return Host(
        python,
        paths,
        links,
        root=os.getuid() == 0,
        others_can_run=all(_open_to_others(Path(path)) for path in (python, sysconfig.get_path("stdlib"))),
        landlock=_landlock(),
        counts_per_namespace=_release() >= (5, 14),
    )


def _python_paths(python: str) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return the folders and files that Python needs to start and to import its library, and the links to them."""
    system = [path for path in _SYSTEM if os.path.lexists(path)]
    links = tuple((path, os.readlink(path)) for path in system if os.path.islink(path))
    own = [python, sysconfig.get_path("stdlib")]
    own += [f"{prefix}/{name}" for prefix in (sys.base_prefix, sys.base_exec_prefix) for name in ("lib", "lib64")]
    own += [store for store in _STORES if python.startswith(store)]
    real = {os.path.realpath(path) for path in (*system, *own) if os.path.exists(path)}
    return _outermost(real), links


def _outermost(paths: Iterable[str]) -> tuple[str, ...]:
    kept: list[str] = []
    for path in sorted(paths):
        if not any(path.startswith(other + "/") for other in kept):
            kept.append(path)
    return tuple(kept)


def _open_to_others(path: Path) -> bool:
    if path.stat().st_mode & 0o005 != 0o005:
        return False
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


def _landlock() -> int:
    """Return the version of Landlock's interface; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(ctypes.CDLL(None).syscall(444, None, 0, 1)))


def _release() -> tuple[int, int]:
    major, minor, *_ = (*os.uname().release.split("."), "0")
    return int(major), int("".join(c for c in minor if c.isdecimal()) or 0)


def _tasks_of(user: int) -> int:
    """Return how many processes and threads of a user run; 0 where the system does not show it."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid == user:
                count += len(os.listdir(process / "task"))
        except OSError:  # it has ended
            continue
    return count
