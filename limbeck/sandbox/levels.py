"""Which level of isolation this machine reaches: tried, not assumed.

A level counts as reached if a program run at it can neither get a route to the network nor open a file that was laid
out for it. Namespaces come first as they need nothing installed; bubblewrap may be allowed to make them where others
are not; Landlock with the filter of system calls works in containers that allow neither.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile

from limbeck.errors import InputError, LimbeckError
from limbeck.sandbox.host import Host, this_host
from limbeck.sandbox.launch import Program
from limbeck.sandbox.process import execute
from limbeck.sandbox.seccomp import build_filter
from limbeck.sandbox.values import SHARED, Isolation, Level, Limits

_STRONG = (Level.NAMESPACES, Level.BUBBLEWRAP, Level.LANDLOCK)
_PROBE_LIMITS = Limits(seconds=30)  # a busy machine is no weaker for it
_TRUNCATE = 3  # the first version of Landlock's interface that keeps files from being cut to nothing
# To connect a datagram socket looks for a route and sends nothing; 192.0.2.0/24 is kept for documents (RFC 5737).
_PROBE = """
import _socket
leaks = []
try:
    _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM).connect(("192.0.2.1", 9))
    leaks.append("the network")
except OSError:
    pass
try:
    open({canary!r}).close()
    leaks.append("a file of yours")
except OSError:
    pass
print(" and ".join(leaks))
"""


@functools.cache
def isolation() -> Isolation:
    """Return the strongest level that this machine reaches and why it is no stronger (a tenth of a second, once)."""
    if os.name != "posix":
        return Isolation(Level.NONE, filtered=False, why=("it needs Linux or macOS",))
    why = list[str]()
    for level in (*_STRONG, Level.LIMITS):
        obstacle = find_obstacle(level)
        if not obstacle:
            return Isolation(level, filtered=bool(build_filter(shared=level in SHARED)), why=tuple(why))
        why.append(f"{level}: {obstacle}")
    return Isolation(Level.NONE, filtered=False, why=tuple(why))


def require(*, allow_weak: bool = False) -> Isolation:
    """Return the level that runs will have; raises InputError if it is weak and that is not allowed."""
    reached = isolation()
    permit(reached, allow_weak=allow_weak)
    return reached


def permit(reached: Isolation, *, allow_weak: bool) -> None:
    """Raise InputError if a level is too weak for code that no one has read.

    >>> permit(Isolation(Level.LIMITS, filtered=True), allow_weak=True)
    """
    if reached.strong or (allow_weak and reached.level is Level.LIMITS):
        return
    reasons = f" ({'; '.join(reached.why)})" if reached.why else ""
    way_out = "; or --allow-code (allow_weak=True), on a machine that holds nothing of value"
    way_out = "" if reached.level is Level.NONE else way_out
    raise InputError(
        f"the sandbox reaches {reached}{reasons}",
        valid=f"Linux with user namespaces, bubblewrap or Landlock{way_out}",
        hint="limbeck doctor",
    )


def find_obstacle(level: Level) -> str:
    """Return why this machine does not reach a level; "" if it does."""
    host = this_host()
    return _lack(level, host) or _trial(level, host)


def _lack(level: Level, host: Host) -> str:
    """Return what a level needs and this machine has not; "" if nothing."""
    if level is Level.BUBBLEWRAP and shutil.which("bwrap") is None:
        return "not installed"
    if level is Level.BUBBLEWRAP and host.root:
        return "Linux would hold root's programs to no number of processes"
    if level is Level.LANDLOCK and host.landlock < _TRUNCATE:
        return "needs Linux 6.2 with Landlock"
    if level is Level.LANDLOCK and not build_filter(shared=True):
        return "needs the filter of system calls, which is for x86-64 and arm64"
    return ""


def _trial(level: Level, host: Host) -> str:
    """Return what a program at this level can reach or why none runs; "" if all is shut."""
    with tempfile.NamedTemporaryFile(prefix="limbeck-") as canary:
        os.chmod(canary.name, 0o644)
        try:
            ran = execute([Program(_PROBE.format(canary=canary.name))], _PROBE_LIMITS, level, host)[0]
        except LimbeckError as error:
            return error.message
    if ran.status != "ok":
        return f"the trial ended with {ran.status}: {ran.stderr.strip()[-200:]}"
    leaks = ran.stdout.strip()
    return f"leaves {leaks} open" if leaks and level in _STRONG else ""
