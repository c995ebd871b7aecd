"""Local weights: names, llama.cpp on the embedded GGUF file, transformers, shared backends."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest

from limbeck.engine import embedded_path
from limbeck.engine.requests import GenerateRequest, ScoreRequest
from limbeck.errors import InputError, ModelError, PromptTooLong
from limbeck.ledger import Ledger
from limbeck.models import LM, Budget, ScoresUnavailable, UnknownPriceWarning, connect
from limbeck.models import llamacpp as llamacpp_module
from limbeck.models.llamacpp import LlamaCppBackend
from limbeck.models.torch_engine import TorchBackend


@pytest.fixture(scope="module")
def gguf() -> Path:
    try:
        return embedded_path()
    except ModelError as error:
        pytest.skip(f"{error.message}: {error.hint}")


@pytest.fixture(scope="module")
def llama(gguf: Path) -> LlamaCppBackend:
    return LlamaCppBackend(gguf, context_tokens=256, slots=2, threads=2)


def request(text: str, **options: object) -> GenerateRequest:
    return GenerateRequest((("user", text),), **{"max_tokens": 6, **options})  # pyright: ignore[reportArgumentType]


# -- llama.cpp -----------------------------------------------------------------------------------------------


def test_a_text_is_written_and_counted(llama: LlamaCppBackend):
    made = llama.generate(request("Name a colour."))
    assert made.text
    assert made.tokens_in > 5
    assert (made.tokens_out, made.finish_reason) == (6, "length")
    again = llama.generate(request("Name a colour."))
    assert (again.text, again.tokens_in) == (made.text, made.tokens_in)
    assert again.cached_tokens > 0


def test_an_answer_goes_on_from_its_beginning_and_ends_at_a_stop(llama: LlamaCppBackend):
    prefix = "[[ ## colour ## ]]\nred, "
    made = llama.generate(request("Name colours.", assistant_prefix=prefix, max_tokens=20, stop=(",",)))
    assert made.text
    assert not made.text.startswith("[[")
    assert "," not in made.text


def test_sampling_follows_the_seed(llama: LlamaCppBackend):
    def text(seed: int) -> str:
        return llama.generate(request("Tell a story.", temperature=1.5, seed=seed, max_tokens=8)).text

    assert len({text(seed) for seed in range(4)}) > 1
    assert text(1) == text(1)


def test_threads_share_the_slots(llama: LlamaCppBackend):
    texts: dict[int, str] = {}

    def ask(i: int) -> None:
        texts[i] = llama.generate(request(f"Say {i % 2}.")).text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 6


def test_a_long_prompt_and_bad_text_are_named(llama: LlamaCppBackend):
    with pytest.raises(PromptTooLong, match=r"exceeds the available context size(?s:.*)at most 256 tokens"):
        llama.generate(request("a " * 400))
    with pytest.raises(ModelError, match="cannot read this prompt"):
        llama.generate(request("bad \ud800"))


def test_closed_sets_are_scored_with_the_dequantized_weights(llama: LlamaCppBackend):
    asked = ScoreRequest((("user", "Is the sky blue? Answer yes or no."),), "", ("yes", "no"))
    scores = llama.score(asked)
    assert scores.exact
    assert sum(scores.probabilities()) == pytest.approx(1)


def test_scores_are_refused_where_the_memory_is_too_small(gguf: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llamacpp_module, "_free_memory", lambda: 1e6)
    backend = LlamaCppBackend(gguf)
    assert not backend.supports_score
    with pytest.raises(ScoresUnavailable, match="gives no probabilities"):
        LM("gguf:x", backend).score([("user", "x")], candidates=["a", "b"])
    with pytest.raises(ScoresUnavailable, match=r"needs 0\.4 GB of memory"):
        backend.score(ScoreRequest((("user", "x"),), "", ("a", "b")))


def test_a_file_that_is_no_model_is_named(tmp_path: Path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match=r"llama\.cpp cannot load .*broken\.gguf"):
        LlamaCppBackend(broken).generate(request("x"))


def test_llamacpp_says_nothing_on_the_terminal(gguf: Path):
    script = (
        "import sys\n"
        "from limbeck.engine.requests import GenerateRequest\n"
        "from limbeck.models.llamacpp import LlamaCppBackend\n"
        "backend = LlamaCppBackend(sys.argv[1], context_tokens=128, slots=1)\n"
        "backend.generate(GenerateRequest((('user', 'Hi'),), max_tokens=2))\n"
        "print('mine', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(gguf)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "mine\n")


# -- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "gpt-4o", "gguf:", "hf:", "nobody/model", "openai/", "vllm:x"])
def test_an_unknown_name_says_which_kinds_there_are(name: str):
    with pytest.raises(ModelError, match=r"(?s)unknown model.*embedded, gguf:PATH, hf:.*openai.*--api-base"):
        connect(name)


def test_missing_files_and_misplaced_options_are_named(tmp_path: Path):
    with pytest.raises(ModelError, match=r"no model file .*none\.gguf"):
        connect(f"gguf:{tmp_path}/none.gguf")
    with pytest.raises(ModelError, match="has no --api-base"):
        connect("embedded", api_base="http://localhost:1/v1")
    with pytest.raises(ModelError, match="cannot carry the adapter"):
        connect("openai/gpt-4o", api_base="http://localhost:1/v1", adapter=tmp_path)


def test_any_openai_compatible_server_is_reached_by_its_address(tmp_path: Path):
    lm = connect("somebody/their/model", api_base="http://127.0.0.1:1/v1", temperature=0.5, seed=3)
    assert lm.backend.fingerprint == "openai/http://127.0.0.1:1/v1/their/model"
    assert (lm.kwargs["temperature"], lm.kwargs["seed"]) == (0.5, 3)


def test_an_unknown_price_is_a_named_warning_and_no_dollar_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GROQ_API_KEY", "k")
    with pytest.warns(UnknownPriceWarning, match="groq/nobody"):
        assert connect("groq/nobody").backend.usd_per_token is None
    with (
        Ledger(tmp_path / "l") as ledger,
        pytest.warns(UnknownPriceWarning),
        pytest.raises(ModelError, match="--max-tokens"),
    ):
        connect("groq/nobody", ledger=ledger, budget=Budget(max_usd=1))
    with pytest.raises(InputError, match="needs a ledger"):
        connect("openai/x", api_base="http://localhost:1", budget=Budget(max_usd=1))


def test_lms_of_one_name_share_the_weights_while_one_is_in_use(gguf: Path):
    first, second = connect(f"gguf:{gguf}"), connect(f"gguf:{gguf}", role="student", temperature=1.0)
    assert first.backend is second.backend
    gone = weakref.ref(first.backend)
    del first, second
    gc.collect()
    assert gone() is None


def test_embedded_is_run_by_transformers(gguf: Path):
    lm = connect("embedded", max_tokens=3)
    assert isinstance(lm.backend, TorchBackend)
    assert lm.supports_score
    assert lm.backend.fingerprint.startswith("torch/")
    assert len(lm("Say hello.")) == 1
    assert connect("embedded").backend is lm.backend
    again = LM.load_state({"_dspy_lm_class": "x", "model": "embedded", "max_tokens": 5})
    assert (again.backend, again.kwargs["max_tokens"]) == (lm.backend, 5)
    lm.backend.engine.close()


def test_an_adapter_is_part_of_the_fingerprint(gguf: Path, tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    from limbeck.engine.loading import load_model, quiet

    base = connect("embedded").backend
    loaded = load_model("embedded")
    with quiet():  # peft asks transformers for a name that it will drop
        get_peft_model(loaded.model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(str(tmp_path))
    lm = connect("embedded", adapter=tmp_path, max_tokens=2)
    assert lm.backend.fingerprint != base.fingerprint
    with pytest.raises(ModelError, match="no adapter"):
        connect("embedded", adapter=tmp_path / "none")
