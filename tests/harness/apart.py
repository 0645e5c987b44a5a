"""Two processes whose weights are the same, and then are not; started by torchrun."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from harness.config import OptimizerConfig
from harness.foundation.errors import TrainingError
from harness.training.engine import Engine
from harness.training.processes import Processes

processes = Processes(Accelerator(cpu=True), 60)
assert processes.count == 2
torch.manual_seed(0)
layer = nn.Linear(8, 8)
policy = SimpleNamespace(trainable=lambda: dict(layer.named_parameters()), config=SimpleNamespace(precision="fp32"))
engine = Engine(policy, OptimizerConfig(), processes)  # type: ignore[arg-type]
engine.update([lambda: layer(torch.ones(1, 8)).sum()])
engine.require_alike(1)
if processes.index == 1:
    with torch.no_grad():
        layer.weight[0, 0] = torch.nextafter(layer.weight[0, 0], torch.tensor(torch.inf))
with pytest.raises(TrainingError, match="rank 1 are not those of rank 0 at iteration 2"):
    engine.require_alike(2)
