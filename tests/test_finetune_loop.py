"""The training loop: it learns, repeats itself, keeps the best checkpoint and leaves no traces."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from limbeck.engine import LoadedModel
from limbeck.errors import InputError
from limbeck.finetune.loop import Progress, TrainConfig, batches, train
from limbeck.finetune.rows import TrainRow, tokenize_rows
from limbeck.models.adapter import Rendered

TEXTS = {"spam": ("win a free prize", "free card", "free prize now"), "ham": ("see you at five", "at five?")}
CONFIG = TrainConfig(lr=1e-2, max_steps=6, batch_size=4, rank=4, alpha=8)


def make_rows(loaded: LoadedModel) -> list[TrainRow]:
    return tokenize_rows(
        loaded.tokenizer,
        [
            Rendered((("system", "spam or ham?"), ("user", text)), ((label, 1.0),))
            for label, texts in TEXTS.items()
            for text in texts
        ],
    )


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits


def test_training_lowers_the_loss_and_reports_every_step(fresh_tiny: LoadedModel) -> None:
    seen: list[Progress] = []
    rows = make_rows(fresh_tiny)
    result = train(fresh_tiny, rows, replace(CONFIG, max_steps=12), progress=seen.append)
    assert result.losses[-1] < result.losses[0] / 2
    assert [p.step for p in seen] == list(range(1, 13))
    assert [p.loss for p in seen] == list(result.losses)
    assert seen[-1].seconds_left == 0
    assert result.best_step == 12
    assert result.rows == 48
    # Shared prompt once a step: far fewer tokens than the rows are long.
    assert 0 < result.tokens < sum(row.length for row in rows) / len(rows) * 48
    assert result.peak_mb > 0
    assert result.loaded.fingerprint == f"{fresh_tiny.fingerprint}+{result.adapter_hash}"


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(fresh_tiny: LoadedModel) -> None:
    rows, found = make_rows(fresh_tiny), list[tuple[str, tuple[float, ...]]]()
    for seed in (0, 0, 1):
        torch.rand(seed + 1)  # the global generator's state must not matter
        result = train(fresh_tiny, rows, replace(CONFIG, seed=seed))
        found.append((result.adapter_hash, result.losses))
        result.unload()
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]


def test_sharing_the_prefix_gives_the_same_student(fresh_tiny: LoadedModel) -> None:
    rows, losses = make_rows(fresh_tiny), list[tuple[float, ...]]()
    for config in (CONFIG, replace(CONFIG, share_prefix=False), replace(CONFIG, pack_tokens=16)):
        result = train(fresh_tiny, rows, config)
        losses.append(result.losses)
        result.unload()
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[2] == pytest.approx(losses[0], rel=1e-3)


def test_the_best_checkpoint_is_kept_and_of_equals_the_later_one(fresh_tiny: LoadedModel) -> None:
    outputs: dict[int, torch.Tensor] = {}
    scores = {2: 0.5, 4: 0.5, 6: 0.25}

    def evaluate(step: int, student: LoadedModel) -> float:
        outputs[step] = logits(student.model)
        return scores[step]

    result = train(fresh_tiny, make_rows(fresh_tiny), CONFIG, evaluate=evaluate, eval_every=2)
    assert result.best_step == 4
    assert result.scores == tuple(scores.items())
    assert torch.equal(logits(result.loaded.model), outputs[4])
    assert not torch.equal(outputs[4], outputs[6])


def test_without_eval_every_an_epoch_is_one_evaluation(fresh_tiny: LoadedModel) -> None:
    steps: list[int] = []

    def evaluate(step: int, student: LoadedModel) -> float:
        steps.append(step)
        return 0.0

    train(fresh_tiny, make_rows(fresh_tiny), replace(CONFIG, batch_size=2, max_steps=5), evaluate=evaluate)
    assert steps == [2, 4, 5]


def test_the_adapter_loads_with_plain_peft(fresh_tiny: LoadedModel, tmp_path: Path) -> None:
    import peft

    from limbeck.engine.loading import quiet

    base = tmp_path / "base"
    cast(Any, fresh_tiny.model).save_pretrained(base)
    result = train(fresh_tiny, make_rows(fresh_tiny), CONFIG)
    folder = result.save(tmp_path / "adapter")
    assert (folder / "adapter_model.safetensors").is_file()
    with quiet():
        plain = type(cast(Any, fresh_tiny.model)).from_pretrained(base)
        loaded: Any = peft.PeftModel.from_pretrained(plain, str(folder))
    torch.testing.assert_close(logits(loaded.eval()), logits(result.loaded.model))


def test_unloading_leaves_the_base_model_as_it_was(fresh_tiny: LoadedModel) -> None:
    before, attention = logits(fresh_tiny.model), fresh_tiny.model.config._attn_implementation
    result = train(fresh_tiny, make_rows(fresh_tiny), CONFIG)
    assert not torch.equal(logits(result.loaded.model), before)
    result.unload()
    assert torch.equal(logits(fresh_tiny.model), before)
    assert fresh_tiny.model.config._attn_implementation == attention


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_propagates_and_leaves_the_base_model_as_it_was(
    fresh_tiny: LoadedModel, error: type[BaseException]
) -> None:
    before = logits(fresh_tiny.model)

    def stop(progress: Progress) -> None:
        if progress.step == 2:
            raise error

    with pytest.raises(error):
        train(fresh_tiny, make_rows(fresh_tiny), CONFIG, progress=stop)
    assert torch.equal(logits(fresh_tiny.model), before)
    assert not any("lora" in name for name, _ in fresh_tiny.model.named_parameters())


def test_a_trained_model_trains_on_from_its_adapter(fresh_tiny: LoadedModel) -> None:
    rows = make_rows(fresh_tiny)
    first = train(fresh_tiny, rows, replace(CONFIG, max_steps=12))
    second = train(first.loaded, rows, CONFIG)
    assert second.losses[0] < first.losses[0] / 2
    assert second.adapter_hash != first.adapter_hash


def test_bf16_base_keeps_fp32_lora_weights_and_stays_near_fp32(fresh_tiny: LoadedModel) -> None:
    rows = make_rows(fresh_tiny)
    exact = train(fresh_tiny, rows, replace(CONFIG, max_steps=1, dtype="float32"))
    exact.unload()
    rough = train(fresh_tiny, rows, replace(CONFIG, max_steps=1, dtype="bfloat16"))
    assert rough.losses == pytest.approx(exact.losses, rel=0.1)
    dtypes = {("lora" in name, p.dtype) for name, p in rough.loaded.model.named_parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}


def test_a_model_with_biases_and_grouped_queries_trains(tiny_qwen2: LoadedModel) -> None:
    result = train(tiny_qwen2, make_rows(tiny_qwen2), replace(CONFIG, max_steps=8))
    result.unload()
    assert result.losses[-1] < result.losses[0]


def test_sliding_windows_are_refused(fresh_tiny: LoadedModel) -> None:
    cast(Any, fresh_tiny.model.config).sliding_window = 64
    with pytest.raises(InputError, match="sliding windows"):
        train(fresh_tiny, make_rows(fresh_tiny), CONFIG)


def test_rows_beyond_the_context_are_refused(fresh_tiny: LoadedModel) -> None:
    with pytest.raises(InputError, match="row 0 has 2001 tokens, the model's context holds 1024"):
        train(fresh_tiny, [TrainRow((1,) * 2000, (((2,), 1.0),))], CONFIG)


def test_weights_of_zero_are_refused(fresh_tiny: LoadedModel) -> None:
    rows = [replace(row, weight=0.0) for row in make_rows(fresh_tiny)]
    with pytest.raises(InputError, match="weight of zero"):
        train(fresh_tiny, rows, CONFIG)


def test_batches_are_full_seeded_and_visit_every_row_once_an_epoch() -> None:
    order = batches(10, TrainConfig(batch_size=4))
    epochs = [next(order) for _ in range(5)]
    flat = [i for batch in epochs for i in batch]
    assert all(len(batch) == 4 for batch in epochs)
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    again = batches(10, TrainConfig(batch_size=4))
    assert [next(again) for _ in range(5)] == epochs
    assert sorted(next(batches(3, TrainConfig(batch_size=16)))) == [0, 1, 2]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_rate_warms_up_to_its_top_and_falls_towards_zero(schedule: Any) -> None:
    config = TrainConfig(lr=1.0, warmup=0.2, schedule=schedule)
    rates = [config.rate(step, 20) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert 0 < rates[-1] < 0.1
    assert TrainConfig(lr=1.0, warmup=0.0, schedule="constant").rate(19, 20) == 1.0


def test_steps_follow_epochs_rows_and_batch_size() -> None:
    config = TrainConfig(epochs=2.5, batch_size=16)
    assert [config.steps(n) for n in (1, 16, 48, 160)] == [2, 2, 8, 25]
    assert replace(config, max_steps=7).steps(48) == 7


def test_the_loop_does_not_import_dspy() -> None:
    code = "import sys, limbeck.finetune.loop; print('dspy' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_a_bf16_base_under_an_adapter_leaves_its_weights_fp32(fresh_tiny: LoadedModel) -> None:
    rows = make_rows(fresh_tiny)
    first = train(fresh_tiny, rows, CONFIG)
    still = train(first.loaded, rows, replace(CONFIG, max_steps=1, lr=0.0, dtype="bfloat16"))
    assert still.adapter_hash == first.adapter_hash
    dtypes = {("lora" in name, p.dtype) for name, p in still.loaded.model.named_parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}


def test_a_base_that_carries_layers_is_refused_and_keeps_them(fresh_tiny: LoadedModel) -> None:
    rows = make_rows(fresh_tiny)
    first = train(fresh_tiny, rows, CONFIG)
    before = logits(first.loaded.model)
    with pytest.raises(InputError, match="earlier training"):
        train(fresh_tiny, rows, CONFIG)
    assert torch.equal(logits(first.loaded.model), before)


def test_a_start_that_fails_leaves_no_layers(fresh_tiny: LoadedModel) -> None:
    before = logits(fresh_tiny.model)
    with pytest.raises(ValueError, match=r"betas|learning rate"):
        train(fresh_tiny, make_rows(fresh_tiny), replace(CONFIG, lr=-1.0, dtype="bfloat16"))
    assert torch.equal(logits(fresh_tiny.model), before)


def test_a_score_that_is_no_number_is_no_checkpoint(fresh_tiny: LoadedModel) -> None:
    scores = {2: float("nan"), 4: 0.5, 6: 0.25}
    rows = make_rows(fresh_tiny)
    assert train(fresh_tiny, rows, CONFIG, evaluate=lambda step, _: scores[step], eval_every=2).best_step == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_gives_the_cpus_losses(dtype: str) -> None:
    from limbeck.engine import load_model

    config = replace(CONFIG, lr=1e-3, max_steps=3)
    results = {
        device: train(loaded, make_rows(loaded), config)
        for device in ("cpu", "cuda")
        for loaded in [load_model("embedded", device=device, dtype=dtype)]
    }
    assert results["cuda"].losses == pytest.approx(results["cpu"].losses, rel=1e-3 if dtype == "float32" else 0.05)
    assert results["cuda"].peak_mb > 0
