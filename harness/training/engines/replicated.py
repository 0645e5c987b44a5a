"""Every process holds everything: data parallelism, or one process alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.config import OptimizerConfig
from harness.models.pipelines.policy import Policy
from harness.training.engines.base import Engine
from harness.training.engines.optimiser import build_optimizer
from harness.training.processes import Processes


class Replicated(Engine):
    """Gradients are averaged over processes once an update, in one exchange, however many backward passes it has."""

    def __init__(self, policy: Policy, settings: OptimizerConfig, processes: Processes) -> None:
        parameters = policy.trainable()
        super().__init__(parameters, build_optimizer(parameters, settings), settings, processes)

    def _clip(self, gradients: Sequence[Tensor]) -> float:
        self.processes.average(gradients, "averaging gradients")
        return float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.max_grad_norm))
