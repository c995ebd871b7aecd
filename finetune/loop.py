"""LoRA fine-tuning (Hu et al. 2021) in one loop: seeded, interruptible, checkpointed by a task metric."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar, cast

import torch

from limbeck.engine.cascade import supports_sharing
from limbeck.engine.compute import on_compute_thread
from limbeck.engine.encoder import EncoderClassifier
from limbeck.engine.seq2seq import is_seq2seq, seq2seq_context
from limbeck.errors import InputError
from limbeck.finetune.adapters import attach_lora, base_in, base_of, detach_lora, has_adapter
from limbeck.finetune.graphs import StepGraphs
from limbeck.finetune.objectives import Objective, find_objective, is_sum
from limbeck.finetune.rows import TrainRow, check_lengths
from limbeck.finetune.step import StepLoss, accumulate_gradients

if TYPE_CHECKING:
    from limbeck.engine.loading import LoadedModel

Row = TypeVar("Row")


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults are the LoRA recipe that holds across tasks: sweep `lr`, little else.

    `epochs` may be fractional; `max_steps` overrides it. `batch_size` is rows an optimizer step, whatever
    fits in memory at once: `pack_tokens` bounds that (None: 2,048 tokens, 16,384 on a GPU). `warmup` is a share of the
    steps. `normalize` and `loss_per` name the objective: ("vocabulary", "row") sums a row's token losses, right for
    labels and distributions over them; ("vocabulary", "token") averages over tokens, right for long outputs;
    ("labels", "row") is a softmax over the row's candidates. `dtype` converts the frozen base ("float32",
    "bfloat16"), what it was is held in main memory until training has ended well; "auto" keeps it as loaded.
    LoRA weights and optimizer are fp32 always.
    """

    lr: float = 5e-4
    epochs: float = 4.0
    max_steps: int | None = None
    batch_size: int = 16
    rank: int = 16
    alpha: int = 32
    targets: str | tuple[str, ...] = "all-linear"
    seed: int = 0
    warmup: float = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    pack_tokens: int | None = None
    share_prefix: bool = True
    dtype: str = "auto"
    normalize: str = "vocabulary"
    loss_per: str = "row"

    def pass_tokens(self, device: torch.device) -> int:
        """Return how many tokens of rows one pass may have on this device."""
        return self.pack_tokens or (16384 if device.type == "cuda" else 2048)

    def steps(self, rows: int) -> int:
        """Return how many optimizer steps training on that many rows takes.

        >>> TrainConfig(epochs=2, batch_size=16).steps(40)
        5
        """
        if self.max_steps is not None:
            return self.max_steps
        return max(1, round(rows * self.epochs / min(self.batch_size, rows)))

    def rate(self, step: int, total: int) -> float:
        """Return the learning rate of step 0 to total - 1.

        >>> [round(TrainConfig(lr=1.0, warmup=0.5).rate(i, 4), 2) for i in range(4)]
        [0.5, 1.0, 1.0, 0.5]
        """
        warm = math.ceil(self.warmup * total) if self.warmup else 0
        if step < warm:
            return self.lr * (step + 1) / warm
        left = (total - step) / max(1, total - warm)
        if self.schedule == "cosine":
            return self.lr * (1 - math.cos(math.pi * left)) / 2
        return self.lr * left if self.schedule == "linear" else self.lr


class Refresh(Protocol):
    """Makes the rows of a step anew from the student as it is: targets that follow it, or answers of its own."""

    def __call__(self, step: int, total: int, rows: Sequence[TrainRow], student: LoadedModel) -> Sequence[TrainRow]:
        """Return the rows to train on in step 0 to total - 1, in place of the given ones."""
        ...


