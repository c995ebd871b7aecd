"""The training loop against TRL's SFTTrainer, side by side: python benchmarks/training.py

Shape: a compiled prompt of 480 tokens shared by all rows, of which inputs are the last 32, and completions of
32; 8 examples an optimizer step; SmolLM2-135M, LoRA r=16 on all linear layers. TRL runs with its defaults
(fp32, gradient checkpointing) in an environment of its own, made from requirements-peers.txt on first use.
Each way is a process that waits for its turn: A B A B, one optimizer step a turn, the median after one step
of warm-up. The table goes to stdout, and as its last line one JSON object.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import venv
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements-peers.txt"
SHARED, INPUT, COMPLETION, BATCH, RANK, ALPHA, RATE = 448, 32, 32, 8, 16, 32, 1e-4
WAYS = {
    "limbeck": {"dtype": "auto", "share_prefix": True},
    "limbeck fp32": {"dtype": "float32", "share_prefix": True},
    "limbeck, nothing shared": {"dtype": "auto", "share_prefix": False},
}


def peer_python() -> str:
    """The interpreter of the peers' environment; made under the cache folder where it is missing."""
    from limbeck.engine.loading import cache_folder

    name = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    folder = cache_folder() / "peers" / name
    python, done = folder / "bin" / "python", folder / "done"
    if not done.is_file():
        print(f"installing {REQUIREMENTS.name} into {folder} ...", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "-qq", "-r", str(REQUIREMENTS)], check=True)
        done.touch()
    return str(python)


def write_rows(path: Path, rows: int) -> None:
    """Seeded random token ids: one shared prompt, an input and a completion a row."""
    rng = random.Random(0)

    def ids(n: int) -> list[int]:
        return [rng.randrange(1000, 40000) for _ in range(n)]

    shared = ids(SHARED)
    made = [{"prompt": shared + ids(INPUT), "completion": [*ids(COMPLETION - 1), 2]} for _ in range(rows)]
    path.write_text(json.dumps(made))


class Way:
    """One contestant: a process that takes one optimizer step each time it is told."""

    def __init__(self, command: list[str], stack: ExitStack, log: Path) -> None:
        errors = stack.enter_context(log.open("w"))
        self.process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        )
        stack.callback(self.process.terminate)
        self.log = log
        self.answer()  # ready

    def answer(self) -> dict[str, Any]:
        """The process's next line."""
        line = cast(Any, self.process.stdout).readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended early:\n{self.log.read_text()[-2000:]}")
        return json.loads(line)

    def step(self) -> dict[str, Any]:
        """Take one step; its seconds, loss and the process's peak memory."""
        pipe = cast(Any, self.process.stdin)
        pipe.write("step\n")
        pipe.flush()
        return self.answer()


def ours(rows_file: Path, way: str, steps: int) -> None:
    """The process of one of our ways: `train` with a pause before every step."""
    import time

    from limbeck.engine import load_model
    from limbeck.finetune.loop import Progress, TrainConfig, peak_memory_mb, train
    from limbeck.finetune.rows import TrainRow

    options = WAYS[way]
    loaded = load_model("embedded", dtype=cast(str, options["dtype"]))
    rows = [
        TrainRow(tuple(row["prompt"]), ((tuple(row["completion"]), 1.0),)) for row in json.loads(rows_file.read_text())
    ]
    config = TrainConfig(
        lr=RATE,
        max_steps=steps,
        batch_size=BATCH,
        rank=RANK,
        alpha=ALPHA,
        warmup=0,
        loss_per="token",
        pack_tokens=4096,
        share_prefix=cast(bool, options["share_prefix"]),
    )

    def wait() -> float:
        if not sys.stdin.readline():
            sys.exit()  # the parent is gone
        return time.perf_counter()

    def report(progress: Progress) -> None:
        nonlocal started
        seconds = time.perf_counter() - started
        peak = peak_memory_mb(loaded.device)
        print(json.dumps({"seconds": seconds, "loss": progress.loss, "peak_mb": peak}), flush=True)
        started = wait()

    print(json.dumps({"dtype": str(loaded.dtype)}), flush=True)
    started = wait()
    train(loaded, rows, config, progress=report)


def measure(rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Every way's steps, in rounds of one step each; the first round warms up."""
    from limbeck.engine import load_model

    model = str(cast(Any, load_model("embedded").model).name_or_path)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rows = folder / "rows.json"
        write_rows(rows, BATCH)  # the same rows every step: the first losses are of the same examples
        steps = str(rounds + 2)
        commands = {
            way: [sys.executable, __file__, "--worker", way, "--rows", str(rows), "--steps", steps] for way in WAYS
        }
        peer = [peer_python(), str(HERE / "training_trl.py"), model, str(rows), steps]
        commands["TRL SFTTrainer"] = [*peer, str(BATCH), str(RANK), str(ALPHA), str(RATE)]
        ways = {
            name: Way(command, stack, folder / f"{number}.log")
            for number, (name, command) in enumerate(commands.items())
        }
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
        for turn in range(rounds + 1):
            for name, way in ways.items():
                found[name].append(way.step())
                print(f"round {turn} of {rounds}, {name}: {found[name][-1]['seconds']:.1f} s", file=sys.stderr)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        ours(options.rows, options.worker, options.steps)
        return
    found = measure(options.rounds)
    rates = {name: BATCH / statistics.median(s["seconds"] for s in steps[1:]) for name, steps in found.items()}
    base = rates["TRL SFTTrainer"]
    first = {name: steps[0]["loss"] for name, steps in found.items()}
    print(f"{'way':26}{'examples/s':>12}{'x TRL':>8}{'first loss':>12}{'last loss':>11}{'peak MB':>9}")
    for name, steps in found.items():
        columns = f"{rates[name]:12.3f}{rates[name] / base:8.2f}{first[name]:12.4f}{steps[-1]['loss']:11.4f}"
        print(f"{name:26}{columns}{steps[-1]['peak_mb']:9.0f}")
    result = {
        "model": "embedded",
        "shape": {"shared": SHARED, "input": INPUT, "completion": COMPLETION, "batch": BATCH, "rank": RANK},
        "rounds": options.rounds,
        "examples_per_s": {name: round(rate, 4) for name, rate in rates.items()},
        "over_trl": round(rates["limbeck"] / base, 2),
        "over_own_unshared": round(rates["limbeck"] / rates["limbeck, nothing shared"], 2),
        "first_loss_difference_fp32": abs(first["limbeck fp32"] - first["TRL SFTTrainer"]),
        "same_first_loss": abs(first["limbeck fp32"] - first["TRL SFTTrainer"]) < 1e-3,
        "learns": all(steps[-1]["loss"] < steps[0]["loss"] for steps in found.values()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
