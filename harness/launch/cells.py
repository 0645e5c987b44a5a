"""Names of cells: what the runs that differ only by seed have in common."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from harness.config import RunConfig

_NAMED = ("seed", "selection", "fusion.enabled", "fusion.weight", "method.kernel")
_NO_MATTER: dict[str, Any] = {"experiment": True, "logging": True, "runtime": True, "prompts": True, "rewards": True}
_NO_MATTER |= {"model": {"path": True, "execution": True}}


def cell_name(config: RunConfig) -> str:
    """Method, selection and fusion, as in ``flow_grpo curriculum + fusion 1``."""
    fusion = f" + {config.fusion.name} {config.fusion.weight:g}" if config.fusion.enabled else ""
    return f"{config.method.kernel} {config.selection}{fusion}"


def cell_names(configs: Sequence[RunConfig]) -> list[str]:
    """``cell_name`` of each run, and what else tells it from those of the same name: reward, model, group size, ...

    Runs of equal names differ by seed alone.
    """
    names = [cell_name(config) for config in configs]
    settings = [_settings(config) for config in configs]
    same: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        same.setdefault(name, []).append(i)
    for members in same.values():
        keys = dict.fromkeys(key for i in members for key in settings[i])
        varied = [key for key in keys if len({settings[i].get(key) for i in members}) > 1]
        for i in members:
            names[i] = " ".join([names[i], *(f"{key}={settings[i].get(key, 'none')}" for key in varied)])
    return names


def _settings(config: RunConfig) -> dict[str, str]:
    flat = dict(_flatten(config.model_dump(mode="json", exclude=_NO_MATTER)))
    normalisation = {name: [reward.offset, reward.scale] for name, reward in config.rewards.items()}
    own = {key: text for key, text in flat.items() if key not in _NAMED}
    return own | {"model": PurePath(config.model.path).name, "normalisation": json.dumps(normalisation)}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        # The names of rewards are no keys of ours.
        if isinstance(value, Mapping) and name != "reward":
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, json.dumps(value)
