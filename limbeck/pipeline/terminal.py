"""What a person sees of a run: live progress on stderr, the report at the end."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from limbeck.errors import InputError
from limbeck.pipeline.config import RunConfig, Stage
from limbeck.report import render_terminal

# Seconds between two lines on one piece of work where there is no bar to draw.
_SAY_EVERY = 60.0
# The systems that `limbeck predict` can run.
PREDICTS = ("student", "student_gold_only", "student_base", "teacher_compiled")
# What a shell expects of a command that Ctrl-C ended.
_INTERRUPTED = 130


class Live:
    """A reporter that draws one bar for what is going on, and a line for what is done."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started = time.monotonic()
        self.progress = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=10),
            TextColumn("{task.completed:.0f}/{task.total:.0f}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.bar: TaskID | None = None
        self.what = ""
        self.said = self.started

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        return f"{minutes:3d}:{seconds:02d}"

    def stage(self, name: str, *, cached: bool = False) -> None:
        """A stage begins."""
        self._end_bar()
        self._say((f" {name}", "bold"), (" (done before)" if cached else "", "dim"))

    def note(self, text: str) -> None:
        """One line worth keeping."""
        self._say(f"   {text}")

    def warn(self, text: str) -> None:
        """One named warning."""
        self._say(("   warning ", "yellow"), text)

    def _say(self, *parts: str | tuple[str, str]) -> None:
        # Assembled, not marked up: the user's labels and a model's answers hold brackets.
        self.console.print(Text.assemble((self._clock(), "dim"), *parts), soft_wrap=True)

    def step(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Draw `done` of `total`; where stderr is no terminal, a line a minute and one at each end."""
        now = time.monotonic()
        if self.what != what:
            self._end_bar()
            self.what = what
            self.bar = self.progress.add_task(what, total=max(total, 1), detail=detail)
        if self.bar is not None:
            self.progress.update(self.bar, completed=done, total=max(total, 1), detail=detail)
        if not self.console.is_terminal and (done >= total or now - self.said > _SAY_EVERY):
            self.said = now
            self.note(f"{what}: {done}/{total} {detail}".rstrip())
        if done >= total:
            self._end_bar()

    def _end_bar(self) -> None:
        if self.bar is not None:
            self.progress.remove_task(self.bar)
        self.bar, self.what = None, ""


@contextmanager
def _stoppable(kept: Callable[[], str], console: Console) -> Generator[None]:
    """End on Ctrl-C or SIGTERM once the calls in flight are answered, at once on the second; say what is kept."""

    def say(text: str) -> None:
        _tell(console, text)

    asked: list[int] = []

    def stop(signum: int, frame: Any) -> None:
        asked.append(signum)
        if len(asked) > 1:
            say(f"stopped at once; {kept()}")
            # Threads that wait for a model would hold up a clean exit; the ledger's file bears any end.
            os._exit(_INTERRUPTED)
        say("\nstopping: answers on their way are waited for and kept (Ctrl-C again: stop at once)")
        raise KeyboardInterrupt

    # A shell lets background jobs ignore SIGINT: that stays so.
    caught = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) is not signal.SIG_IGN]
    before = [signal.signal(s, stop) for s in caught]
    try:
        yield
    except KeyboardInterrupt:
        say(f"stopped; {kept()}")
        raise SystemExit(_INTERRUPTED) from None
    finally:
        for number, handler in zip(caught, before, strict=True):
            signal.signal(number, handler)


def run(config: RunConfig, *, until: Stage) -> None:
    """Run the stages with live progress, then print the report on stdout."""
    from limbeck.pipeline.run import run as run_stages

    console = Console(stderr=True)
    live = Live(console)
    name = "run" if until == "evaluate" else until

    def kept() -> str:
        if not (config.folder / "run.toml").is_file():
            return "nothing was asked yet"
        return f"what is finished is kept. Go on with: limbeck {name} {shlex.quote(config.out)}"

    with _stoppable(kept, console), live.progress:
        outcome = run_stages(config, until=until, reporter=live)
    if outcome.report is None:
        _tell(console, f"{until} is done. Go on with: limbeck run {shlex.quote(config.out)}")
        return
    Console().print(render_terminal(outcome.report))
    _tell(console, _next_command(config, outcome.report))


def _next_command(config: RunConfig, report: Mapping[str, Any]) -> str:
    """Return how to predict: by default what was chosen out of fold, which test rows may have spoken against."""
    command = f"limbeck predict {shlex.quote(config.out)} ROWS.jsonl"
    used, chosen = report["verdict"]["use"], report["chosen"]
    if used == chosen or used not in PREDICTS:
        return f"predict with {chosen}: {command}"
    return f"predict with {used}: {command} --system {used} (without --system: {chosen}, chosen out of fold)"


def _tell(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def forecast(config: RunConfig) -> None:
    """Print what the run would cost, without a call."""
    from limbeck.pipeline.forecast import forecast as plan
    from limbeck.pipeline.forecast import render

    found, live = plan(config), Live(Console(stderr=True))
    for text in found.warnings:
        live.warn(text)
    Console().print(render(found))


def predict(folder: Path, rows: Path, out: Path | None, system: str, probabilities: bool) -> None:
    """Predict every row of a file; JSON Lines on stdout, or a .jsonl or .csv file."""
    from limbeck.inputs import read_rows
    from limbeck.pipeline.deploy import load_run

    if out is not None and out.suffix not in {".jsonl", ".csv"}:
        raise InputError(f"cannot write {out.suffix or 'a file without an ending'}", valid=".jsonl or .csv")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"there is no folder {out.parent}", valid="a folder", hint=f"mkdir -p {out.parent}")
    if out is not None and (out.is_dir() or not os.access(out.parent, os.W_OK)):
        raise InputError(f"cannot write {out}", valid="a file in a folder that you may write to")
    given = read_rows(rows)
    console = Console(stderr=True)
    live = Live(console)
    deployed = load_run(folder, system)
    _tell(console, f"{len(given)} rows with {deployed.system} of {folder}")
    with _stoppable(lambda: "nothing was written", console), live.progress:
        found = list(
            deployed.predict(
                given,
                probabilities=probabilities,
                progress=lambda done, total: live.step("predicting", done, total),
            )
        )
    if given and (taken := [name for name in found[0] if name in given[0]]):
        _tell(console, f"the predictions take the place of the rows' own {', '.join(taken)}")
    _write([{**row, **values} for row, values in zip(given, found, strict=True)], out)
    failed = [values["error"] for values in found if "error" in values]
    if failed:
        _tell(console, f"{len(failed)} of {len(found)} rows have no answer; the first: {failed[0]}")
    if found and len(failed) == len(found):
        raise SystemExit(1)


def _write(rows: Sequence[dict[str, Any]], out: Path | None) -> None:
    if out is not None and out.suffix == ".csv":
        names = list(dict.fromkeys(name for row in rows for name in row))
        with _whole(out) as part, part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({k: _cell(v) for k, v in row.items()} for row in rows)
        return
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    if out is None:
        sys.stdout.write(text)
        return
    with _whole(out) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def _whole(out: Path) -> Generator[Path]:
    """Yield a file beside `out` that takes its place once it is written whole."""
    part = out.with_name(out.name + ".part")
    try:
        yield part
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
