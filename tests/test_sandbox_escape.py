"""Programs that try to get out of the sandbox, each run for real at every strong level this machine reaches."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from limbeck.sandbox import DEFAULT_LIMITS, Level, Limits, Program, Ran
from limbeck.sandbox.host import this_host
from limbeck.sandbox.levels import find_obstacle
from limbeck.sandbox.process import execute
from limbeck.sandbox.seccomp import build_filter

LEVELS = [
    level
    for level in (Level.NAMESPACES, Level.BUBBLEWRAP, Level.LANDLOCK)
    if os.name == "posix" and not find_obstacle(level)
]
each_level = pytest.mark.parametrize("level", LEVELS)
filtered = pytest.mark.skipif(not build_filter(shared=False), reason="no filter of system calls for this processor")
# Put before a program: `attempt` says what a try came to, and never ends the program.
ATTEMPT = """
import os, sys
def attempt(what, *args, **kwargs):
    try:
        print("done", what(*args, **kwargs))
    except BaseException as error:
        print("stopped", type(error).__name__)
"""


def run(code: str, level: Level, limits: Limits = DEFAULT_LIMITS, stdin: str = "") -> Ran:
    return execute([Program(ATTEMPT + code, stdin)], limits, level, this_host())[0]


def tries(code: str, level: Level) -> list[str]:
    """What each attempt of a program that ends well came to: "stopped ..." or "done ..."."""
    ran = run(code, level)
    assert (ran.status, ran.stderr) == ("ok", "")
    return ran.stdout.splitlines()


def all_stopped(code: str, level: Level) -> bool:
    lines = tries(code, level)
    return bool(lines) and all(line.startswith("stopped") for line in lines)


def processes_with(mark: str) -> list[str]:
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [path.parent.name] if mark.encode() in path.read_bytes() else []
        except OSError:  # it has ended
            continue
    return found


def gone(mark: str, within: float = 5.0) -> bool:
    """Whether no process of the machine has the mark on its command line, at the latest after some seconds."""
    end = time.monotonic() + within
    while processes_with(mark):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@each_level
def test_no_server_is_reached(level: Level):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        assert all_stopped(f"import socket\nattempt(socket.create_connection, ('127.0.0.1', {port}), 1)", level)
        with pytest.raises(BlockingIOError):
            server.accept()


@filtered
@each_level
def test_no_socket_of_any_family_can_be_made(level: Level):
    code = "import _socket\nfor family in (1, 2, 10, 16, 17, 38, 40): attempt(_socket.socket, family, 1)"
    assert tries(code, level) == ["stopped PermissionError"] * 7


@each_level
def test_files_of_the_machine_cannot_be_opened(level: Level, tmp_path: Path):
    secret = tmp_path / "secret.txt"
    secret.write_text("the password")
    for path in (tmp_path.parent.parent, tmp_path.parent, tmp_path):
        path.chmod(0o755)
    with tempfile.NamedTemporaryFile(dir=Path.home()) as planted:
        paths = [
            str(secret),
            planted.name,
            __file__,
            "/etc/passwd",
            "/proc/self/environ",
            "/proc/1/environ",
            "/sys/kernel",
        ]
        assert all_stopped(f"for path in {paths!r}: attempt(open, path)", level)
        assert all_stopped(f"attempt(open, '/proc/{os.getpid()}/environ'); attempt(os.listdir, '/proc')", level)


@each_level
def test_the_home_folder_shows_nothing_but_python(level: Level):
    home = Path.home()
    code = f"import os\nprint(os.listdir({str(home)!r}) if os.path.isdir({str(home)!r}) else [])"
    ran = run(code, level)
    if ran.status == "error":
        assert "PermissionError" in ran.stderr
    else:
        seen = [home / name for name in eval(ran.stdout)]
        assert all(any(Path(p).is_relative_to(entry) for p in this_host().paths) for entry in seen)


@each_level
def test_the_environment_is_empty(level: Level, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    (line,) = run("print(sorted(os.environ))", level).stdout.splitlines()
    assert set(eval(line)) <= {"HOME", "TMPDIR", "PYTHONHASHSEED", "MALLOC_ARENA_MAX", "LC_CTYPE"}


@each_level
def test_open_files_of_the_parent_are_not_inherited(level: Level):
    with open(__file__) as file:
        os.set_inheritable(file.fileno(), True)
        code = "def is_open(n):\n  try: os.fstat(n); return True\n  except OSError: return False\n"
        assert run(code + "print([n for n in range(64) if is_open(n)])", level).stdout.split("\n")[0] == "[0, 1, 2]"


@each_level
def test_nothing_is_written_outside(level: Level, tmp_path: Path):
    tmp_path.chmod(0o777)
    (tmp_path / "old").write_text("old")
    (tmp_path / "old").chmod(0o666)
    code = f"""
for path in ({str(tmp_path / "new")!r}, {str(tmp_path / "old")!r}, "/new", "/etc/new", "/dev/new", os.__file__):
    attempt(open, path, "w")
