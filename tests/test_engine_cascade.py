"""Which models can share a prefix, and that padding and length blocks change nothing."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Gemma2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from limbeck.engine.cascade import supports_sharing


@pytest.mark.parametrize(
    ("config", "supported"),
    [
        (LlamaConfig(), True),
        (Qwen2Config(), True),
        (Qwen3Config(), True),
        (MistralConfig(sliding_window=None), True),
        (MistralConfig(sliding_window=4096), False),
        (Qwen2Config(use_sliding_window=True, max_window_layers=1), False),
        (Gemma2Config(), False),
    ],
)
def test_only_plain_full_attention_is_shared(config: Any, supported: bool) -> None:
    assert supports_sharing(config) is supported
