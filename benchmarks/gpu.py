"""Training and inference on a GPU, beside TRL and transformers: python benchmarks/gpu.py

Models have the shapes of SmolLM2-135M, Qwen2.5-0.5B and Qwen2.5-1.5B and random weights in bf16. Training: LoRA r=16 on
all linear layers, 448 shared tokens, inputs of 32 and completions of 32, or 192 + 64 tokens and nothing shared,
against TRL's SFTTrainer (bf16 weights, no checkpointing, SDPA). Inference: the same prompts, 64 new tokens or one of
seven labels. Ways alternate, the figure is the median; peers that are not installed are left out. A JSON line a case
goes to stdout, and as its last line one JSON object.
"""
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUntypedBaseClass=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import torch

from limbeck.engine import GenerateRequest, LoadedModel, ScoreRequest, TorchEngine
from limbeck.finetune.loop import Progress, TrainConfig, train
from limbeck.finetune.rows import TrainRow

SHAPES: dict[str, dict[str, Any]] = {
    "135m": {"kind": "llama", "hidden": 576, "inner": 1536, "layers": 30, "heads": 9, "groups": 3, "words": 49152},
    "0.5b": {"kind": "qwen2", "hidden": 896, "inner": 4864, "layers": 24, "heads": 14, "groups": 2, "words": 151936},
    "1.5b": {"kind": "qwen2", "hidden": 1536, "inner": 8960, "layers": 28, "heads": 12, "groups": 2, "words": 151936},
}
RANK, ALPHA, RATE = 16, 32, 1e-4
# (shared tokens, own prompt tokens, completion tokens)
COMPILED, PLAIN = (448, 32, 32), (0, 192, 64)
LABELS = ("refund", "card lost", "transfer", "top up", "exchange rate", "new account", "verify identity")
NEW_TOKENS = 64

# The seconds of every step, and the losses.
Run = tuple[list[float], list[float]]


def build(name: str, tokenizer: Any) -> LoadedModel:
    """Return a model of that shape with seeded random weights on the GPU."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = SHAPES[name]
    config = AutoConfig.for_model(
        shape["kind"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["inner"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["groups"],
        vocab_size=shape["words"],
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    return LoadedModel(model.eval(), tokenizer, name, name, torch.device("cuda"), torch.bfloat16)


def make_rows(shape: tuple[int, int, int], n: int) -> list[TrainRow]:
    """Return seeded rows of random tokens: shared ones, own ones and a completion."""
    rng = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1000, 40000) for _ in range(count))

    shared = ids(shape[0])
    return [TrainRow(shared + ids(shape[1]), (((*ids(shape[2] - 1), 2), 1.0),)) for _ in range(n)]


def train_ours(
    loaded: LoadedModel, rows: Sequence[TrainRow], batch: int, steps: int
) -> tuple[list[float], list[float]]:
    """Return the seconds of every step and the losses."""
    times = [time.perf_counter()]

    def tick(_: Progress) -> None:
        torch.cuda.synchronize()
        times.append(time.perf_counter())

    config = TrainConfig(
        lr=RATE, max_steps=steps, batch_size=batch, rank=RANK, alpha=ALPHA, warmup=0, loss_per="token", seed=0
    )
    result = train(loaded, rows, config, progress=tick)
    result.unload()
    return [b - a for a, b in pairwise(times)], list(result.losses)


def train_trl(loaded: LoadedModel, rows: Sequence[TrainRow], batch: int, steps: int) -> Run:
    """Return the same of SFTTrainer with bf16 weights and no gradient checkpointing."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    times, losses = list[float](), list[float]()

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            times.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            times[-1] = time.perf_counter() - times[-1]

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    data = Dataset.from_list(
        [
            {
                "input_ids": [*row.prompt, *row.branches[0][0]],
                "labels": [-100] * len(row.prompt) + [*row.branches[0][0]],
            }
            for row in rows
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=loaded.model,
            processing_class=loaded.tokenizer,
            args=SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=batch,
                learning_rate=RATE,
                max_steps=steps,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                bf16=True,
                gradient_checkpointing=False,
                max_length=None,
                disable_tqdm=True,
            ),
            train_dataset=data,
            peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[Clock()],
        )
        trainer.train()
        trainer.model.unload()
    loaded.model.requires_grad_(False).eval()
    return times, losses


