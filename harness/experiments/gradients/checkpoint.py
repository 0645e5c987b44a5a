"""Checkpoints whose gradients can be measured: the untrained model, and runs that train adapters."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harness.config import ConfigError, RunConfig
from harness.models.pipelines.files import model_fingerprint
from harness.models.pipelines.locate import find_pipeline
from harness.models.pipelines.policy import Policy
from harness.models.pipelines.registry import build_policy
from harness.runs.directory import RunDirectory
from harness.trained.checkpoints import BASE
from harness.training.checkpointing import read_weights


@dataclass(frozen=True)
class MeasuredCheckpoint:
    """Adapters at one moment of training.

    Attributes:
        label: short and unique, fit for a file name.
        iteration: how long they were trained; 0 for the untrained model.
        run: where they are; None for the untrained model.
        digest: of the weights.
    """

    label: str
    iteration: int
    run: RunDirectory | None
    digest: str

    def load(self, config: RunConfig, device: torch.device) -> Policy:
        """The policy in training with these adapters, which are of the same model, rank and layers."""
        policy = build_policy(config.model, config.optimizer, device, config.seed)
        if self.run is None:
            return policy
        adapters = read_adapters(self.run)
        for name, parameter in policy.trainable().items():
            parameter.data.copy_(adapters[name])
        return policy


def find_measured(name: str, config: RunConfig) -> MeasuredCheckpoint:
    """The checkpoint that a word of the command line means.

    Args:
        name: ``base``, or a run directory: the weights of its checkpoint.
        config: whose gradients are to be measured.

    Raises:
        ConfigError: no run is there, it has no weights, or it trains another model or other adapters.
    """
    if name == BASE:
        return MeasuredCheckpoint(BASE, 0, None, "untrained")
    run = RunDirectory(Path(name).resolve())
    if not (run.folder / "config.yaml").is_file():
        raise ConfigError(
            f"checkpoint {name}: is neither {BASE!r} nor a run directory; KEY=VALUE comes before --checkpoints"
        )
    trained = run.config
    if (trained.optimizer.tuning, trained.optimizer.lora) != (config.optimizer.tuning, config.optimizer.lora):
        raise ConfigError(f"checkpoint {name}: has other adapters than the measurement; see optimizer.lora of both")
    ours, theirs = (model_fingerprint(find_pipeline(c.model.path)) for c in (config, trained))
    if ours != theirs:
        raise ConfigError(f"checkpoint {name}: trains {trained.model.path}, not {config.model.path}")
    hashed, iteration = hashlib.sha256(), run.status()["iteration"]
    for parameter, tensor in sorted(read_adapters(run).items()):
        hashed.update(parameter.encode() + tensor.float().numpy().tobytes())
    return MeasuredCheckpoint(f"{run.run_id}@{iteration}", iteration, run, hashed.hexdigest()[:8])


def read_adapters(run: RunDirectory) -> dict[str, Tensor]:
    """A run's adapters by parameter name, as of its checkpoint. Raises ConfigError if it has none."""
    adapters = read_weights(run)
    if adapters is None:
        raise ConfigError(f"checkpoint {run.folder}: has no checkpoint yet")
    return adapters