attempt(os.mkdir, {str(tmp_path / "folder")!r})
attempt(os.remove, {str(tmp_path / "old")!r})
attempt(os.rename, {str(tmp_path / "old")!r}, "here")
attempt(os.chmod, {str(tmp_path / "old")!r}, 0)
attempt(os.chmod, os.__file__, 0o777)
attempt(os.truncate, {str(tmp_path / "old")!r}, 0)
"""
    assert all_stopped(code, level)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "old"


@each_level
def test_links_lead_nowhere(level: Level, tmp_path: Path):
    tmp_path.chmod(0o777)
    secret = tmp_path / "secret"
    secret.write_text("the password")
    code = f"""
os.symlink({str(secret)!r}, "soft")
os.symlink({str(tmp_path)!r}, "folder")
attempt(open, "soft")
attempt(open, "soft", "w")
attempt(open, "folder/new", "w")
attempt(os.link, {str(secret)!r}, "hard")
attempt(os.chroot, "folder")
"""
    assert all_stopped(code, level)
    assert secret.read_text() == "the password"


@each_level
def test_its_own_folder_is_a_program_s_to_use(level: Level):
    code = """
open("a.txt", "w").write("hi"); os.mkdir("d"); os.rename("a.txt", "d/b.txt"); print(open("d/b.txt").read())
import tempfile; tempfile.TemporaryFile().write(b"x"); os.remove("d/b.txt"); os.rmdir("d"); print(os.listdir("."))
"""
    assert tries(code, level) == ["hi", "[]"]


@each_level
def test_a_fork_bomb_is_small_and_leaves_nothing(level: Level):
    mark = "limbeck-bomb-" + os.urandom(6).hex()
    code = f"""
import time
def bomb():
    made = 0
    while True:
        try:
            if os.fork() == 0:
                os.execv(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(60)", {mark!r}])
            made += 1
        except OSError:
            return made
print(bomb())
"""
    # A plain user's other processes, those just ended too, count where they are in sight.
    most = DEFAULT_LIMITS.processes + (4 if this_host().root or level is not Level.LANDLOCK else 100)
    assert 0 <= int(tries(code, level)[0]) <= most
    assert gone(mark)


@each_level
def test_a_daemon_does_not_outlive_its_run(level: Level):
    mark = "limbeck-daemon-" + os.urandom(6).hex()
    code = f"""
def leave():
    if os.fork() == 0:
        try: os.setsid()
        except OSError: pass
        if os.fork() == 0:
            for n in (0, 1, 2): os.close(n)
            os.execv({this_host().python!r}, ["python", "-S", "-c", "import time; time.sleep(60)", {mark!r}])
        os._exit(0)
    os.wait()
attempt(leave)
import time; time.sleep(0.3)
"""
    ran = run(code, level)
    assert ran.status == "ok"
    assert gone(mark)


@pytest.mark.skipif(not LEVELS, reason="no strong level on this machine")
def test_programs_end_with_the_process_that_ran_them(tmp_path: Path):
    for path in (tmp_path.parent.parent, tmp_path.parent, tmp_path):
        path.chmod(0o755)
    mark = "limbeck-orphan-" + os.urandom(6).hex()
    program = (
        f"import os, sys; os.execv(sys.executable, ['python', '-S', '-c', 'import time; time.sleep(60)', {mark!r}])"
    )
    code = f"from limbeck.sandbox import run_code, Limits; run_code({program!r}, limits=Limits(seconds=60))"
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}) as parent:
        end = time.monotonic() + 30
        while len(processes_with(mark)) < 2 and time.monotonic() < end:  # the parent itself, and the program
            time.sleep(0.05)
        seen = len(processes_with(mark))
        parent.kill()
    assert seen == 2
    assert gone(mark)


@each_level
@pytest.mark.parametrize("call", ["os.kill(os.getppid(), 9)", "os.killpg(0, 9)", "os.kill(-1, 9)", "os.kill(1, 9)"])
def test_a_program_cannot_kill_what_runs_it(level: Level, call: str):
    ran = run(f"attempt(lambda: {call})\nprint('alive', flush=True)", level)
    assert ran.status in ("ok", "killed")
    if call == "os.kill(os.getppid(), 9)" and level is Level.NAMESPACES:
        assert ran.stdout.endswith("alive\n")  # its parent there is process 1, which cannot be killed from inside


@each_level
def test_a_program_cannot_signal_the_machine_s_processes(level: Level):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as victim:
        lines = tries(f"attempt(os.kill, {victim.pid}, 9)\nattempt(os.kill, {os.getpid()}, 0)", level)
        assert all(line.startswith("stopped") for line in lines)
        assert victim.poll() is None
        victim.kill()


@each_level
def test_memory_has_an_end(level: Level):
    ran = run("x = bytearray(10 ** 10)", level)
    assert ran.status == "memory"
    ran = run("x = []\nwhile True: x.append(bytearray(10 ** 6))", level, Limits(memory_mib=128))
    assert ran.status == "memory"


@filtered
@each_level
def test_memory_cannot_be_hidden_in_the_kernel(level: Level):
    assert all_stopped("attempt(os.memfd_create, 'x')", level)
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.shmget(0, 1 << 20, 0o1600), libc.msgget(0, 0o1600), libc.semget(0, 1, 0o1600), ctypes.get_errno())
"""
    assert tries(code, level) == ["-1 -1 -1 1"]


@filtered
@each_level
def test_calls_that_reach_into_others_or_the_kernel_are_denied(level: Level):
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.ptrace(16, os.getppid(), 0, 0), ctypes.get_errno())
print(libc.unshare(0x10000000), ctypes.get_errno())
print(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None), ctypes.get_errno())
print(libc.prlimit(os.getppid(), 7, bytes(16), None), ctypes.get_errno())
print(libc.syscall(425, 8, bytes(256)), ctypes.get_errno())
"""
    assert tries(code, level) == ["-1 1"] * 5


@each_level
def test_rights_once_dropped_do_not_come_back(level: Level):
    code = """
