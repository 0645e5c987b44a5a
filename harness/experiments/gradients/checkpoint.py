"""Configurations and checkpoints whose gradients can be measured: the untrained model, and runs that train adapters."""

import hashlib
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

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

_REQUIRED: dict[str, Any] = {
    "selection": "random",
    "fusion.enabled": False,
    "capability.anchor": "after",
    "rollout.kind": "anchor_branch",
    "rollout.prompts_per_iteration": 1,
    "rollout.window": None,
    "objective.normalisation": "group",
    "objective.kl_beta": 0.0,
    "objective.updates_per_iteration": 1,
    "objective.clip_range": None,
    "optimizer.tuning": "lora",
    "model.execution.text_encoders": "keep",
}
"""Values that a measured configuration must have: all strategies and advantages are measured anyway, and other values
of the rest would change what a gradient is."""


def require_measurable(config: RunConfig, where: str) -> None:
    """Raise ConfigError, which names ``where``, if the configuration's update is not the one that is measured."""
    for key, wanted in _REQUIRED.items():
        value = attrgetter(key)(config)
        if value != wanted:
            raise ConfigError(f"{where}: {key}={value}: only {wanted} can be measured")


@dataclass(frozen=True)
class MeasuredCheckpoint:
    """Adapters at one moment of training.

    Attributes:
        label: short, unique and valid in a file name.
        iteration: number of iterations trained; 0 for the untrained model.
        run: run that has the adapters; None for the untrained model.
        digest: hash of the weights.
    """

    label: str
    iteration: int
    run: RunDirectory | None
    digest: str

    def load(self, config: RunConfig, device: torch.device) -> Policy:
        """Policy in training with these adapters, which must be of the same model, rank and layers."""
        policy = build_policy(config.model, config.optimizer, device, config.seed)
        if self.run is None:
            return policy
        adapters = read_adapters(self.run)
        for name, parameter in policy.trainable().items():
            parameter.data.copy_(adapters[name])
        return policy


def find_measured(name: str, config: RunConfig) -> MeasuredCheckpoint:
    """Find the checkpoint that a word of the command line names.

    Args:
        name: ``base``, or a run's directory for the weights of its checkpoint.
        config: configuration whose gradients are to be measured.

    Raises:
        ConfigError: there is no such run, it has no weights, or it trains another model or other adapters.
    """
    if name == BASE:
        return MeasuredCheckpoint(BASE, 0, None, "untrained")
    run = RunDirectory(Path(name).resolve())
    if not (run.folder / "config.yaml").is_file():
        raise ConfigError(f"checkpoint {name}: is neither {BASE!r} nor a run directory")
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
    """Adapters in a run's checkpoint, by parameter name. Raises ConfigError if it has none."""
    adapters = read_weights(run)
    if adapters is None:
        raise ConfigError(f"checkpoint {run.folder}: has no checkpoint yet")
    return adapters
