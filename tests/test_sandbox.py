"""The sandbox: what a run gives back, its limits, what the weakest level still promises, and its parts."""

from __future__ import annotations

import math
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from limbeck.errors import InputError, LimbeckError
from limbeck.sandbox import (
    DEFAULT_LIMITS,
    Isolation,
    Level,
    Limits,
    Program,
    Ran,
    isolation,
    require,
    run_code,
    run_many,
    run_pair,
)
from limbeck.sandbox.folder import folder_bytes, remove_folder, run_folder
from limbeck.sandbox.guest.namespaces import _unescape
from limbeck.sandbox.host import _outermost, this_host
from limbeck.sandbox.levels import find_obstacle, permit
from limbeck.sandbox.process import execute
from limbeck.sandbox.seccomp import build_filter

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the sandbox needs Linux or macOS")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def run(code: str, **options: object) -> Ran:
    return run_code(code, allow_weak=True, **options)  # pyright: ignore[reportArgumentType]


def weak(code: str, limits: Limits = DEFAULT_LIMITS) -> Ran:
    """Run at the level that every system has."""
    return execute([Program(code)], limits, Level.LIMITS, this_host())[0]


# Runs


def test_a_run_gives_what_a_program_wrote_and_how_it_ended():
    ran = run("import sys\nprint(input())\nsys.stderr.write('warned')\nsys.exit(3)", stdin="hello")
    assert (ran.status, ran.exit_code, ran.stdout, ran.stderr) == ("error", 3, "hello\n", "warned")
    assert 0 < ran.cpu_seconds < 5
    assert 0 < ran.wall_seconds < 10
    assert ran.level is isolation().level


@pytest.mark.parametrize(
    ("code", "status", "exit_code"),
    [
        ("pass", "ok", 0),
        ("import sys; sys.exit()", "ok", 0),
        ("1 / 0", "error", 1),
        ("this is no Python", "error", 1),
        ("x = '\\0'", "ok", 0),
        ("x = '\0'", "error", 1),
        ("raise MemoryError", "memory", 1),
        ("import ctypes; ctypes.string_at(0)", "killed", -11),
        ("print('ä', '\ud800'.encode('utf-8', 'surrogatepass'))", "error", 1),
    ],
)
def test_the_status_says_how_a_program_ended(code: str, status: str, exit_code: int):
    ran = run(code)
    assert (ran.status, ran.exit_code) == (status, exit_code)


def test_an_error_shows_the_program_s_own_line():
    assert 'File "main.py", line 2' in run("x = 1\n1 / 0").stderr


def test_a_program_is_a_main_module_with_the_standard_library_and_nothing_else():
    code = """
import dataclasses, pickle
@dataclasses.dataclass
class P: x: int
print(__name__, pickle.loads(pickle.dumps(P(1))))
try: import pytest
except ImportError: print("no packages")
"""
    assert run(code).stdout == "__main__ P(x=1)\nno packages\n"


def test_the_same_code_runs_the_same_way():
    code = "print(set('abcdefgh'), hash('x'))"
    assert run(code).stdout == run(code).stdout


def test_wall_time_has_an_end():
    ran = run("print('begun', flush=True)\nimport time; time.sleep(60)", limits=Limits(seconds=1))
    assert (ran.status, ran.exit_code, ran.stdout) == ("timeout", None, "begun\n")
    assert 1 <= ran.wall_seconds < 5


def test_threads_are_a_program_s_to_use():
    code = "from concurrent.futures import ThreadPoolExecutor as T\nprint(sum(T(8).map(abs, range(-8, 0))))"
    assert run(code).stdout == "36\n"


def test_a_large_input_that_is_not_read_blocks_nothing():
    assert run("print('done')", stdin="x" * 10_000_000).stdout == "done\n"


def test_many_runs_keep_their_order():
    codes = [f"print({n})" for n in range(6)]
    assert [ran.stdout for ran in run_many(codes, threads=3, allow_weak=True)] == [f"{n}\n" for n in range(6)]


def test_a_run_costs_little_more_than_the_program():
    run("pass")
    start = os.times()
    for _ in range(5):
        run("pass")
    end = os.times()
    cpu = sum(end[:4]) - sum(start[:4])
    assert cpu / 5 < 0.2


PAIR = "import os\nr, w = os.fdopen(4, 'rb'), os.fdopen(5, 'wb', buffering=0)\n"


