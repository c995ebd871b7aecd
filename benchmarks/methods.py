"""Methods of writing rows on real datasets: yield, reasons, cost, and what a student gains from the rows.

    python benchmarks/quality.py prepare --data DATASETS --out /tmp/tasks
    python benchmarks/methods.py run --tasks /tmp/tasks --name clinc150 --rows 120 --methods simple label_conditioned
    python benchmarks/methods.py table --tasks /tmp/tasks

Every method writes as many rows for the same labels, without a pool; differences are paired on the same test rows,
against the student trained on the labels alone and against plain generation (`simple`, or what `--plain` names). A
method's folder begins as a copy of the first one's: prompt and student of the labels alone are the same for all.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

from quality import SOURCES

from limbeck.stats import Paired, paired_bootstrap

STUDENT, GOLD_ONLY = "student", "student_gold_only"


def folder_of(tasks: Path, name: str, seed: int, method: str) -> Path:
    """Return the run folder of one method on one task; they lie side by side and share what was paid for."""
    return tasks / "runs-methods" / f"{name}.{seed}.{method.replace('>', '+')}"


def run(args: argparse.Namespace) -> None:
    """Run every method on the prepared task for every seed."""
    for seed in args.seeds:
        task = args.tasks / args.name / str(seed)
        first = folder_of(args.tasks, args.name, seed, args.methods[0])
        for method in args.methods:
            folder = folder_of(args.tasks, args.name, seed, method)
            if not folder.exists() and (first / "report.json").is_file():
                shutil.copytree(first, folder)
                (folder / "report.json").unlink()
            command = [sys.executable, "-m", "limbeck.cli", "run", "--labels", str(task / "labels.jsonl")]
            command += ["--output", SOURCES[args.name].output, "--test", str(task / "test.jsonl")]
            command += ["--teacher", args.teacher, "--seed", str(seed), "--method", method]
            command += ["--synthetic-rows", str(args.rows), "--out", str(folder)]
            if subprocess.run([*command, *args.extra], check=False).returncode:
                print(f"{folder}: did not finish", file=sys.stderr)  # such as a method that keeps no row


def scores(folder: Path, system: str) -> list[float]:
    """Return a system's score on every test row of a finished run, [] where it was not run."""
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    return [float(row["systems"][system]["score"]) for row in rows if system in row["systems"]]


def teacher_cost(folder: Path, stage: str) -> str:
    """Return the teacher's calls and tokens while a stage of this name last ran."""
    last = "select created - seconds, created from stages where name = ? order by created desc limit 1"
    query = (
        "select count(*), sum(tokens_in), sum(tokens_out) from calls where role = 'teacher' and created between ? and ?"
    )
    with sqlite3.connect(folder / "ledger.sqlite") as ledger:
        calls, tokens_in, tokens_out = ledger.execute(query, ledger.execute(last, (stage,)).fetchone()).fetchone()
    return f"{calls:,} calls, {tokens_in or 0:,} tokens in, {tokens_out or 0:,} out"


def told(found: Paired) -> str:
    """Return a difference in points with its interval."""
    low, high = found.ci95
    return f"{100 * found.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def table(tasks: Path, plain: str) -> None:
    """Print what every finished run wrote, kept and gained."""
    for path in sorted((tasks / "runs-methods").glob("*/report.json")):
        folder, report = path.parent, cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
        name, seed, method = folder.name.split(".", 2)
        stages = {stage["name"]: stage for stage in report["stages"]}
        made = stages["synthesize"].get("methods", {}).get(method.replace("+", ">"), {})
        print(f"\n{name}, seed {seed}, {method} (n={report['n_test']})")
        print(f"  wanted {made.get('wanted')}, written {made.get('written')}, kept {stages['curate']['kept']}")
        for stage in ("synthesize", "curate"):
            print(f"  {stage}: rejected {stages[stage]['rejected']}, {stages[stage]['seconds']:.0f} s")
            print(f"    teacher: {teacher_cost(folder, stage)}")
        for system in (GOLD_ONLY, STUDENT):
            if entry := report["systems"].get(system):
                print(f"  {system} {entry['score']:.3f} [{entry['ci95'][0]:.3f}, {entry['ci95'][1]:.3f}]")
        student, beside = scores(folder, STUDENT), folder_of(tasks, name, int(seed), plain)
        if student:
            print(f"  student - labels alone: {told(paired_bootstrap(student, scores(folder, GOLD_ONLY)))}")
        if student and method != plain and (beside / "predictions.jsonl").is_file() and scores(beside, STUDENT):
            print(f"  student - {plain}'s student: {told(paired_bootstrap(student, scores(beside, STUDENT)))}")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "table"):
        sub = commands.add_parser(name)
        sub.add_argument("--tasks", type=Path, required=True)
        if name == "table":
            sub.add_argument("--plain", default="simple", help="the method that stands for plain generation")
            continue
        sub.add_argument("--name", choices=sorted(SOURCES), required=True)
        sub.add_argument("--seeds", type=int, nargs="+", default=[0])
        sub.add_argument("--methods", nargs="+", required=True)
        sub.add_argument("--rows", type=int, default=120)
        sub.add_argument("--teacher", default="embedded")
        sub.add_argument("extra", nargs="*", help="further options of limbeck run, after --")
    args = parser.parse_args()
    if args.command == "run":
        run(args)
    else:
        table(args.tasks, args.plain)


if __name__ == "__main__":
    main()
