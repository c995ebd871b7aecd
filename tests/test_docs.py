"""The documents run: their Python, their commands' options, their help texts, their links.

A ```python block is executed, the blocks of one file one after another in one process; a line above it with
`<!-- not run: why -->` leaves it out. Every `limbeck` line of a ```console or ```sh block must parse, every
`make` line must name a target, and what is shown under `$ limbeck ... --help` must be what it prints.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
import pytest
import typer

ROOT = Path(__file__).resolve().parent.parent
PAGES = [p for p in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))) if p.name != "CHANGELOG.md"]
_BLOCK = re.compile(r"(?P<above>[^\n]*)\n```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.S | re.M)
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    kind: str
    text: str
    run: bool


def blocks(page: Path) -> list[Block]:
    text = "\n" + page.read_text(encoding="utf-8")
    return [
        Block(page, text[: m.start("text")].count("\n"), m["kind"], m["text"], "<!-- not run:" not in m["above"])
        for m in _BLOCK.finditer(text)
    ]


def shell_lines() -> Iterator[tuple[Block, str]]:
    """Every command of the shell blocks, continued lines joined."""
    for page in PAGES:
        for block in blocks(page):
            if block.kind in ("console", "sh", "bash"):
                for line in block.text.replace("\\\n", " ").splitlines():
                    command = line.removeprefix("$ ").strip()
                    if block.kind != "console" or line.startswith("$ "):
                        yield block, command


def commands(program: str) -> list[Any]:
    found = [(block, line) for block, line in shell_lines() if re.match(rf"(\S*/)?{program}( |$)", line)]
    return [pytest.param(line, id=f"{b.page.name}:{b.line}:{i}") for i, (b, line) in enumerate(found)]


def command_line() -> click.Group:
    from limbeck.cli import app

    return cast(click.Group, typer.main.get_command(app))


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.kind == "python" and b.run for b in blocks(p))], ids=str)
def test_the_python_blocks_of_a_page_run(page: Path, tmp_path: Path):
    parts = [b for b in blocks(page) if b.kind == "python" and b.run]
    # Padded, so that a traceback names the page's own line.
    code = "\n".join(f"exec(compile({chr(10) * (b.line - 1) + b.text!r}, {str(page)!r}, 'exec'))" for b in parts)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", commands("limbeck"))
def test_a_documented_command_parses(line: str):
    words = shlex.split(re.split(r"\s[|>]\s?", line)[0], comments=True)[1:]
    group = command_line()
    if not words or words[0].startswith("-"):
        return
    assert words[0] in group.commands
    command = group.commands[words[0]]
    arguments = [word for word in words[1:] if word not in ("--help", "-h")]
    with command.make_context(words[0], arguments) as context:
        assert context.command is command


@pytest.mark.parametrize("line", commands("make"))
def test_a_documented_target_exists(line: str):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    words = [w for w in shlex.split(line, comments=True)[1:] if "=" not in w and not w.startswith("-")]
    assert set(words) <= targets


HELP = [
    pytest.param(*match, id=match[0])
    for page in PAGES
    for block in blocks(page)
    if block.kind == "console"
    for match in re.findall(r"^\$ (limbeck [^\n]*--help)\n(.*?)(?=^\$ |\Z)", block.text, re.S | re.M)
]


@pytest.mark.parametrize(("line", "shown"), HELP)
def test_a_documented_help_text_is_what_is_printed(line: str, shown: str):
    environment = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-m", "limbeck.cli", *shlex.split(line)[1:]],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    printed = "\n".join(part.rstrip() for part in done.stdout.splitlines()).strip()
    assert printed.replace("python -m limbeck.cli", "limbeck") == shown.strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_links_of_a_page_lead_somewhere(page: Path):
    missing = [link for link in _LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert missing == []


def test_a_block_knows_its_place_and_whether_it_runs(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("# t\n\n```python\na = 1\n```\n\n<!-- not run: costs money -->\n```python\nb\n```\n")
    first, second = blocks(page)
    assert (first.line, first.kind, first.text, first.run) == (4, "python", "a = 1\n", True)
    assert (second.line, second.run) == (9, False)
