"""Namespaces of its own for a run: users, mounts, processes, network, IPC, host name, control groups.

Three processes work together: the first stays outside and writes the identity map, the second enters the new
namespaces and builds a root that holds Python alone, the third is process 1 of the new process namespace: when it
ends, Linux ends all that is left in there.

Linux: user_namespaces(7), pid_namespaces(7), mount_namespaces(7), pivot_root(2).
"""

from __future__ import annotations

import ctypes
import os

from limbeck.sandbox.guest.kernel import DEVICES, GUEST, LIBC, checked

TYPE_CHECKING = False  # `typing` takes longer to load than a sandbox takes to start
if TYPE_CHECKING:
    from limbeck.sandbox.guest.kernel import Job

_NEW_NAMESPACES = 0x7E020000
_READ_ONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8
_REMOUNT, _BIND, _RECURSIVE, _PRIVATE, _DETACH = 32, 4096, 16384, 1 << 18, 2


def enter_namespaces(job: Job) -> None:
    """Return in process 1 of new namespaces; the processes outside wait for its end and end too."""
    entered, mapped = os.pipe(), os.pipe()
    inner = os.fork()
    if inner:
        os.close(entered[1])
        if os.read(entered[0], 1):
            _map_identities(inner, job["stranger"])
            os.write(mapped[1], b"1")
        os.close(mapped[1])
        _end_with(inner)
    os.close(mapped[1])
    checked(LIBC.unshare(_NEW_NAMESPACES), "unshare")
    os.write(entered[1], b"1")
    if not os.read(mapped[0], 1):
        os._exit(0)  # the outer process has said why
    _build_root(job)
    first = os.fork()
    if first:
        _end_with(first)


def _end_with(pid: int) -> None:
    os.waitpid(pid, 0)
    os._exit(0)


def _map_identities(pid: int, stranger: int) -> None:
    if not stranger:
        _write(f"/proc/{pid}/setgroups", "deny")
        _write(f"/proc/{pid}/uid_map", f"{GUEST} {os.getuid()} 1")
        _write(f"/proc/{pid}/gid_map", f"{GUEST} {os.getgid()} 1")
        return
    # Root maps its guests to a stranger: Linux holds root itself to no limit on processes.
    for kind in ("uid", "gid"):
        try:
            _write(f"/proc/{pid}/{kind}_map", f"0 0 1\n{GUEST} {stranger} 1")
        except OSError:  # root of a container that has fewer identities
            _write(f"/proc/{pid}/{kind}_map", f"0 0 1\n{GUEST} 65534 1")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, text.encode())
    os.close(fd)


def _build_root(job: Job) -> None:
    root = job["folder"]
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=1m,nr_inodes=4k,mode=755")
    for path in job["paths"]:
        _bind(path, root + path)
    for point in _mounts_below(root):
        kept = os.statvfs(point).f_flag & _NOEXEC
        _mount(None, point, None, _REMOUNT | _BIND | _READ_ONLY | _NOSUID | _NODEV | kept)
    for path, target in job["links"]:
        os.symlink(target, root + path)
    for path in DEVICES:
        _bind(path, root + path)
    os.mkdir(root + job["home"])
    _mount("tmpfs", root + job["home"], "tmpfs", _NOSUID | _NODEV, f"size={job['disk']},nr_inodes=4k,mode=1777")
    os.chdir(root)
    checked(LIBC.pivot_root(b".", b"."), "pivot_root")
    checked(LIBC.umount2(b".", _DETACH), "umount")
    os.chdir("/")
    _mount(None, "/", None, _REMOUNT | _BIND | _READ_ONLY | _NOSUID | _NODEV)
    LIBC.sethostname(b"sandbox", 7)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    texts = [text.encode() if text is not None else None for text in (source, target, kind)]
    done = LIBC.mount(*texts, ctypes.c_ulong(flags), options.encode() or None)
    checked(done, f"mount {target}")


def _bind(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(source, target, None, _BIND | _RECURSIVE)


def _mounts_below(root: str) -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = [line.split()[4] for line in file]
    unescaped = [_unescape(point) for point in points]
    return [point for point in unescaped if point.startswith(root + "/")]


def _unescape(text: str) -> str:
    for code in ("\\040", "\\011", "\\012", "\\134"):  # the backslash last: the others begin with one
        text = text.replace(code, chr(int(code[1:], 8)))
    return text
