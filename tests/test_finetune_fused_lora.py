"""The fused LoRA layer against peft's own."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch

from limbeck.finetune.fused_lora import fused_lora


class Two(torch.nn.Module):
    """Two linear layers, the second with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 8, bias=False)
        self.second = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def adapted(dropout: float = 0.0, **options: Any) -> Any:
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=["first", "second"], lora_dropout=dropout, init_lora_weights=False, **options
    )
    return peft.get_peft_model(Two(), config)  # pyright: ignore[reportArgumentType]


def run(model: Any, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    x = x.clone().requires_grad_()
    out = model(x)
    (out**2).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return out.detach(), {**found, "x": x.grad.clone() if x.grad is not None else torch.zeros(0)}


@pytest.mark.parametrize("shape", [(3, 6), (2, 4, 6)])
def test_outputs_and_gradients_are_pefts(shape: tuple[int, ...]) -> None:
    model, x = adapted(), torch.randn(shape)
    out, wanted = run(model, x)
    with fused_lora(model):
        assert "forward" in model.base_model.model.first.__dict__
        fused_out, found = run(model, x)
    assert "forward" not in model.base_model.model.first.__dict__
    torch.testing.assert_close(fused_out, out)
    assert found.keys() == wanted.keys()
    assert sum("lora" in name for name in found) == 4
    for name, grad in found.items():
        torch.testing.assert_close(grad, wanted[name])


def test_inputs_without_gradient_get_none() -> None:
    model = adapted()
    with fused_lora(model):
        model(torch.randn(3, 6)).sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora" in name)


def test_layers_that_compute_more_than_plain_lora_stay_pefts() -> None:
    for model in (adapted(dropout=0.1), adapted(use_dora=True)):
        plain = model.base_model.model.first
        with fused_lora(model):
            assert "forward" not in plain.__dict__
    model = adapted()
    with model.disable_adapter(), fused_lora(model):
        assert "forward" not in model.base_model.model.first.__dict__
