"""LoRA layers of a model: put in, taken out, told from another training's, and what they stand on in another dtype."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from limbeck.engine.compute import on_compute_thread
from limbeck.engine.loading import quiet
from limbeck.engine.seq2seq import is_seq2seq
from limbeck.errors import InputError

if TYPE_CHECKING:
    from limbeck.finetune.loop import TrainConfig


def base_of(model: Any) -> Any:
    """Return the model that PEFT wraps, its layers inside; any other model is its own base."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def has_adapter(model: Any) -> bool:
    """Return whether a model is PEFT's; raise InputError for the base of another one, which carries its layers."""
    import peft
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(model, peft.PeftModel):
        return True
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise InputError(
            "the model carries the LoRA layers of an earlier training",
            valid="the model of that training's result, or a base without layers",
            hint="go on with result.loaded, or call result.unload() first",
        )
    return False


def attach_lora(model: Any, config: TrainConfig, *, task: str = "", exclude: str | None = None) -> Any:
    """Return the model with fresh, seeded LoRA layers in fp32; one that has an adapter goes on with it.

    `task` is PEFT's name of what the model does ("": it writes); modules whose name matches the expression `exclude`
    get no layers. Raises `InputError` for a base that carries another training's layers.
    """
    import peft

    if has_adapter(model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
            if "lora_" in name:
                parameter.data = parameter.data.float()
        return model
    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    lora = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=targets,
        exclude_modules=exclude,
        lora_dropout=0.0,
        task_type=task or ("SEQ_2_SEQ_LM" if is_seq2seq(model) else "CAUSAL_LM"),
    )
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return peft.get_peft_model(model, lora)


def detach_lora(model: Any) -> Any:
    """Return the base model, LoRA layers taken out in place; `model` is PEFT's or the base that carries them."""
    import peft
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(model, peft.PeftModel):
        return model.unload()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            model.set_submodule(name, layer.get_base_layer())
    vars(model).pop("peft_config", None)
    return model


@contextmanager
def base_in(model: Any, dtype: str) -> Generator[None]:
    """Convert all weights but those of LoRA ("auto": none), to stay so; an exception brings them back as they were."""
    before: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    try:
        if dtype != "auto":
            on_compute_thread(_convert, model, getattr(torch, dtype), before)
        yield
    except BaseException:
        for parameter, data in before:
            parameter.data = data.to(parameter.device)
        raise


def _convert(model: Any, dtype: torch.dtype, before: list[tuple[torch.nn.Parameter, torch.Tensor]]) -> None:
    for name, parameter in model.named_parameters():
        if "lora_" not in name and parameter.is_floating_point() and parameter.dtype != dtype:
            before.append((parameter, parameter.data.cpu()))
            parameter.data = parameter.data.to(dtype)
