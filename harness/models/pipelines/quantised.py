"""A frozen network in 4 bits (QLoRA, arXiv 2305.14314), AdamW's moments in 8: by bitsandbytes, the extra ``gpu``."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from harness.models.pipelines.blocks import blocks_of


def quantise(transformer: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Put the linear layers of a frozen network's blocks on a device as NF4, and compute with them in a dtype.

    64 weights share a scale, and scales are quantised again: 4.13 bits per weight. Layers are moved one by one, so that
    the device never holds the whole network as it was. All else stays where and as it is.
    """
    import bitsandbytes

    parents = [module for block in blocks_of(transformer) for module in block.modules()]
    for parent in parents:
        for name, layer in [*parent.named_children()]:
            if isinstance(layer, nn.Linear):
                has_bias, kind = layer.bias is not None, {"quant_type": "nf4", "device": "meta"}
                small = bitsandbytes.nn.Linear4bit(layer.in_features, layer.out_features, has_bias, dtype, **kind)
                weight = bitsandbytes.nn.Params4bit(layer.weight.data, quant_type="nf4", module=small)
                small.weight, small.bias = weight.to(device), layer.bias
                setattr(parent, name, small)
    transformer.is_loaded_in_4bit = True  # peft asks, as it adds adapters


def is_quantised(transformer: nn.Module) -> bool:
    """Whether ``quantise`` was here."""
    return getattr(transformer, "is_loaded_in_4bit", False)


def adamw_8bit(parameters: Iterable[nn.Parameter], **settings: Any) -> torch.optim.Optimizer:
    """AdamW whose moments take a byte each, in blocks of 256 with a scale; of tensors below 4096 numbers four bytes."""
    import bitsandbytes

    class AdamW(bitsandbytes.optim.AdamW8bit):
        def init_state(self, group: Any, p: Tensor, gindex: int, pindex: int) -> None:
            super().init_state(group, p, gindex, pindex)
            self.state[p]["step"] = torch.tensor(0.0)  # as torch's own, so that a checkpoint has it

    optimizer: torch.optim.Optimizer = AdamW(parameters, **settings)
    return optimizer
