"""One autograd function for a frozen linear layer with its LoRA branch.

peft computes the branch in fp32, adds it in fp32 and casts back: five passes over every activation. Here
branch and base are products in the base's number type, accumulated in place; weights and their gradients
stay fp32. In fp32 the results are peft's; in bf16 the products are rounded as under autocast.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch


class _LoraLinear(torch.autograd.Function):
    """y = x W' + bias + scale (x A') B', with gradients for x, A and B."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        low = flat @ down.to(x.dtype).t()
        out = torch.mm(flat, weight.t()) if bias is None else torch.addmm(bias, flat, weight.t())
        out.addmm_(low, (up * scale).to(x.dtype).t())
        ctx.save_for_backward(flat, low, weight, down, up)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        flat, low, weight, down, up = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        grad_low = grad @ (up * ctx.scale).to(grad.dtype)
        grad_up = (grad.t() @ low).to(up.dtype) * ctx.scale
        grad_down = (grad_low.t() @ flat).to(down.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            grad_x.addmm_(grad_low, down.to(grad.dtype))
            grad_x = grad_x.view(ctx.shape)
        return grad_x, None, None, grad_down, grad_up, None


def _forward(layer: Any, name: str, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    base = layer.base_layer
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    out: Any = _LoraLinear.apply(x, base.weight, base.bias, down, up, layer.scaling[name])
    return out


def _fusable(layer: Any) -> bool:
    """Whether the layer is plain LoRA on a plain linear layer: one adapter, no dropout, no variant."""
    names = layer.active_adapters
    return (
        type(layer.base_layer) is torch.nn.Linear
        and len(names) == 1
        and names[0] in layer.lora_A
        and isinstance(layer.lora_dropout[names[0]], torch.nn.Identity)
        and layer.lora_A[names[0]].bias is None
        and layer.lora_B[names[0]].bias is None
        and not getattr(layer, "lora_variant", {})
        and not layer.merged
        and not layer.disable_adapters
    )


@contextmanager
def fused_lora(model: torch.nn.Module) -> Generator[None]:
    """Compute the model's LoRA layers by the fused function for the duration; others stay peft's."""
    from peft.tuners.lora import Linear

    layers: list[Any] = [m for m in model.modules() if isinstance(m, Linear) and _fusable(m)]
    for layer in layers:
        layer.forward = partial(_forward, layer, layer.active_adapters[0])
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
