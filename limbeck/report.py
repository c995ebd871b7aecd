"""`report.json` of a run folder: written whole, shown in the terminal, listed and compared across runs.

Reads files alone: neither torch nor dspy is imported, so that `limbeck runs` answers at once.
"""

from __future__ import annotations

import json
import os
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from limbeck.errors import InputError

REPORT = "report.json"
PREDICTIONS = "predictions.jsonl"
Json = dict[str, Any]
_PLAIN: Json = {"ensure_ascii": False, "default": str}


def write_report(run_dir: Path, report: Mapping[str, Any]) -> Path:
    """Write `report.json`, whole or not at all, and return its path; NaN is refused (ValueError)."""
    return _written_whole(run_dir / REPORT, json.dumps(report, indent=2, allow_nan=False, **_PLAIN) + "\n")


def write_predictions(run_dir: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write `predictions.jsonl`, one test row a line, whole or not at all, and return its path."""
    return _written_whole(run_dir / PREDICTIONS, "".join(json.dumps(row, **_PLAIN) + "\n" for row in rows))


def _written_whole(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=".report", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
        Path(part).chmod(0o644)
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    return path


def read_report(run_dir: Path) -> Json:
    """Return the report of a run folder; InputError where it is missing or no JSON object."""
    path = run_dir / REPORT
    if not path.is_file():
        raise InputError(f"{run_dir} has no {REPORT}: the run is not finished", hint=f"limbeck run {run_dir}")
    try:
        report: Any = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}", hint=f"limbeck evaluate {run_dir}") from error
    if not isinstance(report, dict):
        raise InputError(f"{path} holds no JSON object", hint=f"limbeck evaluate {run_dir}")
    return cast(Json, report)


def render_terminal(report: Mapping[str, Any]) -> RenderableType:
    """Return what a person reads at the end of a run: systems, verdict, stages, warnings."""
    parts: list[RenderableType] = [_systems(report), "", _costs(report), "", _verdict(report)]
    terms = report.get("terms", {})
    if terms.get("reason") and terms["verdict"] != "allowed":
        parts.append(Text(f"terms of {terms['model']}: {terms['verdict']}; gone on because: {terms['reason']}"))
    if report.get("stages"):
        parts += ["", _stages(report["stages"])]
    warnings = report.get("warnings", ())
    if warnings:
        parts += ["", *(Text(f"warning: {w}", style="yellow") for w in warnings)]
    cost = report.get("cost")
    if cost:
        parts += ["", Text(_cost(cost), style="dim")]
    return Group(*parts)


def _systems(report: Mapping[str, Any]) -> Table:
    paired = report.get("paired", ())
    candidate = paired[0]["a"] if paired else ""
    against = {p["b"]: p for p in paired if p["a"] == candidate}
    title = f"{report['task']}: {report['metric']} on {report['n_test']} test rows (seed {report['seed']})"
    table = _table("system", "score [95%]", f"{candidate or 'student'}\nminus it, points", "p", title=title)
    for name, entry in report["systems"].items():
        pair = against.get(name)
        difference, p = ("", "") if pair is None else (_points(pair), f"{pair['p']:.2g}")
        cells = [name, _score(entry), difference, p]
        table.add_row(*(Text(cell) for cell in cells), style="bold" if name == candidate else "")
    return table


def _costs(report: Mapping[str, Any]) -> Table:
    calibrated = any("ece" in entry for entry in report["systems"].values())
    errors = ["ECE"] if calibrated else []
    table = _table("system", "ms a row", "USD per 1,000", "tokens in", "out", "failed", *errors)
    for name, entry in report["systems"].items():
        table.add_row(
            name,
            f"{entry['p50_ms']:,.0f}",
            _usd(entry["usd_per_1k"]),
            f"{entry['tokens_in']:,}",
            f"{entry['tokens_out']:,}",
            str(entry.get("failures", "")),
            *([f"{entry['ece']:.3f}" if "ece" in entry else ""] if calibrated else []),
        )
    return table


def _table(first: str, *others: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _score(entry: Mapping[str, Any]) -> str:
    low, high = entry["ci95"]
    return f"{entry['score']:.3f} [{low:.3f}, {high:.3f}]"


def _points(pair: Mapping[str, Any]) -> str:
    low, high = pair["ci95"]
    return f"{100 * pair['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _usd(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}" if value >= 0.01 or value == 0 else f"{value:.4f}"


def _verdict(report: Mapping[str, Any]) -> Text:
    verdict = report["verdict"]
    return Text(verdict["reason"], style="bold green" if verdict["ship"] else "bold yellow")


def _stages(stages: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("stage", "seconds", "in")
    table.add_column("kept", min_width=14)
    table.add_column("rejected")
    for stage in stages:
        rejected = "\n".join(f"{n} {reason}" for reason, n in stage.get("rejected", {}).items() if n)
        # What follows from other stages, such as a round's verdict, takes no time of its own.
        seconds = f"{stage['seconds']:.1f}" if "seconds" in stage else ""
        cells = [str(stage.get(k, "")) for k in ("records_in", "kept")]
        table.add_row(stage["name"], seconds, *cells, rejected)
    return table


def _cost(cost: Mapping[str, Any]) -> str:
    return (
        f"{_usd(cost['usd'])} USD, {cost['calls']:,} calls ({cost['cached_calls']:,} more answered by the "
        f"ledger), {cost['tokens_in']:,} tokens in, {cost['tokens_out']:,} out"
    )


def list_runs(folder: Path) -> list[Json]:
    """Return one summary per run folder in `folder`, newest first; unreadable ones say so in `state`.

    Raises InputError where there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}", valid="the folder that holds run folders", hint="limbeck runs FOLDER")
    found = [path for path in folder.iterdir() if (path / "run.toml").is_file() or (path / REPORT).is_file()]
    return [_summary(path) for path in sorted(found, key=lambda p: (-_written(p), p.name))]


