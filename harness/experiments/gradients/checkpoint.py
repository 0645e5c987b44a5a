"""Configurations and checkpoints whose gradients can be measured: the untrained model, and runs that train adapters."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor

from harness.config import ConfigError, RunConfig, leaves, parse_overrides
from harness.models.pipelines.files import model_fingerprint
from harness.models.pipelines.locate import find_pipeline
from harness.models.pipelines.policy import Policy
from harness.models.pipelines.registry import build_policy
from harness.runs.directory import RunDirectory
from harness.trained.checkpoints import BASE
from harness.training.checkpointing import read_weights

SEED = "seed=3100"
"""Seed of measurements. It is not that of any run, which would have trained on its draws."""
ONE_PROMPT = (
    "selection=random",
    "fusion.enabled=false",
    "rollout.prompts_per_iteration=1",
    "model.execution.text_encoders=keep",
)
"""Settings with which every rule and advantage is compared on the same updates, of one prompt each."""
ON_POLICY = (
    "objective.updates_per_iteration=1",
    "objective.clip_range=null",
    "objective.kl_beta=0",
    "objective.normalisation=group",
    "rollout.window=null",
    "capability.anchor=after",
)
"""Settings whose other values would change what a gradient is."""


def require_measurable(config: RunConfig, where: str) -> None:
    """Raise ConfigError, which names ``where``, if the configuration's update is not the one that is measured."""
    required = parse_overrides([*ONE_PROMPT, *ON_POLICY, "rollout.kind=anchor_branch", "optimizer.tuning=lora"])
    for key, wanted in leaves(required).items():
        value = attrgetter(key)(config)
        if value != wanted:
            raise ConfigError(f"{where}: {key}={value}: only {wanted} can be measured")


@dataclass(frozen=True)
class MeasuredCheckpoint:
    """Adapters at one moment of training.

    Attributes:
        label: short, unique and valid in a file name.
        iteration: number of iterations trained; 0 for the untrained model.
        digest: hash of the weights.
        adapters: weights by parameter name; none for the untrained model.
    """

    label: str
    iteration: int
    digest: str
    adapters: Mapping[str, Tensor] = field(default_factory=dict)

    def load(self, config: RunConfig, device: torch.device) -> Policy:
        """Policy in training with these adapters, which must be of the same model, rank and layers."""
        policy = build_policy(config.model, config.optimizer, device, config.seed)
        parameters = policy.trainable()
        for name, adapter in self.adapters.items():
            parameters[name].data.copy_(adapter)
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
        return MeasuredCheckpoint(BASE, 0, "untrained")
    run = RunDirectory(Path(name).resolve())
    if not (run.folder / "config.yaml").is_file():
        raise ConfigError(f"checkpoint {name}: is neither {BASE!r} nor a run directory")
    trained = run.config
    if (trained.optimizer.tuning, trained.optimizer.lora) != (config.optimizer.tuning, config.optimizer.lora):
        raise ConfigError(f"checkpoint {name}: has other adapters than the measurement; see optimizer.lora of both")
    ours, theirs = (model_fingerprint(find_pipeline(c.model.path)) for c in (config, trained))
    if ours != theirs:
        raise ConfigError(f"checkpoint {name}: trains {trained.model.path}, not {config.model.path}")
    adapters = read_weights(run)
    if adapters is None:
        raise ConfigError(f"checkpoint {run.folder}: has no checkpoint yet")
    hashed, iteration = hashlib.sha256(), run.status()["iteration"]
    for parameter, tensor in sorted(adapters.items()):
        hashed.update(parameter.encode() + tensor.float().numpy().tobytes())
    return MeasuredCheckpoint(f"{run.run_id}@{iteration}", iteration, hashed.hexdigest()[:8], adapters)
