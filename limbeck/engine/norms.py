"""Root-mean-square norms (Zhang and Sennrich 2019) by torch's one kernel instead of transformers' six."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn.functional import rms_norm

# What was found of norms: looking waits for the device, which a pass that is captured may not.
_PLAIN: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()
# How far apart the two may be in units of the number type's precision: the rounding differs.
_APART = 4


@contextmanager
def fused_norms(model: torch.nn.Module) -> Generator[None]:
    """Compute the model's RMS norms by one kernel each for the duration; norms that are something else stay."""
    norms: list[Any] = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm") and _known_plain(m)]
    for norm in norms:
        norm.forward = partial(_forward, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return rms_norm(x, norm.weight.shape, norm.weight, _epsilon(norm))


def _epsilon(norm: Any) -> float | None:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


def _known_plain(norm: torch.nn.Module) -> bool:
    if norm not in _PLAIN:
        _PLAIN[norm] = _is_plain(norm)
    return _PLAIN[norm]


@torch.no_grad()
def _is_plain(norm: Any) -> bool:
    """Whether the module computes what torch's function does: some multiply by one plus the weight."""
    weight = getattr(norm, "weight", None)
    if weight is None or _epsilon(norm) is None or "forward" in vars(norm):
        return False
    x = torch.linspace(-1, 1, weight.numel(), dtype=weight.dtype, device=weight.device).view(1, *weight.shape)
    wanted, found = norm(x).float(), _forward(norm, x).float()
    return bool((wanted - found).abs().max() <= _APART * torch.finfo(weight.dtype).eps * wanted.abs().max())
