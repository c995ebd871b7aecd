# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from limbeck.engine import GenerateRequest, LoadedModel, ScoreRequest, TorchEngine
from limbeck.engine.loading import quiet
from limbeck.errors import ModelError, PromptTooLong

SYSTEM = ("system", "label the text as spam or ham")
TEXTS = [f"win a free prize now {'the ' * (i % 5)}{i}" for i in range(12)]


def write(text: str) -> GenerateRequest:
    return GenerateRequest((SYSTEM, ("user", text)), max_tokens=6, temperature=0.7, seed=len(text))


def choose(text: str) -> ScoreRequest:
    return ScoreRequest((SYSTEM, ("user", text)), "", ("spam", "ham"))


@pytest.fixture
def engine(tiny_llama: LoadedModel) -> Iterator[TorchEngine]:
    engine = TorchEngine(tiny_llama, max_batch=8)
    yield engine
    engine.close()


def test_many_threads_get_what_one_gets(engine: TorchEngine):
    def both(text: str) -> tuple[str, int]:
        return engine.generate(write(text)).text, engine.score(choose(text)).best

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(both, TEXTS))
    assert [text for text, _ in found] == [g.text for g in engine.generate_many([write(t) for t in TEXTS])]
    assert [best for _, best in found] == [s.best for s in engine.score_many([choose(t) for t in TEXTS])]


def test_a_bad_request_fails_alone(engine: TorchEngine):
    def length(text: str) -> int | str:
        try:
            return engine.generate(write(text)).tokens_in
        except PromptTooLong as error:
            return error.message

    with ThreadPoolExecutor(3) as pool:
        good, bad, other = pool.map(length, ["see you", "the quick " * 2000, "yes"])
    assert isinstance(good, int)
    assert isinstance(other, int)
    assert isinstance(bad, str)
    assert "does not fit" in bad


def test_a_closed_engine_refuses_calls(tiny_llama: LoadedModel):
    engine = TorchEngine(tiny_llama)
    engine.generate(write("yes"))
    engine.close()
    with pytest.raises(ModelError, match="closed"):
        engine.score(choose("yes"))


def test_an_engine_has_its_models_name_and_fingerprint(engine: TorchEngine, tiny_llama: LoadedModel):
    assert (engine.name, engine.fingerprint) == (tiny_llama.name, tiny_llama.fingerprint)


def test_small_limits_change_nothing_but_the_batches(tiny_llama: LoadedModel, engine: TorchEngine):
    narrow = TorchEngine(tiny_llama, max_batch=1, max_batch_tokens=1, prefix_cache_tokens=0)
    asked = [write(text) for text in TEXTS[:4]]
    assert [g.text for g in narrow.generate_many(asked)] == [g.text for g in engine.generate_many(asked)]


def test_a_sliding_window_limits_the_context(fresh_tiny: LoadedModel):
    fresh_tiny.model.config.layer_types = ["full_attention", "sliding_attention"]
    fresh_tiny.model.config.sliding_window = 64
    assert TorchEngine(fresh_tiny).context_tokens == 64
    fresh_tiny.model.config.layer_types = None
    assert TorchEngine(fresh_tiny).context_tokens == 64
    fresh_tiny.model.config.use_sliding_window = False
    assert TorchEngine(fresh_tiny).context_tokens == 1024


def adapted(loaded: LoadedModel) -> LoadedModel:
    import peft

    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    with quiet():
        model: Any = peft.get_peft_model(loaded.model, config)  # pyright: ignore[reportArgumentType]
    return replace(loaded, model=model.eval())


def test_an_adapted_model_runs_as_its_merged_weights_do(fresh_tiny: LoadedModel):
    loaded = adapted(fresh_tiny)
    asked, scored = [write(t) for t in TEXTS[:3]], [choose(t) for t in TEXTS[:3]]
    engine = TorchEngine(loaded)
    texts, scores = engine.generate_many(asked), engine.score_many(scored)
    model: Any = loaded.model
    merged = TorchEngine(replace(loaded, model=model.merge_and_unload().eval()))
    assert [g.text for g in merged.generate_many(asked)] == [g.text for g in texts]
    for one, other in zip(merged.score_many(scored), scores, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)


def test_forgetting_is_needed_and_enough_after_the_weights_changed(fresh_tiny: LoadedModel):
    engine = TorchEngine(fresh_tiny)
    engine.score_many([choose("yes")])
    with torch.no_grad():
        for weight in fresh_tiny.model.parameters():
            weight.mul_(1.1)
    engine.forget()
    (found,) = engine.score_many([choose("yes")])
    (expected,) = TorchEngine(fresh_tiny).score_many([choose("yes")])
    assert found.logprobs == expected.logprobs


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_scores_as_the_cpu_does(fresh_tiny: LoadedModel):
    scored = [choose(text) for text in TEXTS]
    expected = TorchEngine(fresh_tiny).score_many(scored)
    device = torch.device("cuda")
    model: Any = fresh_tiny.model
    engine = TorchEngine(replace(fresh_tiny, model=model.to(device), device=device))
    for one, other in zip(engine.score_many(scored), expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-2)
    assert len(engine.generate_many([write(text) for text in TEXTS])) == len(TEXTS)
