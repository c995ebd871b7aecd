"""What verifying is worth: tests that a model writes against its own solutions, and a judge calibrated on people.

    python benchmarks/verification.py code --data DATASETS --teacher gguf:teacher.gguf --rows 40 --ledger code.sqlite
    python benchmarks/verification.py judge --data DATASETS --judge gguf:teacher.gguf --rows 120 --ledger judge.sqlite

`code` takes MBPP's problems: the model writes solutions and tests, and MBPP's own tests, which it never sees, say how
many solutions are right among all and among those that pass its tests. `judge` takes PandaLM's pairs: agreement with
people for one order, both orders, and the choices above a threshold that other rows gave. Interrupted, the same
command goes on.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy

from limbeck.codecheck import Suite, check_many, unfence
from limbeck.compile.concurrent import concurrently
from limbeck.compile.judges import CalibrateConfig, Rate, calibrate_preferences
from limbeck.errors import BudgetExceeded, InputError
from limbeck.ledger import Ledger
from limbeck.models import CompactAdapter, connect
from limbeck.pipeline.students import callers
from limbeck.programs.evolve_code import CaseWriter, Solver, functions_of, read_tests
from limbeck.programs.judge import EVEN, Comparer
from limbeck.stats import mean_ci

Row = dict[str, Any]
SHARE, LEAST = 2 / 3, 2  # as the method evol_code asks of a solution


def read(path: Path) -> list[Row]:
    """Return the rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def told(hits: Sequence[bool]) -> str:
    """Return a share with its exact interval."""
    rate = Rate(sum(hits), len(hits))
    share = "-" if rate.share is None else f"{rate.share:.3f}"
    return f"{rate.hits}/{rate.rows} = {share} [{rate.low:.3f}, {rate.high:.3f}]"


def asked(model: str, ledger: Path, jobs: Sequence[Any], ask: Any, what: str) -> list[Any]:
    """Return the answer to every job, None where the call failed; shows how many are done."""
    lm, done = connect(model, ledger=Ledger(ledger), in_bulk=True), 0

    def one(job: Any) -> Any:
        with dspy.context(lm=lm, adapter=CompactAdapter(), trace=None):
            try:
                return ask(job)
            except BudgetExceeded:
                raise
            except Exception:  # one answer that cannot be read
                return None

    def count(_: Any) -> None:
        nonlocal done
        done += 1
        sys.stderr.write(f"\r{what}: {done}/{len(jobs)} ")

    found = concurrently(one, jobs, threads=callers(model), done=count)
    sys.stderr.write("\n")
    return found


def line_of(row: Row) -> str:
    """Return the first line of the function that MBPP's tests call."""
    found = functions_of(row["code"])
    return next((line for name, line in found.items() if f"{name}(" in str(row["test_list"])), "")


def code(args: argparse.Namespace) -> None:
    """Solutions that pass the model's own tests against all of its solutions."""
    rows = [row for row in read(args.data / "mbpp" / "train.jsonl") if line_of(row)]
    rows = random.Random(args.seed).sample(rows, args.rows)
    solver, writer = Solver(), CaseWriter()
    jobs = [(row, n) for row in rows for n in range(args.samples + 1)]

    def ask(job: tuple[Row, int]) -> str:
        row, n = job
        config = {"max_tokens": 320, "rollout_id": n}
        if n == args.samples:
            return str(writer(row["prompt"], line_of(row), count=6, config={**config, "temperature": 0.0}).tests)
        return str(solver(row["prompt"], line_of(row), config={**config, "temperature": 0.8 if n else 0.0}).code)

    answers = asked(args.teacher, args.ledger, jobs, ask, "solutions and tests")
    judged: list[tuple[bool, bool]] = []
    for at, row in zip(range(0, len(answers), args.samples + 1), rows, strict=True):
        name = next(iter(functions_of(f"{line_of(row)} pass")))
        texts = [unfence(text or "", f"def {name}") for text in answers[at : at + args.samples]]
        own = read_tests(unfence(answers[at + args.samples] or ""), name)
        gold = Suite.mbpp(row["test_list"], row["test_setup"])
        right = check_many([(text, gold) for text in texts], threads=2)
        runs = [(text, Suite.mbpp([test])) for text in texts for test in own]
        passed = iter(check_many(runs, threads=2) if runs else [])
        for is_right in right:
            ok = sum(next(passed).ok for _ in own)
            judged.append((is_right.ok, ok >= max(LEAST, SHARE * len(own))))
    print(f"{len(rows)} problems, {args.samples} solutions each, {args.teacher}")
    print(f"  right among all solutions:              {told([r for r, _ in judged])}")
    print(f"  right among those that pass own tests:  {told([r for r, ok in judged if ok])}")
    print(f"  right among those that do not:          {told([r for r, ok in judged if not ok])}")


