"""The folder of one run: made, measured, and removed whatever a program left in it."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

_ENTRIES = 2_000  # more than this are not counted one by one; to remove them takes seconds
_TRIES = 50  # processes that were just killed may take a moment to let go


@contextlib.contextmanager
def run_folder() -> Generator[Path]:
    """Make a folder for one run and remove it afterwards.

    >>> with run_folder() as folder:
    ...     list(folder.iterdir())
    []
    """
    path = Path(tempfile.mkdtemp(prefix="limbeck-"))
    try:
        yield path
    finally:
        remove_folder(path)


def folder_bytes(path: Path) -> float:
    """Return the bytes that a folder takes on the disk; infinity where it hides some or has too many entries."""
    total, seen, folders = 0, 0, [str(path)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            continue
        except OSError:  # closed to us, or deeper than a path can be long
            return math.inf
        if seen > _ENTRIES:
            return math.inf
    return total


def remove_folder(path: Path) -> None:
    """Remove a folder however deep and closed its contents are; what resists is left to the system's cleaner."""
    for _ in range(_TRIES):
        try:
            _empty(path)
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)
        else:
            return


def _empty(path: Path) -> None:
    """Empty the folder by lifting all that is in it to the top: no recursion, no path too long, no link followed."""
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        while entries := _entries(top):
            for name, is_folder in entries:
                if is_folder:
                    _lift(top, name)
                    os.rmdir(name, dir_fd=top)
                else:
                    os.unlink(name, dir_fd=top)
    finally:
        os.close(top)


def _entries(folder: int) -> list[tuple[str, bool]]:
    with os.scandir(folder) as entries:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]


def _lift(top: int, name: str) -> None:
    os.chmod(name, 0o700, dir_fd=top)
    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
    try:
        for child, is_folder in _entries(folder):
            if is_folder:
                os.chmod(child, 0o700, dir_fd=folder)  # a folder that moves must be writable itself
            os.rename(child, secrets.token_hex(12), src_dir_fd=folder, dst_dir_fd=top)
    finally:
        os.close(folder)