import ctypes, resource
attempt(os.setuid, os.getuid() + 1)
attempt(resource.setrlimit, resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
attempt(resource.setrlimit, resource.RLIMIT_NPROC, (10 ** 6,) * 2)
attempt(os.mknod, "sda", 0o60600, os.makedev(8, 0))
"""
    assert all_stopped(code, level)


@each_level
def test_output_has_an_end(level: Level):
    ran = run("while True: print('x' * 1000)", level, Limits(output_kib=16))
    assert (ran.status, ran.exit_code, len(ran.stdout)) == ("output", None, 16 * 1024)
    assert ran.wall_seconds < 5
    ran = run("while True: sys.stderr.write('y' * 1000)", level, Limits(output_kib=16))
    assert (ran.status, len(ran.stderr)) == ("output", 16 * 1024)


@each_level
def test_a_file_has_an_end(level: Level):
    code = """
def fill(name):
    with open(name, "wb", buffering=0) as file:
        while True: file.write(b"x" * (1 << 16))
attempt(fill, "big")
print(os.path.getsize("big"))
"""
    ran = run(code, level, Limits(file_mib=2))
    assert ran.stdout.splitlines() == ["stopped OSError", str(2 << 20)]


@each_level
def test_the_folder_has_an_end(level: Level):
    code = """
import time
for n in range(64):
    try: open(str(n), "wb").write(b"x" * (1 << 20))
    except OSError: break
print(n, flush=True)
time.sleep(1)
"""
    ran = run(code, level, Limits(disk_mib=8))
    if level is Level.LANDLOCK:  # a folder on the machine's disk, which is watched
        assert ran.status == "disk"
    else:  # a disk in memory, of that size
        assert ran.status == "ok"
        assert int(ran.stdout) <= 8


@each_level
def test_signals_that_are_ignored_end_nothing_less(level: Level):
    code = "import signal\nfor n in range(1, 64):\n  attempt(signal.signal, n, signal.SIG_IGN)\n"
    ran = run(code + "sys.stdout.flush()\nwhile True: pass", level, Limits(cpu_seconds=1, seconds=20))
    assert ran.status == "timeout"
    assert ran.exit_code == -9
    assert ran.cpu_seconds < 4
    ran = run(code + "import time\nwhile True: time.sleep(9)", level, Limits(seconds=0.5))
    assert ran.status == "timeout"
    assert ran.wall_seconds < 5


@each_level
def test_recursion_without_end_is_survived(level: Level):
    ran = run("sys.setrecursionlimit(10 ** 9)\ndef f(): repr(f())\nf()", level, Limits(seconds=1, memory_mib=128))
    assert ran.status in ("killed", "memory", "error", "timeout")
    ran = run("f = lambda: f()\nf()", level)
    assert ran.status == "error"
    assert "RecursionError" in ran.stderr


@each_level
def test_closed_outputs_hide_nothing(level: Level):
    ran = run("for n in range(3): os.close(n)\nwhile True: pass", level, Limits(seconds=0.5))
    assert ran.status == "timeout"
    ran = run("for n in range(3): os.close(n)\nos._exit(3)", level)
    assert (ran.status, ran.exit_code) == ("error", 3)


@each_level
def test_how_a_program_ended_cannot_be_forged(level: Level):
    code = "for n in range(3, 64): attempt(os.write, n, b'done 0 0 0.0\\n')\nsys.stdout.flush()\nos._exit(7)"
    ran = run(code, level)
    assert (ran.status, ran.exit_code) == ("error", 7)
    assert set(ran.stdout.splitlines()) == {"stopped OSError"}


@each_level
def test_no_folder_is_left(level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for path in (tmp_path.parent.parent, tmp_path.parent, tmp_path):
        path.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = """
for n in range(300):
    os.mkdir("d" * 100); os.chdir("d" * 100)
os.mkdir("closed", 0); open("file", "w").close(); os.symlink("/", "link")
"""
    assert run(code, level).status in ("ok", "disk")  # too deep to be measured counts as too large
    assert list(tmp_path.iterdir()) == []