@dataclass(frozen=True)
class Progress:
    """Where a training run is after `step` of `total` steps; times in seconds."""

    step: int
    total: int
    loss: float
    tokens_per_second: float
    rows_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class TrainResult:
    """A trained student: `loaded` holds the PEFT model in eval mode with the best checkpoint's weights.

    `losses` has one value a step (nats), `scores` (step, dev score) pairs, `best_step` is the step whose
    weights are kept, `tokens` counts the tokens forwarded, `rows` the rows seen; `adapter_hash` names the
    weights.
    """

    loaded: LoadedModel
    config: TrainConfig
    losses: tuple[float, ...]
    scores: tuple[tuple[int, float], ...]
    best_step: int
    seconds: float
    peak_mb: float
    tokens: int
    rows: int
    adapter_hash: str

    def save(self, path: Path) -> Path:
        """Write the adapter in PEFT's format (safetensors), loadable by plain peft; return the folder."""
        path.mkdir(parents=True, exist_ok=True)
        cast(Any, self.loaded.model).save_pretrained(str(path))
        return path

    def unload(self) -> None:
        """Take the LoRA layers out again: the base model is as before training, in the dtype it was trained in."""
        model: Any = self.loaded.model
        detach_lora(model.encoder if isinstance(model, EncoderClassifier) else model)


def batches(rows: int, config: TrainConfig) -> Iterator[list[int]]:
    """Yield the row numbers of each step: seeded epochs one after the other, cut into full batches."""
    order = torch.Generator().manual_seed(config.seed)
    size, pool = min(config.batch_size, rows), list[int]()
    while True:
        while len(pool) < size:
            pool += torch.randperm(rows, generator=order).tolist()
        batch, pool = pool[:size], pool[size:]
        yield batch


def _trainable(model: Any) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _snapshot(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().to("cpu", copy=True) for name, p in _trainable(model).items()}


def _restore(model: Any, weights: dict[str, torch.Tensor]) -> None:
    for name, parameter in _trainable(model).items():
        parameter.data.copy_(weights[name])


def adapter_hash(model: Any) -> str:
    """Return 16 hex digits that name the model's trainable weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_snapshot(model).items()):
        digest.update(name.encode())
        digest.update(tensor.float().numpy().tobytes())
    return digest.hexdigest()[:16]


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory in MB: of the device on CUDA, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def context_tokens(loaded: LoadedModel) -> int:
    """Return how many tokens a training row may have; of an encoder-decoder less the end of its prompt."""
    model: Any = loaded.model
    return (
        seq2seq_context(model.config) - 1
        if is_seq2seq(model)
        else int(model.config.get_text_config().max_position_embeddings)
    )


def _check(loaded: LoadedModel, rows: Sequence[TrainRow], config: TrainConfig) -> None:
    text_config = cast(Any, loaded.model).config.get_text_config()
    check_lengths(rows, context_tokens(loaded))
    if any(row.weight <= 0 for row in rows):
        raise InputError("a training row has a weight of zero or less", valid="weights above 0")
    if not supports_sharing(text_config):
        raise InputError(
            f"{loaded.name}: its attention (sliding windows or capped logits) cannot be trained here",
            valid="models with plain full attention, such as Llama, SmolLM2, Qwen2.5 or Qwen3",
        )


class Run(Generic[Row]):
    """The state of one training run: model, optimizer, losses.

    `loaded.model` carries what is trained; `accumulate(rows)` adds the gradients of the rows' mean loss to it.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        rows: Sequence[Row],
        config: TrainConfig,
        accumulate: Callable[[Sequence[Row]], StepLoss],
    ) -> None:
        self.rows, self.config, self.total = rows, config, config.steps(len(rows))
        self.accumulate = accumulate
        self.loaded, self.model = loaded, cast(Any, loaded.model)
        self.parameters = list(_trainable(self.model).values())
        fused = True if loaded.device.type == "cuda" else None
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
        self.losses: list[float] = []
        self.tokens = 0

    def step(self, rows: Sequence[Row]) -> None:
        """Take one optimizer step on these rows."""
        config = self.config
        done = self.accumulate(rows)
        if config.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, config.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate(len(self.losses), self.total)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(done.loss)
        self.tokens += done.tokens


