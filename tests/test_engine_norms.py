from __future__ import annotations

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from limbeck.engine.norms import fused_norms


class Plus(torch.nn.Module):
    """A layer with one norm."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.norm(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_norm_is_the_plain_one_with_its_gradient(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = Plus(LlamaRMSNorm(32, eps=1e-5)).to(dtype)
    torch.nn.init.normal_(next(layer.parameters()))
    x = torch.randn(3, 5, 32, dtype=dtype, requires_grad=True)
    plain = layer(x)
    (wanted,) = torch.autograd.grad(plain.square().sum(), x)
    with fused_norms(layer):
        assert "forward" in vars(layer.norm)
        fused = layer(x)
        (found,) = torch.autograd.grad(fused.square().sum(), x)
    assert "forward" not in vars(layer.norm)
    close = {torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    assert torch.allclose(fused, plain, rtol=close, atol=close)
    assert torch.allclose(found, wanted, rtol=close, atol=close * float(wanted.abs().max()))


def test_a_norm_that_adds_one_to_its_weight_stays_as_it_is() -> None:
    layer = Plus(GemmaRMSNorm(32))
    torch.nn.init.normal_(next(layer.parameters()))
    with fused_norms(layer):
        assert "forward" not in vars(layer.norm)
