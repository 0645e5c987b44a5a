"""Blocks of diffusers' transformers."""

from torch import nn


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """Blocks of a transformer, which hold most of its weights, in the order in which they run."""
    names = ("transformer_blocks", "single_transformer_blocks", "noise_refiner", "context_refiner", "layers")
    return [block for name in names for block in getattr(transformer, name, ())]
