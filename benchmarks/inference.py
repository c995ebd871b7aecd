"""Label scoring against generation, side by side in one process: python benchmarks/inference.py

Shape: a shared prompt of 480 tokens, inputs of 32, closed sets of 7 labels (1-3 tokens) and 77 (about 4).
Each round runs every way once, so that a busy machine slows all of them; the figure is the median round.
The table goes to stdout, and as its last line one JSON object.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from limbeck.engine import GenerateRequest, LoadedModel, ScoreRequest, Scores, TorchEngine, load_model, scoring

SEVEN = ("refund", "card lost", "transfer", "top up", "exchange rate", "new account", "verify identity")
TOPICS = ("card", "transfer", "cash", "top up", "exchange", "account", "identity")
EVENTS = (
    "not arrived", "declined", "fee charged", "pending too long", "limit reached", "wrong amount",
    "how to start", "cancelled by mistake", "not recognised", "supported countries", "reverted twice",
)  # fmt: skip
MANY = tuple(f"{topic} {event}" for topic in TOPICS for event in EVENTS)
WORDS = ("my", "the", "card", "was", "it", "bank", "please", "help", "why", "money", "today", "sent", "not", "still")
PROMPT_TOKENS, INPUT_TOKENS, NEW_TOKENS = 480, 32, 4


def fitting(engine: TorchEngine, start: str, tokens: int, rng: random.Random) -> str:
    """A text of exactly `tokens` tokens that begins with `start`."""
    text = start
    while len(engine.chat.ids(text)) < tokens:
        text += " " + rng.choice(WORDS)
    return engine.chat.text(engine.chat.ids(text)[:tokens])


def conversations(engine: TorchEngine, labels: Sequence[str], rows: int) -> list[tuple[tuple[str, str], ...]]:
    """`rows` prompts that share their first 480 tokens and end in an input of 32 tokens."""
    rng = random.Random(0)
    start = f"Answer with one label. Labels: {'; '.join(labels)}. Examples:"
    overhead = engine.count_tokens((("system", ""), ("user", ""))) - 4
    system = ("system", fitting(engine, start, PROMPT_TOKENS - overhead, rng))
    return [(system, ("user", fitting(engine, "I", INPUT_TOKENS - 4, rng))) for _ in range(rows)]


def uncached(loaded: LoadedModel, engine: TorchEngine, prompts: Sequence[Any], batch: int = 8) -> None:
    """`generate` of transformers over the whole prompts, batches of eight, left-padded."""
    ids = [list(engine.chat.prompt(messages).ids) for messages in prompts]
    model: Any = loaded.model
    for start in range(0, len(ids), batch):
        part = ids[start : start + batch]
        longest = max(map(len, part))
        padded = torch.tensor([[0] * (longest - len(row)) + row for row in part], device=loaded.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in part], device=loaded.device)
        model.generate(
            padded,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )


def score_whole(engine: TorchEngine, requests: Sequence[ScoreRequest]) -> list[Scores]:
    """Score with the whole trie in one pass, however large."""
    kept = scoring.WHOLE_NODES
    scoring.WHOLE_NODES = 100_000
    try:
        return engine.score_many(requests)
    finally:
        scoring.WHOLE_NODES = kept


def agreement(engine: TorchEngine, requests: Sequence[ScoreRequest]) -> int:
    """The number of rows whose best label is the same by the search and by the whole trie."""
    found, whole = engine.score_many(requests), score_whole(engine, requests)
    return sum(a.best == b.best for a, b in zip(found, whole, strict=True))


def measure(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median seconds of each way; every round runs all of them, after one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    loaded = load_model(options.model)
    engine = TorchEngine(loaded)
    few = conversations(engine, SEVEN, options.rows)
    many = conversations(engine, MANY, options.rows)
    seven = [ScoreRequest(messages, "", SEVEN) for messages in few]
    searched = [ScoreRequest(messages, "", MANY) for messages in many]
    texts = [GenerateRequest(messages, max_tokens=NEW_TOKENS) for messages in few]
    seconds = measure(
        {
            "uncached generate": lambda: uncached(loaded, engine, few),
            "cached generate": lambda: engine.generate_many(texts),
            "score 7": lambda: engine.score_many(seven),
            "score 77, best first": lambda: engine.score_many(searched),
            "score 77, whole": lambda: score_whole(engine, searched),
        },
        options.rounds,
    )
    agree = agreement(engine, searched)
    # In bf16 rounding decides between near ties, whichever way a pack falls out; fp32 shows the search itself.
    exact = TorchEngine(load_model(options.model, dtype="float32"))
    agree_fp32 = agreement(exact, [ScoreRequest(m, "", MANY) for m in conversations(exact, MANY, options.rows)])
    rates = {name: options.rows / value for name, value in seconds.items()}
    base = rates["uncached generate"]
    print(f"{'way':24}{'examples/s':>12}{'x uncached':>12}")
    for name, rate in rates.items():
        print(f"{name:24}{rate:12.2f}{rate / base:12.2f}")
    result = {
        "model": options.model,
        "dtype": str(loaded.dtype),
        "device": str(loaded.device),
        "threads": torch.get_num_threads(),
        "rows": options.rows,
        "rounds": options.rounds,
        "examples_per_s": {name: round(rate, 3) for name, rate in rates.items()},
        "score7_over_uncached": round(rates["score 7"] / base, 2),
        "score7_over_cached": round(rates["score 7"] / rates["cached generate"], 2),
        "score77_over_cached": round(rates["score 77, best first"] / rates["cached generate"], 2),
        "search_over_whole": round(rates["score 77, best first"] / rates["score 77, whole"], 2),
        "same_argmax_at_77_fp32": agree_fp32 == options.rows,
        "same_argmax_at_77_rows": f"{agree} of {options.rows}",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