def test_two_programs_talk_and_the_first_decides():
    first = Program(PAIR + "w.write(b'2\\n'); print(r.readline(), os.getpid())")
    second = Program(PAIR + "n = int(r.readline()); print('unseen'); w.write(b'%d\\n' % (n * n))\nwhile True: pass")
    one, other = run_pair(first, second, allow_weak=True)
    assert one.status == "ok"
    assert one.stdout.startswith("b'4\\n'")
    assert (other.status, other.exit_code, other.stdout) == ("killed", -9, "")


def test_the_end_of_the_second_program_is_told_apart():
    first = Program(PAIR + "print(r.readline())")
    one, other = run_pair(first, Program("import os; os._exit(5)"), allow_weak=True)
    assert (one.stdout, other.exit_code) == ("b''\n", 5)


@pytest.mark.parametrize("field", ["seconds", "cpu_seconds", "memory_mib", "processes", "disk_mib", "output_kib"])
def test_a_limit_of_nothing_is_refused(field: str):
    with pytest.raises(InputError, match=rf"{field} is -1[\s\S]*above 0"):
        Limits(**{field: -1})


# Levels


def test_this_machine_s_level_is_its_first_without_an_obstacle():
    reached = isolation()
    assert find_obstacle(reached.level) == ""
    assert [line.split(":")[0] for line in reached.why] == [
        level.value for level in list(Level)[: list(Level).index(reached.level)]
    ]
    assert require(allow_weak=True) == reached


def test_the_weak_level_wants_consent():
    reached = Isolation(Level.LIMITS, filtered=False, why=("namespaces: unshare: Operation not permitted",))
    with pytest.raises(InputError, match=r"unshare: Operation not permitted[\s\S]*allow_weak=True"):
        permit(reached, allow_weak=False)
    permit(reached, allow_weak=True)
    permit(Isolation(Level.LANDLOCK, filtered=True), allow_weak=False)
    with pytest.raises(InputError, match="cannot run model-written code"):
        permit(Isolation(Level.NONE, filtered=False), allow_weak=True)


@pytest.mark.parametrize(
    ("reached", "shown"),
    [
        (
            Isolation(Level.NAMESPACES, True),
            "namespaces: no network, no file of yours can be opened, nothing outlives a run",
        ),
        (Isolation(Level.LIMITS, True), "limits only: code can read your files; it is not run unless you allow that"),
        (Isolation(Level.NONE, False), "none: this system cannot run model-written code"),
    ],
)
def test_a_level_says_in_a_line_what_it_promises(reached: Isolation, shown: str):
    assert str(reached) == shown


def test_a_level_that_does_not_start_says_why():
    if not find_obstacle(Level.BUBBLEWRAP):
        pytest.skip("bubblewrap works here")
    with pytest.raises(LimbeckError, match=r"the sandbox does not start: .+\n.*limbeck doctor"):
        execute([Program("pass")], DEFAULT_LIMITS, Level.BUBBLEWRAP, this_host())


# What limits alone can promise


def test_limits_alone_hold_time_memory_and_output():
    assert weak("while True: pass", Limits(seconds=0.5)).status == "timeout"
    assert weak("while True: print('x' * 1000)", Limits(output_kib=4)).status == "output"
    if sys.platform == "linux":
        assert weak("x = bytearray(10 ** 10)").status == "memory"


def test_limits_alone_empty_the_environment_and_give_a_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    ran = weak("import os\nprint('OPENAI_API_KEY' in os.environ, os.listdir('.'), os.getcwd())\nopen('x', 'w')")
    assert ran.stdout.startswith("False [] ")
    assert not Path(ran.stdout.split()[-1]).exists()


@pytest.mark.skipif(not build_filter(shared=True), reason="no filter of system calls for this processor")
def test_limits_and_the_filter_keep_the_network_shut_and_end_daemons():
    code = """
import os, socket, subprocess, sys
for what in (socket.socket, os.setsid, lambda: os.kill(os.getppid(), 9)):
    try: what()
    except PermissionError: print("denied")
"""
    assert weak(code).stdout == "denied\n" * 3
    mark = "limbeck-weak-" + os.urandom(6).hex()
    weak(f"import os, sys\nif os.fork() == 0: os.execv(sys.executable, ['p', '-S', '-c', 'while 1: pass', {mark!r}])")
    time.sleep(0.2)
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert mark not in shown


# The filter of system calls


def verdict(program: bytes, arch: int, number: int, argument: int = 0) -> int:
    """Run a BPF program as the kernel would, on one call."""
    steps = [struct.unpack("=HBBI", program[i : i + 8]) for i in range(0, len(program), 8)]
    data = {0: number, 4: arch, 16: argument}
    at = value = 0
    while True:
        code, if_true, if_false, operand = steps[at]
        at += 1
        if code == 0x20:
            value = data[operand]
        elif code == 0x06:
            return operand
        else:
            holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
            at += if_true if holds else if_false


