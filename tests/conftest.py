"""Models for the tests: the embedded one, and tiny random ones that compute the same in milliseconds."""
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import os

# Before anything imports the hub's client, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from limbeck.engine import LoadedModel
    from limbeck.reproduce.setting import Setting

# Processes that run side by side compute on a core each: their threads would wait for one another.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

# Machines are shared: how long one example takes says nothing about the code.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = (
    "the quick brown fox jumps over the lazy dog; a card was lost or stolen, the transfer is pending; "
    "yes no maybe spam ham win a free prize now see you at five label text system user assistant "
) * 4


def tiny_tokenizer() -> Any:
    """A byte-level BPE of 400 tokens with ChatML turns, trained here on a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([WORDS], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def tiny_model(kind: str = "llama", seed: int = 0) -> LoadedModel:
    """A random fp32 model of two layers with grouped queries; `kind` is "llama" or "qwen2"."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    from limbeck.engine import LoadedModel

    tokenizer = tiny_tokenizer()
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        # Far from uniform answers: a wrong mask then changes the argmax too.
        "initializer_range": 0.4,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "attn_implementation": "sdpa",
    }
    torch.manual_seed(seed)
    if kind == "qwen2":
        model: Any = Qwen2ForCausalLM(Qwen2Config(**shape))
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape))
    return LoadedModel(
        model.eval(), tokenizer, f"tiny-{kind}", f"tiny-{kind}-{seed}", torch.device("cpu"), torch.float32
    )


def tiny_encoder(folder: Path) -> Path:
    """Write a random BERT of two layers with its tokenizer into a folder, as `encoder:PATH` takes it."""
    import torch
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel

    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"cls_token": "<|im_start|>", "sep_token": "<|im_end|>"})
    ids = [("<|im_start|>", tokenizer.cls_token_id), ("<|im_end|>", tokenizer.sep_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=ids
    )
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": tokenizer.pad_token_id,
    }
    BertModel(BertConfig(**shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random sentence encoder."""
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def tiny_t5(seed: int = 0) -> LoadedModel:
    """A random fp32 encoder-decoder of two layers each."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    from limbeck.engine import LoadedModel

    tokenizer = tiny_tokenizer()
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "d_model": 48,
        "d_kv": 12,
        "d_ff": 96,
        "num_layers": 2,
        "num_heads": 4,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
        # Far from uniform answers: a wrong mask then changes the argmax too.
        "initializer_factor": 2.0,
    }
    torch.manual_seed(seed)
    model: Any = T5ForConditionalGeneration(T5Config(**shape))
    return LoadedModel(model.eval(), tokenizer, "tiny-t5", f"tiny-t5-{seed}", torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def tiny_llama() -> LoadedModel:
    """A random tiny Llama in fp32 with its own tokenizer; do not change it."""
    return tiny_model("llama")


@pytest.fixture(scope="session")
def tiny_qwen2() -> LoadedModel:
    """A random tiny Qwen2 (biases in the attention) in fp32; do not change it."""
    return tiny_model("qwen2")


@pytest.fixture
def fresh_t5() -> LoadedModel:
    """A tiny encoder-decoder of this test's own."""
    return tiny_t5()


@pytest.fixture
def fresh_tiny() -> LoadedModel:
    """A tiny Llama of this test's own, to train or to wrap."""
    return tiny_model("llama")


@pytest.fixture
def setting(fresh_tiny: LoadedModel, tmp_path: Path) -> Setting:
    """A reproduction on a tiny model of its own, told to nobody."""
    from limbeck.reproduce.setting import Setting

    model: Any = fresh_tiny.model
    # 400 tokens spell prompts almost by the letter.
    model.config.max_position_embeddings = 16384
    model.save_pretrained(tmp_path / "tiny")
    tokenizer: Any = fresh_tiny.tokenizer
    tokenizer.save_pretrained(tmp_path / "tiny")
    return Setting(tmp_path, f"hf:{tmp_path / 'tiny'}", tell=lambda text: None)


@pytest.fixture(scope="session")
def embedded() -> LoadedModel:
    """SmolLM2-135M-Instruct in fp32 on the CPU; do not change it."""
    from limbeck.engine import embedded_path, load_model
    from limbeck.errors import ModelError

    try:
        embedded_path()
    except ModelError as error:
        pytest.skip(f"{error.message}: {error.hint}")
    return load_model("embedded", device="cpu", dtype="fp32")


@pytest.fixture(scope="session")
def teacher() -> str:
    """The name of the 1.5B teacher; skips where the machine has none."""
    path = Path.home() / ".cache/limbeck/qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
    if not path.is_file():
        pytest.skip(f"no teacher at {path}")
    return f"gguf:{path}"