def judge(args: argparse.Namespace) -> None:
    """A raw judge against one whose order is cancelled and whose threshold other rows gave."""
    rows = read(args.data / "pandalm" / "train.jsonl")
    rows = random.Random(args.seed).sample(rows, 2 * args.rows)
    comparer = Comparer()

    def ask(row: Row) -> dspy.Prediction:
        request = f"{row['instruction']}\n{row['input']}".strip()
        return comparer(request, row["response1"], row["response2"])

    made = asked(args.judge, args.ledger, rows, ask, "pairs")
    fit, rest = list(range(args.rows)), list(range(args.rows, 2 * args.rows))

    def right(i: int, p: float | None) -> bool:
        return p is not None and abs(p - 0.5) > EVEN and rows[i]["label"] == ("1" if p > 0.5 else "2")

    forwards = [m.forwards if m is not None else None for m in made]
    both = [m.score if m is not None else None for m in made]
    clear = [i for i in rest if rows[i]["label"] != "tie"]
    ties = sum(row["label"] == "tie" for row in rows)
    print(f"{args.judge}: {len(rows)} pairs, {ties} of them ties to people; half of them for the threshold")
    first = [p > 0.5 for p in forwards if p is not None]
    print(f"  prefers the first place: {mean_ci([float(x) for x in first]).mean:.3f} of {len(first)}")
    for name, scores in (("one order", forwards), ("both orders", both)):
        print(f"  {name}: agrees with people on {told([right(i, scores[i]) for i in clear])} of pairs they decide")
        print(f"  {name}, ties counted as wrong: {told([right(i, scores[i]) for i in rest])}")
    known = [i for i in fit if rows[i]["label"] != "tie"]
    try:
        config = CalibrateConfig(precision=args.precision)
        found = calibrate_preferences([both[i] for i in known], [rows[i]["label"] == "1" for i in known], config)
    except InputError as error:
        print(f"  calibrated: refused: {error.message}")
        return
    chosen = [i for i in rest if (p := both[i]) is not None and max(p, 1 - p) >= found.threshold]
    clear = [i for i in chosen if rows[i]["label"] != "tie"]
    print(f"  calibrated for {args.precision} (threshold {found.threshold:.3f}): decides {len(chosen)} of {len(rest)}")
    print(f"    agrees on {told([right(i, both[i]) for i in clear])} of pairs people decide")
    print(f"    ties counted as wrong: {told([right(i, both[i]) for i in chosen])}")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("code", "judge"):
        sub = commands.add_parser(name)
        sub.add_argument("--data", type=Path, required=True)
        sub.add_argument("--ledger", type=Path, required=True)
        sub.add_argument("--rows", type=int, default=40)
        sub.add_argument("--seed", type=int, default=0)
        if name == "code":
            sub.add_argument("--teacher", required=True)
            sub.add_argument("--samples", type=int, default=2)
        else:
            sub.add_argument("--judge", required=True)
            sub.add_argument("--precision", type=float, default=0.7)
    args = parser.parse_args()
    if args.command == "code":
        code(args)
    else:
        judge(args)


if __name__ == "__main__":
    main()