def peak_flops() -> float:
    """Return the rate of a large bf16 matrix product here."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        torch.mm(a, a)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(10):
        torch.mm(a, a)
    torch.cuda.synchronize()
    return 10 * 2 * 8192**3 / (time.perf_counter() - start)


def step_flops(name: str, shape: tuple[int, int, int], batch: int, shares: bool) -> float:
    """Return the operations of one LoRA step: no gradients of frozen weights, logits of scored tokens alone."""
    s = SHAPES[name]
    width = s["hidden"] // s["heads"]
    sizes = [
        (s["hidden"], s["heads"] * width),
        (s["hidden"], s["groups"] * width),
        (s["hidden"], s["groups"] * width),
        (s["heads"] * width, s["hidden"]),
        (s["hidden"], s["inner"]),
        (s["hidden"], s["inner"]),
        (s["inner"], s["hidden"]),
    ]
    linear = s["layers"] * sum(a * b for a, b in sizes)
    lora = s["layers"] * sum(RANK * (a + b) for a, b in sizes)
    own = batch * (shape[1] + shape[2])
    tokens = own + (shape[0] if shares else batch * shape[0])
    context = shape[0] + (shape[1] + shape[2]) / 2
    attention = s["layers"] * 4 * s["hidden"] * (own * context + (tokens - own) * shape[0] / 2)
    return tokens * (4 * linear + 6 * lora) + batch * shape[2] * 4 * s["words"] * s["hidden"] + 3 * attention


def training(loaded: LoadedModel, cases: Sequence[tuple[str, int]], rounds: int, steps: int) -> list[dict[str, Any]]:
    """Measure every case, ours and TRL by turns."""
    peak, found = peak_flops(), list[dict[str, Any]]()
    for kind, batch in cases:
        shape = COMPILED if kind == "compiled" else PLAIN
        rows = make_rows(shape, batch)
        seconds: dict[str, list[float]] = {"limbeck": [], "TRL": []}
        first: dict[str, float] = {}
        memory: dict[str, float] = {}
        for _ in range(rounds):
            for way, run in {"limbeck": train_ours, "TRL": train_trl}.items():
                torch.cuda.reset_peak_memory_stats()
                try:
                    times, losses = run(loaded, rows, batch, steps)
                except ImportError as error:
                    print(f"{way}: {error}", flush=True)
                    continue
                seconds[way] += times[3:]
                first[way] = losses[0]
                memory[way] = torch.cuda.max_memory_allocated() / 2**30
                gc.collect()
                torch.cuda.empty_cache()
        ours = statistics.median(seconds["limbeck"])
        one: dict[str, Any] = {"model": loaded.name, "case": kind, "batch": batch, "first_loss": first}
        one["examples_per_s"] = {way: round(batch / statistics.median(s), 1) for way, s in seconds.items() if s}
        one["peak_gb"] = {way: round(x, 2) for way, x in memory.items()}
        one["mfu"] = round(step_flops(loaded.name, shape, batch, True) / ours / peak, 3)
        if seconds["TRL"]:
            one["ratio"] = round(statistics.median(seconds["TRL"]) / ours, 2)
        print(json.dumps(one), flush=True)
        found.append(one)
    return found


def prompts(engine: TorchEngine, n: int) -> list[tuple[tuple[str, str], ...]]:
    """Return prompts of about 480 shared tokens and inputs of 32."""
    rng = random.Random(0)
    words = [
        "my",
        "the",
        "card",
        "was",
        "it",
        "bank",
        "please",
        "help",
        "why",
        "money",
        "today",
        "sent",
        "not",
        "still",
    ]
    system = ("system", "Answer with one label: " + "; ".join(LABELS) + ". " + " ".join(rng.choices(words, k=430)))
    return [(system, ("user", " ".join(rng.choices(words, k=28)))) for _ in range(n)]


def timed(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Return each way's median rate of what it counts, after one round of warm-up; a way that fails is left out."""
    rates: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        for name, run in ways.items():
            if turn and name not in rates:
                continue
            try:
                torch.cuda.synchronize()
                start = time.perf_counter()
                count = run()
                torch.cuda.synchronize()
                rates.setdefault(name, [])
                if turn:
                    rates[name].append(count / (time.perf_counter() - start))
            except Exception as error:  # a peer's failure is a result
                print(f"{name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
    return {name: round(statistics.median(found), 1) for name, found in rates.items() if found}


def inference(loaded: LoadedModel, calls: int, rounds: int) -> list[dict[str, Any]]:
    """Measure writing and label scoring with so many concurrent calls."""
    engine, model = TorchEngine(loaded), cast(Any, loaded.model)
    engine.chat.stop_ids = frozenset()
    asked = prompts(engine, calls)
    ids = [list(engine.chat.prompt(messages).ids) for messages in asked]
    longest = max(map(len, ids))
    padded = torch.tensor([[0] * (longest - len(row)) + row for row in ids], device="cuda")
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids], device="cuda")

    def ours() -> int:
        found = engine.generate_many([GenerateRequest(messages, max_tokens=NEW_TOKENS) for messages in asked])
        return sum(one.tokens_out for one in found)

    def sampled() -> int:
        requests = [
            GenerateRequest(messages, max_tokens=NEW_TOKENS, temperature=0.8, seed=seed)
            for seed, messages in enumerate(asked)
        ]
        return sum(one.tokens_out for one in engine.generate_many(requests))

    def fixed(tokens: int) -> dict[str, Any]:
        return {"min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}

    def generate(tokens: int) -> int:
        with torch.inference_mode():
            out: Any = model.generate(padded, attention_mask=mask, max_new_tokens=tokens, **fixed(tokens))
        return (out.shape[1] - longest) * calls

    def continuous() -> int:
        from transformers import GenerationConfig

        config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0)
        found = model.generate_batch(ids, generation_config=config, persistent_manager=True)
        return sum(len(one.generated_tokens) for one in found.values())

    def scored() -> int:
        return len(engine.score_many([ScoreRequest(messages, "", LABELS) for messages in asked]))

    writing: dict[str, Callable[[], int]] = {
        "limbeck": ours,
        "limbeck, sampled": sampled,
        "generate": lambda: generate(NEW_TOKENS),
        "generate_batch": continuous,
    }
    labels: dict[str, Callable[[], int]] = {"limbeck": scored, "generate": lambda: generate(4) // 4}
    found: list[dict[str, Any]] = []
    for what, ways in (("tokens written a second", writing), ("rows labelled a second", labels)):
        rates = timed(ways, rounds)
        peers = [rate for way, rate in rates.items() if not way.startswith("limbeck")]
        one: dict[str, Any] = {"model": loaded.name, "case": what, "calls": calls, "rates": rates}
        one["ratio"] = round(rates["limbeck"] / max(peers), 2) if peers and "limbeck" in rates else None
        print(json.dumps(one), flush=True)
        found.append(one)
    engine.close()
    if hasattr(model, "_cached_continuous_batching_manager"):
        model.destroy_cached_continuous_batching_manager()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--parts", nargs="+", choices=["training", "inference"], default=["training", "inference"])
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--calls", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--tokenizer", default="", help="a folder with a tokenizer (default: the embedded model's)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: this benchmark needs one")
    if options.tokenizer:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    else:
        from limbeck.engine import load_model

        tokenizer = load_model("embedded").tokenizer
    device = torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}", flush=True)
    found: list[dict[str, Any]] = []
    for name in options.shapes:
        loaded = build(name, tokenizer)
        if "training" in options.parts:
            cases = [("compiled", batch) for batch in options.batches] + [("plain", max(options.batches))]
            found += training(loaded, cases, options.rounds, options.steps)
        if "inference" in options.parts:
            for calls in options.calls:
                found += inference(loaded, calls, options.rounds)
        del loaded
        gc.collect()
        torch.cuda.empty_cache()
    print(json.dumps({"device": device, "torch": torch.__version__, "results": found}))


if __name__ == "__main__":
    main()
