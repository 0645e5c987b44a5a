"""A run's name, by all that its numbers depend on."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from harness.config.run import RunConfig

NUMERICS_VERSION = 2
"""Raised whenever a change of code or of a default changes the numbers of a run, so that old runs are not taken for
new ones."""


def numeric_settings(config: RunConfig) -> dict[str, Any]:
    """What a run's numbers depend on beside its files: all settings that are not at their defaults, as in JSON.

    Without ``logging``, ``runtime``, ``experiment``, ``model.execution`` and paths; of ``rewards`` only normalisation.
    With ``runtime.processes``, if there are several and each has a capability of its own: only then do numbers depend
    on how many there are.
    """
    # Without what is at its default, so that a new setting, off by default, leaves the names of old runs alone.
    content = config.model_dump(
        mode="json", exclude={"logging", "runtime", "experiment", "prompts", "rewards"}, exclude_defaults=True
    )
    del content["model"]["path"]
    content["model"].pop("execution", None)
    if config.capability.sync == "per_rank" and config.runtime.processes > 1:
        content["runtime"] = {"processes": config.runtime.processes}
    if normalised := {name: (r.offset, r.scale) for name, r in config.rewards.items() if (r.offset, r.scale) != (0, 1)}:
        content["normalisation"] = normalised
    return content


def run_id(config: RunConfig, fingerprints: Mapping[str, str]) -> str:
    """Name of a run: readable cell and seed, and a hash of all that its numbers depend on.

    Args:
        config: the run, of which ``numeric_settings`` count.
        fingerprints: sha256 or the like of base weights, prompt lists and rewards.
    """
    content = numeric_settings(config)
    payload = json.dumps([content, dict(fingerprints), NUMERICS_VERSION], sort_keys=True)
    fusion = f"-{config.fusion.name}{config.fusion.weight:g}" if config.fusion.enabled else ""
    digest = hashlib.sha256(payload.encode()).hexdigest()[:10]
    return f"{config.method.kernel}-{config.selection}{fusion}-seed{config.seed}-{digest}"
