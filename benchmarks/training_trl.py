"""TRL's side of benchmarks/training.py, run by the peers' interpreter: SFTTrainer with its defaults.

Takes one optimizer step for every line on stdin and answers with one JSON line.
"""
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false, reportUnknownParameterType=false

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    model_name, rows_file, steps, batch, rank, alpha, rate = sys.argv[1:]
    # Whatever the libraries print belongs in the log; answers keep the real stdout.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(len(os.sched_getaffinity(0)))

    class Turns(TrainerCallback):
        """Waits for a line before every step and answers once its loss is logged."""

        started = 0.0
        seconds = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not sys.stdin.readline():
                sys.exit()  # the parent is gone
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self.started

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                answer = {"seconds": self.seconds, "loss": float(logs["loss"]), "peak_mb": peak}
                answers.write(json.dumps(answer) + "\n")
                answers.flush()

    rows = json.loads(Path(rows_file).read_text())
    data = Dataset.from_list(
        [
            {
                "input_ids": row["prompt"] + row["completion"],
                "labels": [-100] * len(row["prompt"]) + row["completion"],
            }
            for row in rows
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(model_name),
            # Defaults but for what the task fixes: shape, rate, number of steps, a log line a step,
            # and fp32, as TRL's own choice of bf16 asks for a GPU.
            args=SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=int(batch),
                learning_rate=float(rate),
                max_steps=int(steps),
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                bf16=False,
            ),
            train_dataset=data,
            peft_config=LoraConfig(
                r=int(rank), lora_alpha=int(alpha), target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[Turns()],
        )
        answers.write(json.dumps({"checkpointing": trainer.args.gradient_checkpointing}) + "\n")
        answers.flush()
        trainer.train()


if __name__ == "__main__":
    main()
