"""How many parameters a model of this machine has, by its files alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

from limbeck.engine.loading import encoder_path
from limbeck.models.kinds import is_encoder

_EMBEDDED = 135e6
_BYTES_PER_PARAMETER_GGUF = 0.63


def local_parameters(name: str) -> float | None:
    """Return a local model's parameters, of a GGUF file by its size; None for a server's or where no file is known."""
    kind, _, rest = name.partition(":")
    if name == "embedded":
        return _EMBEDDED
    path = Path(rest).expanduser()
    if is_encoder(name):
        folder = path if rest else encoder_path()
        return _stored(folder) if folder and folder.is_dir() else None
    if kind in ("gguf", "hf") and path.is_file():
        return path.stat().st_size / _BYTES_PER_PARAMETER_GGUF
    if kind == "hf" and path.is_dir():
        return _stored(path)
    return None


def _stored(folder: Path) -> float:
    """Return how many numbers the safetensors files of a folder hold, as their headers say."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        total += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return float(total)
