"""Name of a run, which depends on everything that its numbers depend on."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from harness.config.run import RunConfig

NUMERICS_VERSION = 2
"""Raised whenever a change of code changes the numbers of a run, so that old runs are not taken for new ones. A changed
default does not need that: names depend on the difference from ``BASELINE``."""

BASELINE = Path(__file__).with_name("baseline.json")
"""Defaults at NUMERICS_VERSION 2, by dotted key: a run's name depends on the values that differ from them.

New settings are added with the value that means "as before the setting existed"; nothing else ever changes.
"""


@cache
def baseline() -> Mapping[str, Any]:
    """Content of ``BASELINE``."""
    content: dict[str, Any] = json.loads(BASELINE.read_text(encoding="utf-8"))
    return content


def inert_settings(config: RunConfig) -> dict[str, str]:
    """Settings without effect in a run, each with the reason: runs that differ only in these are the same run.

    evaluation.test_noises of a run without test is not among them, since names of committed runs depend on it.
    """
    inert = {}
    if not config.fusion.enabled:
        inert["fusion.weight"] = "fusion is off"
    if not (config.fusion.enabled or config.rule.reads_capability):
        reason = f"without fusion, selection={config.selection} does not read the capability"
        inert |= dict.fromkeys(("capability.sync", "capability.anchor"), reason)
        if not config.rule.reads_ledger:
            inert["capability.decay"] = reason
    if config.rule.reads_ledger:
        inert["choice.ledger"] = "the selection reads one"
    if not config.rule.explores:
        inert["choice.explore"] = f"selection={config.selection} does not read it"
    if not config.keeps_ledger:
        inert["choice.forgetting"] = "no ledger is kept"
    if config.optimizer.tuning == "full":
        inert["optimizer.lora"] = "all weights are trained"
    if config.optimizer.weight_ema is None:
        inert["optimizer.weight_ema_interval"] = "no weights are averaged"
    return inert


def keeps_capability_per_rank(config: RunConfig) -> bool:
    """Whether each process has its own capability, and the run's numbers depend on it."""
    return config.capability.sync == "per_rank" and "capability.sync" not in inert_settings(config)


def depends_on_processes(config: RunConfig) -> bool:
    """Whether a run's numbers depend on how many processes execute it, so that no other number can repeat them."""
    return keeps_capability_per_rank(config) and config.runtime.processes > 1


def numeric_settings(config: RunConfig) -> dict[str, Any]:
    """Settings that a run's numbers depend on, beside its files: those that differ from ``BASELINE``, as in JSON.

    ``logging``, ``runtime``, ``experiment``, ``model.execution``, paths and ``inert_settings`` are left out; of
    ``rewards`` only the normalisation of trained ones is included. ``runtime.processes`` is included if there are
    several and each has its own capability: only then do the numbers depend on how many there are.
    """
    content = config.model_dump(
        mode="json", exclude={"logging", "runtime", "experiment", "prompts", "rewards", "plugins"}
    )
    del content["model"]["path"], content["model"]["execution"]
    # The location of a plug-in does not matter; its content is among the run's fingerprints.
    content["model"]["adapter"] = (config.model.adapter or "").rpartition(":")[2] or None
    # Names of runs use the first name that a setting had.
    content["rollout"]["prompts_per_update"] = content["rollout"].pop("prompts_per_iteration")
    inert = inert_settings(config)
    settings = _differing(content, "", inert)
    # The section has keys without defaults, so names have always included it, even if nothing else in it differs.
    settings = {"model": {}, **settings}
    if depends_on_processes(config):
        settings["runtime"] = {"processes": config.runtime.processes}
    trained = {name: config.rewards[name] for name in config.reward if name in config.rewards}
    if normalised := {name: (r.offset, r.scale) for name, r in trained.items() if (r.offset, r.scale) != (0, 1)}:
        settings["normalisation"] = normalised
    return settings


def _differing(content: Mapping[str, Any], prefix: str, inert: Mapping[str, str]) -> dict[str, Any]:
    differing = {}
    for name, value in content.items():
        key = f"{prefix}{name}"
        if key in inert:
            continue
        if isinstance(value, Mapping) and key != "reward":
            inner = _differing(value, f"{key}.", inert)
            # An optional section that is set counts as a difference, even if all its values are defaults.
            if inner or key in baseline():
                differing[name] = inner
        elif key not in baseline() or baseline()[key] != value:
            differing[name] = value
    return differing


def run_id(config: RunConfig, fingerprints: Mapping[str, str]) -> str:
    """Name of a run: readable cell and seed, and a hash of everything that its numbers depend on.

    Args:
        config: the run; only its ``numeric_settings`` count.
        fingerprints: sha256 or similar of base weights, prompt lists and rewards.
    """
    content = numeric_settings(config)
    payload = json.dumps([content, dict(fingerprints), NUMERICS_VERSION], sort_keys=True)
    fusion = f"-{config.fusion.name}{config.fusion.weight:g}" if config.fusion.enabled else ""
    digest = hashlib.sha256(payload.encode()).hexdigest()[:10]
    return f"{config.method.kernel}-{config.selection}{fusion}-seed{config.seed}-{digest}"
