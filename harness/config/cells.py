"""Names of cells: what the runs that differ only by seed have in common."""

import json
from collections import Counter
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
    """``cell_name`` of each run, and what else tells it from most of the same name: reward, model, group size, ...

    Runs of equal names differ by seed alone. A value that most of them have is not named.
    """
    names = [cell_name(config) for config in configs]
    settings = [_settings(config) for config in configs]
    same: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        same.setdefault(name, []).append(i)
    for members in same.values():
        usual = _usual([settings[i] for i in members])
        for i in members:
            own = {key: settings[i].get(key) for key in usual}
            named = (f"{key}={value or 'none'}" for key, value in own.items() if value != usual[key])
            names[i] = " ".join([names[i], *named])
    return names


def _usual(settings: Sequence[Mapping[str, str]]) -> dict[str, str | None]:
    """Of every key that varies the value that more than half have; "" where none has."""
    counts = {
        key: Counter(own.get(key) for own in settings) for key in dict.fromkeys(k for own in settings for k in own)
    }
    most = {key: count.most_common(1)[0] for key, count in counts.items() if len(count) > 1}
    return {key: value if 2 * number > len(settings) else "" for key, (value, number) in most.items()}


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