ALLOW, KILL, DENY, UNKNOWN = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
X86, ARM = 0xC000003E, 0xC00000B7
# From Linux's tables: read, socket, ptrace, kill, chmod or fchmodat, clone, clone3, prlimit64, memfd_create
CALLS = {
    ("x86_64", X86): (0, 41, 101, 62, 90, 56, 435, 302, 319),
    ("aarch64", ARM): (63, 198, 117, 129, 53, 220, 435, 261, 279),
}


@pytest.mark.parametrize(("machine", "arch"), CALLS)
def test_the_filter_denies_what_it_should_on_each_processor(machine: str, arch: int):
    read, socket, ptrace, kill, chmod, clone, clone3, prlimit, memfd = CALLS[machine, arch]
    apart, shared = build_filter(shared=False, machine=machine), build_filter(shared=True, machine=machine)
    for program in (apart, shared):
        assert verdict(program, arch, read) == ALLOW
        assert {verdict(program, arch, n) for n in (socket, ptrace, memfd)} == {DENY}
        assert verdict(program, arch, clone3) == UNKNOWN
        assert verdict(program, arch, clone, 17) == ALLOW  # fork
        assert verdict(program, arch, clone, 0x10000000) == DENY  # a user namespace
        assert verdict(program, arch, prlimit, 0) == ALLOW
        assert verdict(program, arch, prlimit, 1234) == DENY
        assert verdict(program, 0x40000003, read) == KILL  # a 32-bit call
    assert {verdict(apart, arch, n) for n in (kill, chmod)} == {ALLOW}
    assert {verdict(shared, arch, n) for n in (kill, chmod)} == {DENY}
    alone = build_filter(shared=True, forks=False, machine=machine)
    assert verdict(alone, arch, clone, 17) == DENY
    assert verdict(alone, arch, clone, 0x10000 | 0x100) == ALLOW  # a thread


@given(number=st.integers(0, 0xFFFFFFFF), argument=st.integers(0, 0xFFFFFFFF), arch=st.sampled_from([X86, ARM, 3]))
def test_the_filter_has_an_answer_to_every_call(number: int, argument: int, arch: int):
    answer = verdict(build_filter(shared=True, machine="x86_64"), arch, number, argument)
    assert answer in (ALLOW, DENY, UNKNOWN, KILL)
    assert (answer == KILL) == (arch != X86)
    if arch == X86 and number >= 0x40000000:
        assert answer == UNKNOWN  # the second table of the processor


def test_a_processor_without_a_table_has_no_filter():
    assert build_filter(shared=True, machine="riscv64") == b""


# Folders and paths


def test_a_run_s_folder_goes_whatever_is_in_it(tmp_path: Path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    with run_folder() as folder:
        inside = os.open(folder, os.O_RDONLY)
        for _ in range(1010):  # deeper than a path can be written and than Python recurses
            os.mkdir("deep", dir_fd=inside)
            below = os.open("deep", os.O_RDONLY, dir_fd=inside)
            os.close(inside)
            inside = below
        os.mkdir("closed", mode=0, dir_fd=inside)
        os.symlink(kept, "link", dir_fd=inside)
        os.close(inside)
        assert folder_bytes(folder) == math.inf
    assert not folder.exists()
    assert (kept / "file").read_text() == "x"
    remove_folder(folder)  # a second time: there is nothing to do


def test_a_folder_s_size_counts_files_of_all_depths_and_no_holes(tmp_path: Path):
    assert folder_bytes(tmp_path) == 0
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(os.urandom(100_000))
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 30)
    assert 100_000 <= folder_bytes(tmp_path) < 200_000


@example("\\040 x")
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_mount_points_are_read_as_the_kernel_writes_them(path: str):
    written = "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in path)
    assert _unescape(written) == path


def test_paths_inside_others_are_left_out():
    assert _outermost(["/usr/lib/python3", "/usr/lib", "/usr/libexec", "/etc/x"]) == (
        "/etc/x",
        "/usr/lib",
        "/usr/libexec",
    )


@linux
def test_the_host_names_python_and_its_libraries_only():
    host = this_host()
    assert Path(host.python).is_file()
    assert any(os.__file__.startswith(path) for path in host.paths)
    assert not any(path in ("/", "/usr", "/home", "/root", "/etc", "/tmp", str(Path.home())) for path in host.paths)
