"""Variants: the settings, beyond those of its cell, in which a run differs from most runs of its kind.

They keep runs with another group size, reward weight or model from being pooled, whatever runs a report contains.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from analysis.cells.settings import OF_CELL_AND_SEED, flatten
from analysis.runs.recorded import usual_values
from harness.foundation.trained_reward import TrainedReward

_NAMED = (*OF_CELL_AND_SEED, "method.kernel")
# Settings that change no number.
_NO_MATTER = ("runtime.", "logging.", "prompts.", "model.path", "model.execution.", "rewards.")
SHORT = {
    "rollout.candidates": "B",
    "rollout.group_size": "G",
    "rollout.prompts_per_update": "P",
    "rollout.prompts_per_iteration": "P",
    "rollout.branch_indices": "branches",
    "capability.decay": "decay",
    "capability.sync": "capability",
    "capability.anchor": "anchor",
    "runtime.processes": "processes",
    "optimizer.learning_rate": "lr",
    "method.eta": "eta",
    "fusion.kind": "fusion",
}
_NOT_READ_BY_BASE = ("fusion.", "capability.", "rollout.candidates", "choice.level", "runtime.processes")
_OF_THE_PAPER = {"fusion.kind": "fused", "fusion.same_length": "False"}
"""Settings that are always named where they differ from the paper's: "+ fusion" alone is the paper's fusion."""
_MODEL = "model"
_ABSENT = ""


def name_variants(configs: Sequence[Mapping[str, Any]], environments: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name each run's variant, such as "G 15" or "decay 0.95, P 2"; empty if it is like most runs of its kind.

    Another kind of fusion than the paper's is always named.

    Runs record the settings that their numbers depend on, without those at their defaults, so that a run made before a
    setting existed equals one made with the setting off. If a run of a group did not record them, whole configurations
    are compared.

    Args:
        configs: resolved configurations.
        environments: environments of the same runs.
    """
    groups: dict[tuple[str, str, str], list[int]] = {}
    for i, config in enumerate(configs):
        groups.setdefault(kind_of(config), []).append(i)
    names = [""] * len(configs)
    for members in groups.values():
        recorded = all("settings" in environments[i] for i in members)
        sources = [environments[i]["settings"] if recorded else configs[i] for i in members]
        settings = [_settings(s, configs[i]) for s, i in zip(sources, members, strict=True)]
        keys = dict.fromkeys(key for own in settings for key in own)
        usual = usual_values([{key: own.get(key, _ABSENT) for key in keys} for own in settings])
        usual |= dict.fromkeys(_OF_THE_PAPER, _ABSENT)
        for i, own in zip(members, settings, strict=True):
            # Settings of fusion do not matter to a run without it.
            silent = () if configs[i].get("fusion", {}).get("enabled", True) else ("fusion.",)
            unusual = [k for k in sorted(usual) if own.get(k, _ABSENT) != usual[k] and not k.startswith(silent)]
            whole = _settings(configs[i], configs[i]) if unusual else {}
            names[i] = ", ".join(_part(key, own.get(key, whole.get(key, "unset"))) for key in unusual)
    return names


def kind_of(config: Mapping[str, Any]) -> tuple[str, str, str]:
    """Experiment, trained reward and method, within which runs could share a label."""
    return config["experiment"], TrainedReward(config["reward"]).name, config["method"]["kernel"]


def variant_of_base(variant: str) -> str:
    """Variant of the base cell that a cell is compared with: without the settings that a base method does not read."""
    unread = tuple(f"{name} " for key, name in SHORT.items() if key.startswith(_NOT_READ_BY_BASE))
    return ", ".join(part for part in variant.split(", ") if not part.startswith((*unread, *_NOT_READ_BY_BASE)))


def _settings(source: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    # A run records its number of processes only if its numbers depend on it.
    counted = source is not config or config.get("capability", {}).get("sync") == "per_rank"
    settings = {
        key: text
        for key, text in flatten(source)
        if key not in _NAMED
        and (_matters(key) or (counted and key == "runtime.processes"))
        and _OF_THE_PAPER.get(key) != text
    }
    # Only the model's name counts, since paths differ between machines.
    return settings | {_MODEL: PurePath(str(config.get("model", {}).get("path", ""))).name}


def _matters(key: str) -> bool:
    return not key.startswith(_NO_MATTER) or (key.startswith("rewards.") and key.endswith((".offset", ".scale")))


def _part(key: str, value: str) -> str:
    return f"{value} iterations" if key == "iterations" else f"{SHORT.get(key, key)} {value.replace(', ', ' ')}"
