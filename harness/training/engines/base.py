"""What every engine does: an update is one step of AdamW, however the processes share the work out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.config import OptimizerConfig
from harness.training.engines.optimiser import move_averages, start_averages, swapped_in
from harness.training.processes import Processes


class Engine(ABC):
    """The weights in training as this process holds them, and the optimiser.

    Args:
        parameters: in training, by name; the same names in all processes.
        optimizer: over them.
        settings: of the optimiser.
        processes: that train together.

    Attributes:
        averages: of the weights, by name, if the settings ask for them; shared out as the weights are.
    """

    exchanges_forward: ClassVar[bool] = False
    """Whether every forward is an exchange, so that all processes must make equally many."""
    exchanges_backward: ClassVar[bool] = False
    """Whether every backward pass is one."""

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        settings: OptimizerConfig,
        processes: Processes,
    ) -> None:
        self.parameters, self.optimizer = parameters, optimizer
        self.settings, self.processes = settings, processes
        self.averages = start_averages(parameters, settings)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Of the steps to come."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def update(self, losses: Sequence[Callable[[], Tensor]]) -> float:
        """One optimiser step on the sum of the losses, averaged over processes, with gradients clipped.

        Args:
            losses: called one after the other, each once the one before has been propagated backward: a forward's
                activations are in memory for one of them at a time.

        Returns:
            Norm of the averaged gradient before clipping. If it is not finite, training must end here: whether the step
            was taken is up to the engine.
        """
        self.optimizer.zero_grad(set_to_none=True)
        for loss in losses:
            loss().backward()
        norm = self._clip([p.grad for p in self.parameters.values() if p.grad is not None])
        if math.isfinite(norm):
            self.optimizer.step()
        return norm

    @abstractmethod
    def _clip(self, gradients: Sequence[Tensor]) -> float:
        """Scale gradients that are the averages over processes to ``max_grad_norm``; their norm before."""

    def move_averages(self, updates: int) -> None:
        """After an update; ``updates`` were done since training began."""
        move_averages(self.averages, self.parameters, self.settings, updates)

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Within: the network has the averaged weights, if the run keeps any."""
        return swapped_in(self.averages, self.parameters)

    def whole_weights(self) -> dict[str, Tensor] | None:
        """The weights in training, by name, on the CPU of the main process (elsewhere none): an exchange.

        None where the network itself holds all of them.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """Weights, averages and optimiser state: tensors that this process holds, or its share of them as DTensors."""
        return {
            "parameters": {name: p.detach() for name, p in self.parameters.items()},
            "averages": self.averages,
            "optimizer": self.optimizer.state_dict(),
        }

    def tensors(self) -> dict[str, Tensor]:
        """What ``state_dict`` holds, by path, to be loaded in place; AdamW's moments are made if there are none yet."""
        for parameter in self.parameters.values():
            if not self.optimizer.state[parameter]:
                self.optimizer.state[parameter] |= {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }
        return flat(self.state_dict())

    def loaded(self) -> None:  # noqa: B027 - most engines have nothing to do
        """Called when ``tensors`` have been loaded."""


def flat(state: Any, path: str = "") -> dict[str, Tensor]:
    """The tensors of nested mappings, by the keys that lead to them, joined by ``/``."""
    if isinstance(state, Tensor):
        return {path: state}
    if not isinstance(state, dict):
        return {}
    inner = [flat(value, f"{path}/{key}" if path else str(key)) for key, value in state.items()]
    return {name: tensor for part in inner for name, tensor in part.items()}
