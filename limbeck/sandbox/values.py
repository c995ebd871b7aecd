"""What a run in the sandbox may use, what it gave, and how far it was kept apart."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Literal

from limbeck.errors import InputError

Status = Literal["ok", "error", "timeout", "memory", "output", "disk", "killed"]


class Level(StrEnum):
    """How a run is kept apart, strongest first; only LIMITS and NONE are weak."""

    NAMESPACES = "namespaces"
    BUBBLEWRAP = "bubblewrap"
    LANDLOCK = "landlock"
    LIMITS = "limits only"
    NONE = "none"


SHARED = (Level.LANDLOCK, Level.LIMITS)  # levels at which the machine's processes and folders are in sight


@dataclass(frozen=True)
class Limits:
    """What one run may use.

    `seconds` is wall time, start of the sandbox included. `cpu_seconds`, `memory_mib` (address space) and
    `file_mib` hold for each process or file; `processes` counts processes and threads together. `disk_mib` is all
    the temporary folder may hold, `output_kib` each of stdout and stderr. The defaults pass every reference
    solution of HumanEval and MBPP with room to spare.

    >>> Limits(seconds=0)
    Traceback (most recent call last):
    limbeck.errors.InputError: the sandbox limit seconds is 0
      valid: a number above 0
    """

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory_mib: int = 512
    processes: int = 32
    file_mib: int = 16
    disk_mib: int = 64
    output_kib: int = 256

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise InputError(
                    f"the sandbox limit {field.name} is {getattr(self, field.name)}", valid="a number above 0"
                )


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Ran:
    """What one program did.

    `exit_code` is negative for a signal, as in `subprocess`, and None where the program did not end by itself.
    `stdout` and `stderr` are cut at `Limits.output_kib`; `cpu_seconds` counts the program and the children it
    waited for.
    """

    status: Status
    exit_code: int | None
    stdout: str
    stderr: str
    cpu_seconds: float
    wall_seconds: float
    level: Level


@dataclass(frozen=True)
class Isolation:
    """The level this machine reaches, whether system calls are filtered, and why no stronger level is reached."""

    level: Level
    filtered: bool
    why: tuple[str, ...] = ()

    @property
    def strong(self) -> bool:
        """Whether code sees neither the network nor anyone's files."""
        return self.level not in (Level.LIMITS, Level.NONE)

    def __str__(self) -> str:
        """Return one line for people.

        >>> str(Isolation(Level.LIMITS, filtered=False))
        'limits only: code can use the network and read your files; it is not run unless you allow that'
        """
        if self.level is Level.NONE:
            return "none: this system cannot run model-written code"
        if self.strong:
            unfiltered = "" if self.filtered else "; system calls are not filtered on this processor"
            return f"{self.level}: no network, no file of yours can be opened, nothing outlives a run{unfiltered}"
        network = "" if self.filtered else "use the network and "
        return f"{self.level}: code can {network}read your files; it is not run unless you allow that"
