"""Quality on real datasets: 48 labels (one a class where there are 77), pool off and on, several seeds.

    python benchmarks/quality.py prepare --data DATASETS --out /tmp/tasks
    python benchmarks/quality.py run --tasks /tmp/tasks --name clinc150 --seeds 0 1 2 --teacher gguf:teacher.gguf

`DATASETS` holds one folder a dataset with train.jsonl and dev.jsonl. Labels and pool are drawn from train by
seed, test rows from dev. Nothing of the data is kept in the repository.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """One dataset as a task: how a raw row becomes a row of the task (None: left out)."""

    folder: str
    output: str
    convert: Callable[[Row], Row | None]
    labels: int = 48
    per_class: int = 0
    test: int = 300


def _slots(row: Row) -> Row:
    return {"text": row["text"], "slots": [{"slot": s["slot"], "value": s["value"]} for s in row["slots"]]}


def _domain(row: Row) -> Row | None:
    return None if row["domain"] == "oos" else {"text": row["text"], "domain": row["domain"]}


SOURCES = {
    "clinc150": Source("clinc150", "domain", _domain),
    "banking77": Source("banking77", "label", lambda r: {"text": r["text"], "label": r["label"]}, per_class=1, test=0),
    "strategyqa": Source(
        "strategyqa", "answer", lambda r: {"question": r["question"], "answer": r["answer"]}, test=200
    ),
    "svamp": Source("svamp", "answer", lambda r: {"question": r["question"], "answer": float(r["answer"])}, test=101),
    "restaurant8k": Source("restaurant8k", "slots", _slots, test=200),
}


def _read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def _draw(rows: list[Row], source: Source, rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Return (labels, rest): stratified by the output where it is a string."""
    rng.shuffle(rows)
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        value = row[source.output]
        groups[value if isinstance(value, str) else ""].append(row)
    names = sorted(groups)
    chosen: list[Row] = []
    for turn in range(max(len(g) for g in groups.values())):
        for name in names:
            room = source.per_class or source.labels
            if turn < len(groups[name]) and (turn < source.per_class if source.per_class else len(chosen) < room):
                chosen.append(groups[name][turn])
    taken = {id(r) for r in chosen}
    return chosen, [r for r in rows if id(r) not in taken]


def prepare(data: Path, out: Path, seeds: list[int], pool: int) -> None:
    """Write labels.jsonl, pool.jsonl and test.jsonl for every source and seed."""
    for name, source in SOURCES.items():
        train = [r for r in map(source.convert, _read(data / source.folder / "train.jsonl")) if r]
        dev = [r for r in map(source.convert, _read(data / source.folder / "dev.jsonl")) if r]
        random.Random(7).shuffle(dev)
        for seed in seeds:
            folder = out / name / str(seed)
            folder.mkdir(parents=True, exist_ok=True)
            labels, rest = _draw(list(train), source, random.Random(seed))
            _write(folder / "labels.jsonl", labels)
            _write(folder / "pool.jsonl", [{k: v for k, v in r.items() if k != source.output} for r in rest[:pool]])
            _write(folder / "test.jsonl", dev[: source.test or None])


def run(tasks: Path, name: str, seeds: list[int], teacher: str, pools: list[str], extra: list[str]) -> None:
    """Run `limbeck run` on the prepared task for every seed, with the pool off and on."""
    for seed in seeds:
        folder = tasks / name / str(seed)
        for pool in pools:
            out = tasks / "runs" / f"{name}-{seed}-{pool}"
            command = [sys.executable, "-m", "limbeck.cli", "run", "--labels", str(folder / "labels.jsonl")]
            command += ["--output", SOURCES[name].output, "--test", str(folder / "test.jsonl")]
            command += ["--teacher", teacher, "--seed", str(seed), "--out", str(out), *extra]
            if pool == "on":
                command += ["--unlabeled", str(folder / "pool.jsonl")]
            subprocess.run(command, check=True)


def table(tasks: Path) -> None:
    """Print one line a run: every system's score with its interval; then means over the seeds of one task."""
    seeds: dict[str, list[dict[str, float]]] = defaultdict(list)
    for path in sorted((tasks / "runs").glob("*/report.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        cells = [
            f"{name} {s['score']:.3f} [{s['ci95'][0]:.3f}, {s['ci95'][1]:.3f}]" for name, s in report["systems"].items()
        ]
        print(f"{path.parent.name} (n={report['n_test']}): " + "; ".join(cells))
        name, _, pool = path.parent.name.rsplit("-", 2)
        seeds[f"{name}-{pool}"].append({system: s["score"] for system, s in report["systems"].items()})
    for name, runs in seeds.items():
        if len(runs) > 1:
            shared = [system for system in runs[0] if all(system in run for run in runs)]
            means = [f"{s} {mean(r[s] for r in runs):.3f} ± {stdev(r[s] for r in runs):.3f}" for s in shared]
            print(f"{name}, mean and deviation of {len(runs)} seeds: " + "; ".join(means))
            gaps = [f"{s} {_interval([r['student'] - r[s] for r in runs])}" for s in shared if s != "student"]
            print(f"{name}, student minus it, points, mean and 95% t interval over seeds: " + "; ".join(gaps))


def _interval(gaps: list[float]) -> str:
    """Return the mean of a few seeds' differences with Student's interval, in points."""
    half = float(t.ppf(0.975, len(gaps) - 1)) * stdev(gaps) / len(gaps) ** 0.5
    low, high = mean(gaps) - half, mean(gaps) + half
    return f"{100 * mean(gaps):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "run", "table"):
        sub = commands.add_parser(name)
        sub.add_argument("--tasks" if name != "prepare" else "--out", dest="tasks", type=Path, required=True)
        sub.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        if name == "prepare":
            sub.add_argument("--data", type=Path, required=True)
            sub.add_argument("--pool", type=int, default=360)
        if name == "run":
            sub.add_argument("--name", choices=sorted(SOURCES), required=True)
            sub.add_argument("--teacher", default="embedded")
            sub.add_argument("--pools", nargs="+", choices=["off", "on"], default=["off", "on"])
            sub.add_argument("extra", nargs="*", help="further options of limbeck run, after --")
    args = parser.parse_args()
    if args.command == "prepare":
        prepare(args.data, args.tasks, args.seeds, args.pool)
    elif args.command == "run":
        run(args.tasks, args.name, args.seeds, args.teacher, args.pools, args.extra)
    else:
        table(args.tasks)


if __name__ == "__main__":
    main()