def _start(loaded: LoadedModel, rows: Sequence[TrainRow], config: TrainConfig, objective: Objective) -> Run[TrainRow]:
    """Return a run on a language model with LoRA layers."""
    model: Any = attach_lora(loaded.model, config)
    model.eval()  # no dropout: the shared prefix has one forward pass for all rows
    on_gpu = loaded.device.type == "cuda"
    accumulate = partial(
        accumulate_gradients,
        base_of(model),
        objective=objective,
        pack_tokens=config.pass_tokens(loaded.device),
        share_prefix=config.share_prefix,
        graphs=StepGraphs(base_of(model), objective) if on_gpu and is_sum(objective) else None,
    )
    return Run(replace(loaded, model=model), rows, config, accumulate)


def train(
    loaded: LoadedModel,
    rows: Sequence[TrainRow],
    config: TrainConfig,
    *,
    evaluate: Callable[[int, LoadedModel], float] | None = None,
    eval_every: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    objective: Objective | None = None,
    refresh: Refresh | None = None,
) -> TrainResult:
    """Train LoRA layers on the rows and return the student; `loaded.model` carries the layers afterwards.

    `objective` stands for the one that the configuration names, `refresh` makes every step's rows anew.

    `evaluate(step, student)` is called every `eval_every` steps (default: once an epoch) and after the last
    one; the checkpoint of its highest finite value is kept, the later one of equals. Without one the last
    weights are. The same seed gives the same weights on the same machine. Whatever interrupts training, Ctrl-C
    included, leaves the base model without LoRA layers and as it was. Raises `InputError` for no rows, rows
    longer than the context, models whose attention is not plain and a base that carries another training's layers.
    """
    _check(loaded, rows, config)
    objective = objective or find_objective(config.normalize, config.loss_per)
    fresh = not has_adapter(loaded.model)
    if loaded.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(loaded.device)
    try:
        with base_in(loaded.model, config.dtype):
            run = on_compute_thread(_start, loaded, rows, config, objective)
            return take_steps(run, evaluate, eval_every, progress, refresh)
    except BaseException:
        if fresh:
            detach_lora(loaded.model)
        raise


def take_steps(
    run: Run[Row],
    evaluate: Callable[[int, LoadedModel], float] | None = None,
    eval_every: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    refresh: Callable[[int, int, Sequence[Row], LoadedModel], Sequence[Row]] | None = None,
) -> TrainResult:
    """Take all steps of a run and return the student; the arguments are those of `train`."""
    eval_every = eval_every or max(1, len(run.rows) // run.config.batch_size)
    config, started, evaluating = run.config, time.perf_counter(), 0.0
    best, best_step, best_score, scores = None, run.total, -math.inf, list[tuple[int, float]]()
    size = min(config.batch_size, len(run.rows))
    for step, batch in zip(range(1, run.total + 1), batches(len(run.rows), config), strict=False):
        given: Sequence[Row] = [run.rows[i] for i in batch]
        if refresh is not None:
            given = refresh(step - 1, run.total, given, run.loaded)
        on_compute_thread(run.step, given)
        if progress is not None:
            seconds = time.perf_counter() - started - evaluating
            left = seconds / step * (run.total - step)
            loss, speed = run.losses[-1], run.tokens / seconds
            progress(Progress(step, run.total, loss, speed, step * size / seconds, left))
        if evaluate is not None and (step % eval_every == 0 or step == run.total):
            before = time.perf_counter()
            score = evaluate(step, run.loaded)
            scores.append((step, score))
            evaluating += time.perf_counter() - before
            if math.isfinite(score) and score >= best_score:
                best, best_step, best_score = on_compute_thread(_snapshot, run.model), step, score
    if best is not None:
        on_compute_thread(_restore, run.model, best)
    digest = on_compute_thread(adapter_hash, run.model)
    run.model.requires_grad_(False)
    return TrainResult(
        loaded=replace(run.loaded, fingerprint=f"{run.loaded.fingerprint}+{digest}"),
        config=config,
        losses=tuple(run.losses),
        scores=tuple(scores),
        best_step=best_step,
        seconds=time.perf_counter() - started,
        peak_mb=peak_memory_mb(run.loaded.device),
        tokens=run.tokens,
        rows=run.total * size,
        adapter_hash=digest,
    )
