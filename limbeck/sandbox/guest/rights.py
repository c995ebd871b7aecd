"""What a program may do and use: limits, identity, capabilities, files (Landlock), system calls (seccomp).

Linux: setrlimit(2), capset(2), landlock(7), seccomp(2).
"""

from __future__ import annotations

import ctypes
import os
import resource

from limbeck.sandbox.guest.kernel import DEVICES, GUEST, LIBC, LINUX, checked

TYPE_CHECKING = False  # `typing` takes longer to load than a sandbox takes to start
if TYPE_CHECKING:
    from limbeck.sandbox.guest.kernel import Job

_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2  # prctl
_CAPABILITIES = 0x20080522  # version 3 of the interface
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # Landlock's system calls, the same on every machine
_READ, _READ_TREE, _ALL_FILE_RIGHTS = 0x5, 0xD, 0x7FFF  # execute and read a file; and list folders; all of version 3


def _become(identity: int) -> None:
    if not identity:  # there is no one else to be
        return
    if os.getuid() == 0:
        os.setgroups([])
    os.setgid(identity)
    os.setuid(identity)


def set_limits(job: Job) -> None:
    """Set the limits of this process and all it will start."""
    wanted = {
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_NOFILE: (64, 64),
        resource.RLIMIT_FSIZE: (job["file"], job["file"]),
        resource.RLIMIT_CPU: (job["cpu"], job["cpu"] + 1),  # a signal first, and a second later the end
        resource.RLIMIT_AS: (job["memory"], job["memory"]),
        resource.RLIMIT_NPROC: (job["tasks"], job["tasks"]),
    }
    for what, (soft, hard) in wanted.items():
        allowed = resource.getrlimit(what)[1]
        if allowed != resource.RLIM_INFINITY:
            soft, hard = min(soft, allowed), min(hard, allowed)
        try:
            resource.setrlimit(what, (soft, hard))
        except (ValueError, OSError):
            if LINUX:  # macOS takes no limit on the address space
                raise


def drop_rights(job: Job) -> None:
    """Give up every right for good: privileges, files, identity, capabilities, system calls, in the order it takes."""
    if not LINUX:
        _become(job["stranger"])
        return
    checked(LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")
    if job["landlock"]:
        _restrict_files(job)
    if job["level"] == "namespaces":
        _become(GUEST)
    else:
        _become(job["stranger"])
    header, nothing = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    checked(LIBC.capset(header, nothing), "capset")
    if job["filter"]:
        code = ctypes.create_string_buffer(job["filter"], len(job["filter"]))
        program = (ctypes.c_uint64 * 2)(len(job["filter"]) // 8, ctypes.addressof(code))  # struct sock_fprog
        checked(LIBC.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0), "seccomp")


def _restrict_files(job: Job) -> None:
    version = job["landlock"]
    devices, network = 1 << 15 if version >= 5 else 0, 3 if version >= 4 else 0
    rules = (ctypes.c_uint64 * 3)(_ALL_FILE_RIGHTS | devices, network, 3)
    size = 24 if version >= 6 else 16 if version >= 4 else 8  # the kernel refuses fields that it does not know
    ruleset = checked(LIBC.syscall(_CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(size), 0), "landlock")
    for path in job["paths"]:
        _allow(ruleset, path, _READ_TREE if os.path.isdir(path) else _READ)
    for path in DEVICES:
        _allow(ruleset, path, 0x6)  # read and write
    _allow(ruleset, job["home"], _ALL_FILE_RIGHTS)
    checked(LIBC.syscall(_RESTRICT_SELF, ruleset, 0), "landlock")
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    fd = os.open(path, getattr(os, "O_PATH", 0) | os.O_CLOEXEC)
    rule = ctypes.create_string_buffer(rights.to_bytes(8, "little") + fd.to_bytes(4, "little"))
    checked(LIBC.syscall(_ADD_RULE, ruleset, 1, rule, 0), f"landlock {path}")
    os.close(fd)
