"""The optimiser, and averaged copies of the weights that are moved while training and swapped in for evaluation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from harness.config import OptimizerConfig


def build_optimizer(parameters: Mapping[str, nn.Parameter], settings: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over named parameters."""
    return torch.optim.AdamW(
        parameters.values(),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )


def start_averages(parameters: Mapping[str, nn.Parameter], settings: OptimizerConfig) -> dict[str, Tensor]:
    """Copies of the weights, if ``weight_ema`` asks for averages; else none."""
    return {} if settings.weight_ema is None else {name: p.detach().clone() for name, p in parameters.items()}


def move_averages(
    averages: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], settings: OptimizerConfig, updates: int
) -> None:
    """average <- decay * average + (1 - decay) * weights, in place, after every ``weight_ema_interval``-th update.

    Args:
        averages: from ``start_averages``.
        parameters: the weights.
        settings: decay and interval.
        updates: optimiser updates done since training began.
    """
    if settings.weight_ema is not None and updates % settings.weight_ema_interval == 0:
        for name, average in averages.items():
            average.lerp_(parameters[name].detach(), 1 - settings.weight_ema)


@contextmanager
def swapped_in(averages: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Within: the parameters hold the averages, if there are any, and the averages hold the parameters.

    In place, since an engine that shares weights out keeps memory of its own behind the parameters.
    """
    _exchange(averages, parameters)
    try:
        yield
    finally:
        _exchange(averages, parameters)


@torch.no_grad()
def _exchange(averages: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    for name, average in averages.items():
        kept = average.clone()
        average.copy_(parameters[name])
        parameters[name].copy_(kept)
