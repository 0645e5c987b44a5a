"""The parts that most of a transformer of diffusers is made of."""

from torch import nn


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """The blocks that are most of a transformer, in the order in which they run."""
    names = ("transformer_blocks", "single_transformer_blocks", "noise_refiner", "context_refiner", "layers")
    return [block for name in names for block in getattr(transformer, name, ())]
