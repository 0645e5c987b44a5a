"""Frozen networks in 4 bits (QLoRA, arXiv 2305.14314) and AdamW with 8-bit moments, by bitsandbytes (extra ``gpu``)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from harness.models.pipelines.blocks import blocks_of


def quantise(transformer: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Quantise the linear layers of a frozen network's blocks to NF4 on a device; they compute in ``dtype``.

    64 weights share a scale, and scales are quantised again: 4.13 bits per weight. Layers are moved one by one, so that
    the device never holds the whole unquantised network. Everything else stays unchanged and where it is.
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
    transformer.is_loaded_in_4bit = True  # read by peft when it adds adapters, and by put_lora


def adamw_8bit(parameters: Iterable[nn.Parameter], **settings: Any) -> torch.optim.Optimizer:
    """AdamW with 8-bit moments in blocks of 256 with a scale; 32-bit for tensors of fewer than 4096 values."""
    import bitsandbytes

    class AdamW(bitsandbytes.optim.AdamW8bit):
        def init_state(self, group: Any, p: Tensor, gindex: int, pindex: int) -> None:
            super().init_state(group, p, gindex, pindex)
            self.state[p]["step"] = torch.tensor(0.0)  # a tensor as in torch's AdamW, so that checkpoints contain it

    optimizer: torch.optim.Optimizer = AdamW(parameters, **settings)
    return optimizer
