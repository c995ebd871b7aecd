"""Which model names stand for weights on this machine."""

from __future__ import annotations

LOCAL_NAMES = "embedded, gguf:PATH, hf:NAME_OR_PATH"
ENCODER_NAMES = "encoder, encoder:NAME_OR_PATH"


def is_encoder(name: str) -> bool:
    """Return whether a model of this name is a sentence encoder, which answers closed label sets alone.

    >>> is_encoder("encoder"), is_encoder("encoder:models/minilm"), is_encoder("embedded")
    (True, True, False)
    """
    kind, _, rest = name.partition(":")
    return name == "encoder" or (kind == "encoder" and bool(rest))


def is_local(name: str) -> bool:
    """Return whether a model of this name runs in this process.

    >>> is_local("gguf:teacher.gguf"), is_local("openai/gpt-5-mini"), is_local("hf:")
    (True, False, False)
    """
    kind, _, rest = name.partition(":")
    return name == "embedded" or (kind in ("hf", "gguf") and bool(rest)) or is_encoder(name)