def _written(run: Path) -> float:
    return max(p.stat().st_mtime for p in (run / "run.toml", run / REPORT) if p.is_file())


def _summary(run: Path) -> Json:
    config = _config(run)
    start: Json = {
        "name": run.name,
        "teacher": config.get("weak") or config.get("teacher", ""),
        "student": config.get("student", ""),
    }
    if not (run / REPORT).is_file():
        return {**start, "state": "unfinished"}
    try:
        report = read_report(run)
        systems, verdict = report["systems"], report["verdict"]
        student = systems.get("student", {})
        return {
            **start,
            "state": "finished",
            "task": report["task"],
            "metric": report["metric"],
            "n_test": report["n_test"],
            "score": student.get("score"),
            "ci95": student.get("ci95"),
            "base": systems.get("student_base", {}).get("score"),
            "ship": verdict["ship"],
            "use": verdict.get("use", ""),
            "usd": report.get("cost", {}).get("usd"),
        }
    except (InputError, KeyError, AttributeError, TypeError):
        return {**start, "state": "unreadable report"}


def _config(run: Path) -> Json:
    try:
        return tomllib.loads((run / "run.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def compare_runs(folder: Path, names: Sequence[str]) -> list[Json]:
    """Return one entry per system with its score in each named run (None where it was not run).

    Scores of different runs are paired only where the test rows are the same, so no difference is computed.
    Raises InputError for a run that is missing or not finished.
    """
    reports: dict[str, Json] = {}
    for name in names:
        if not (folder / name).is_dir():
            known = ", ".join(run["name"] for run in list_runs(folder))
            raise InputError(f"no run {name!r} in {folder}", valid=known or "no runs yet", hint="limbeck runs")
        reports[name] = read_report(folder / name)
    systems = dict.fromkeys(s for report in reports.values() for s in report["systems"])
    return [{"system": system, "runs": {n: _cell(r, system) for n, r in reports.items()}} for system in systems]


def _cell(report: Mapping[str, Any], system: str) -> Json | None:
    entry = report["systems"].get(system)
    if entry is None:
        return None
    about = {"metric": report["metric"], "n_test": report["n_test"]}
    return {**{name: entry[name] for name in ("score", "ci95", "usd_per_1k", "p50_ms")}, **about}


def render_runs(found: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """Print what `list_runs` or `compare_runs` returned as a table on stdout."""
    screen = console or Console()
    if not found:
        screen.print("no runs yet; start one with: limbeck run --labels FILE --output COLUMN", markup=False)
    elif "system" in found[0]:
        screen.print(_comparison_table(found))
    else:
        screen.print(_runs_table(found))


def _runs_table(found: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("run", "distilled [95%]", "untouched", "USD")
    table.add_column("use", overflow="fold")
    for run in found:
        base, usd = run.get("base"), run.get("usd")
        cells = [
            run["name"],
            _score(run) if run.get("score") is not None else "" if run["state"] == "finished" else run["state"],
            "" if base is None else f"{base:.3f}",
            _usd(usd) if run["state"] == "finished" else "",
            run.get("use", ""),
        ]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _comparison_table(found: Sequence[Mapping[str, Any]]) -> Table:
    names = list(found[0]["runs"])
    table = _table("system")
    for name in names:
        cell = next((r["runs"][name] for r in found if r["runs"][name]), None)
        about = f"\n{cell['metric']}, {cell['n_test']} rows" if cell else ""
        table.add_column(Text(name + about), justify="right")
    for row in found:
        cells = (row["runs"][name] for name in names)
        table.add_row(row["system"], *(Text(f"{_score(c)} {c['p50_ms']:,.0f} ms" if c else "") for c in cells))
    return table
