"""The filter of system calls: no network of any family, no way around the limits, no reach to other processes.

Namespaces do not cover everything: virtual machines' sockets (AF_VSOCK) pass a network namespace, and memory files
and System V segments pass the limit on a process's memory. The filter is a classic BPF program for Linux's
seccomp(2); a number outside its list is let through, as each level keeps files and processes apart by other means.
Numbers: Linux's asm/unistd_64.h (x86-64) and asm-generic/unistd.h (arm64).
"""

from __future__ import annotations

import errno
import platform
import struct
import sys

# name -> number on x86-64, number on arm64; None where the machine has no such call.
_Calls = dict[str, tuple[int | None, int | None]]
_NETWORK: _Calls = {"socket": (41, 198), "io_uring_setup": (425, 425)}
_MEMORY: _Calls = {  # kept by the kernel, outside any process's address space
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
_OTHERS: _Calls = {  # looking into other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
}
_KERNEL: _Calls = {  # parts of the kernel that code under test has no use for
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "fanotify_init": (300, 262),
    "personality": (135, 92),
    "syslog": (103, 116),
}
_SIGNALS: _Calls = {  # where all processes of the machine are in sight
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    # A process that stays in its group and session is killed with them.
    "setsid": (112, 157),
    "setpgid": (109, 154),
}
_ATTRIBUTES: _Calls = {  # of files, which Landlock leaves alone
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
}
_CLONE, _CLONE3, _PRLIMIT = (56, 220), (435, 435), (302, 261)
_FORK: _Calls = {"fork": (57, None), "vfork": (58, None)}
_NEW_NAMESPACES, _THREAD = 0x7E020000, 0x00010000  # CLONE_NEW*, CLONE_THREAD

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, AUDIT_ARCH_*
_X32 = 0x40000000  # the bit of x86-64's second table of calls
_LOAD, _EQUAL, _ABOVE, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _DENY, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def build_filter(*, shared: bool, forks: bool = True, machine: str | None = None) -> bytes:
    """Return the BPF program for this machine; b"" where there is none.

    `shared` says that the machine's other processes are in sight: signals, priorities and file attributes are then
    denied as well. Without `forks` no new process can be made; threads still can.
    """
    name = machine if machine is not None else (platform.machine() if _linux_64() else "")
    if name not in _MACHINES:
        return b""
    column, arch = _MACHINES[name]
    denied = _NETWORK | _MEMORY | _OTHERS | _KERNEL
    if shared:
        denied |= _SIGNALS | _ATTRIBUTES
    if not forks:
        denied |= _FORK
    deny, unknown = _DENY | errno.EPERM, _DENY | errno.ENOSYS
    program = [_op(_LOAD, _ARCH), _op(_EQUAL, arch, 1, 0), _op(_RETURN, _KILL), _op(_LOAD, _NUMBER)]
    program += [_op(_ABOVE, _X32, 0, 1), _op(_RETURN, unknown)]
    for number in sorted(n for n in (numbers[column] for numbers in denied.values()) if n is not None):
        program += [_op(_EQUAL, number, 0, 1), _op(_RETURN, deny)]
    # clone3 passes its flags in memory, out of a filter's sight; libc goes back to clone where it is unknown.
    program += [_op(_EQUAL, _CLONE3[column], 0, 1), _op(_RETURN, unknown)]
    bad_clone = [_op(_ANY_BIT, _NEW_NAMESPACES, 0, 1), _op(_RETURN, deny)]
    if not forks:
        bad_clone += [_op(_ANY_BIT, _THREAD, 1, 0), _op(_RETURN, deny)]
    program += _on_first_argument(_CLONE[column], bad_clone)
    # A process may lower its own limits, not those of others.
    program += _on_first_argument(_PRLIMIT[column], [_op(_EQUAL, 0, 1, 0), _op(_RETURN, deny)])
    return b"".join([*program, _op(_RETURN, _ALLOW)])


def _linux_64() -> bool:
    return sys.platform == "linux" and sys.maxsize > 1 << 32


def _on_first_argument(number: int, checks: list[bytes]) -> list[bytes]:
    body = [_op(_LOAD, _FIRST_ARGUMENT), *checks, _op(_RETURN, _ALLOW)]
    return [_op(_EQUAL, number, 0, len(body)), *body]


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
