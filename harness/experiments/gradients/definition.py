"""What a measurement is: a file in experiments/mechanism/, and the checkpoints that are measured."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic import Field

from harness.config import ConfigError, RunConfig, Section, Seed, compose, experiment_path, read_yaml, validated
from harness.experiments.gradients.checkpoint import MeasuredCheckpoint, find_measured
from harness.runs.directory import RUNS, find_run

VERSION = 1
"""Raised with any change of what is measured, so that old chunks are not taken for new ones."""

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
"""Values that a measured configuration must have: all strategies and advantages are measured anyway, and the rest would
change what a gradient is."""


class MechanismConfig(Section):
    """A measurement's file."""

    profile: str
    """File in experiments/profiles/: model, reward, prompts, rollout, adapters."""
    method: str | None = None
    """File in experiments/methods/; None for the profile's own."""
    settings: dict[str, Any] = Field({})
    """Further sections of the configuration."""
    seed: Seed
    """Seed of prompts and noise. Not that of a run whose checkpoints are measured: it has trained on these draws."""
    rounds: int = Field(ge=2)
    """Batches of B candidates, from each of which every strategy chooses."""
    warm_up_rounds: int = Field(20, ge=0)
    """Batches before the first one, for the capability alone."""
    reference_prompts: int = Field(ge=2)
    """Prompts of the reference gradient, each with G samples at each branch index."""
    chunk: int = Field(25, ge=1)
    """Rounds or reference prompts computed at a time: what a kill loses at most, and the blocks that intervals
    resample."""


@dataclass(frozen=True, eq=False)
class Mechanism:
    """A measurement, ready to be executed.

    Attributes:
        path: of the file.
        file: its content.
        config: the configuration whose gradients are measured.
        checkpoints: where they are measured.
    """

    path: Path
    file: MechanismConfig
    config: RunConfig
    checkpoints: tuple[MeasuredCheckpoint, ...]

    @cached_property
    def identity(self) -> str:
        """Names all that the numbers depend on but the checkpoint: base model, prompts, reward, settings."""
        measured = self.file.model_dump(mode="json", include={"rounds", "warm_up_rounds", "reference_prompts", "chunk"})
        # The seed is part of the run's name.
        payload = json.dumps([VERSION, find_run(self.config).run_id, measured], sort_keys=True)
        return hashlib.sha256(payload.encode()).hexdigest()[:10]

    def folder(self, checkpoint: MeasuredCheckpoint) -> Path:
        """Where the checkpoint's chunks are kept."""
        return RUNS / self.config.experiment / self.identity / f"{checkpoint.label}-{checkpoint.digest}"


def require_measurable(config: RunConfig, where: str) -> None:
    """Refuse a configuration whose update is not the one that is measured. Raises ConfigError, naming ``where``."""
    for key, wanted in _REQUIRED.items():
        value = attrgetter(key)(config)
        if value != wanted:
            raise ConfigError(f"{where}: {key}={value}: only {wanted} can be measured")


def load_mechanism(name: str, checkpoints: Sequence[str], overrides: Sequence[str] = ()) -> Mechanism:
    """Read and check a measurement; nothing heavy is loaded and nothing is written.

    Args:
        name: of a file in experiments/mechanism/, or a path to one.
        checkpoints: ``base`` for the untrained model, or run directories.
        overrides: dotted ``key=value`` strings of the configuration.

    Raises:
        ConfigError: one line that names the file and the key, or the checkpoint.
    """
    path = experiment_path("mechanism", name)
    file = validated(MechanismConfig, read_yaml(path), str(path))
    settings = {**file.settings, "seed": file.seed, "experiment": f"mechanism-{path.stem}"}
    config = compose(file.profile, file.method, settings, overrides)
    require_measurable(config, str(path))
    found = tuple(find_measured(checkpoint, config) for checkpoint in checkpoints)
    labels = [checkpoint.label for checkpoint in found]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ConfigError(f"--checkpoints: {twice[0]} is there twice")
    return Mechanism(path, file, config, tuple(sorted(found, key=lambda one: (one.iteration, one.label))))
