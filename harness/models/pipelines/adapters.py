"""LoRA adapters of a transformer: adding, merging into the weights while sampling, and saving for diffusers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from harness.config import ConfigError, LoraConfig
from harness.models.pipelines.lora_files import PREFIX, B, write_lora


def add_adapters(transformer: Any, settings: LoraConfig, seed: int) -> None:
    """Add trainable float32 adapters to a frozen transformer, whatever the precision of its weights.

    Raises ConfigError if a target matches no layer.
    """
    torch.manual_seed(seed)
    try:
        transformer.add_adapter(
            PeftLoraConfig(
                r=settings.rank,
                lora_alpha=settings.alpha,
                init_lora_weights="gaussian" if settings.init == "gaussian" else True,
                target_modules=list(settings.target_modules),
            )
        )
    except ValueError as error:
        raise ConfigError(f"optimizer.lora.target_modules: {str(error).splitlines()[0]}") from None
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    leave_inputs(transformer)


def leave_inputs(transformer: nn.Module) -> None:
    """Stop peft from casting the adapters' inputs to float32, which autocast would undo at once."""
    for module in transformer.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False


@contextmanager
def merged_adapters(transformer: nn.Module) -> Iterator[None]:
    """Context manager in which adapters are merged into float32 weights, so that a forward costs as much as the base's.

    Weights of lower precision keep separate adapters, because their rounding would lose most of what the first updates
    add. At the end the base weights are restored from a copy, bit for bit, because adding and subtracting would let
    them drift. They are changed in place, because a sharding engine keeps memory of its own behind them.
    """
    layers = [
        module
        for module in transformer.modules()
        if isinstance(module, LoraLayer) and module.get_base_layer().weight.dtype == torch.float32
    ]
    weights = [layer.get_base_layer().weight.data for layer in layers]
    kept = [weight.clone() for weight in weights]
    for layer, weight in zip(layers, weights, strict=True):
        weight.copy_(weight + layer.get_delta_weight("default"))
        layer.merged_adapters.append("default")
    try:
        yield
    finally:
        for layer, weight, before in zip(layers, weights, kept, strict=True):
            weight.copy_(before)
            layer.merged_adapters.clear()


def save_adapters(transformer: Any, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Save adapters for diffusers' ``load_lora_weights``: the given ones, by parameter name, or the transformer's own.

    alpha / rank is multiplied into the B factors, so that the saved alpha equals the rank.
    """
    config = transformer.peft_config["default"]
    scale = config.lora_alpha / config.r
    layers = get_peft_model_state_dict(transformer, state_dict=weights)
    adapters = {
        f"{PREFIX}{name}": (tensor.detach().float() * (scale if name.endswith(B) else 1)).cpu().contiguous()
        for name, tensor in layers.items()
    }
    write_lora(adapters, folder / LORA_WEIGHT_NAME_SAFE)
