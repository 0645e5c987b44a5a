"""Configurations composed from YAML files under experiments/, overridden by dotted keys."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from harness.config.messages import one_line
from harness.config.run import RunConfig
from harness.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "experiments"
# The one written in C reads the configs of a whole grid in a blink; wheels of PyYAML have it, other builds may not.
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping. Raises ConfigError if it is missing, broken, or no mapping."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _YAML_LOADER) or {}
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); files there: {known}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold key: value pairs")
    return content


def read_experiment(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file of experiments/, on top of the one beside it that its key ``extends`` names.

    Raises:
        ConfigError: as ``read_yaml``, or files that extend each other.
    """
    if path in children:
        raise ConfigError(f"{path}: extends itself, by way of {', '.join(child.stem for child in children)}")
    content = read_yaml(path)
    parent = content.pop("extends", None)
    if parent is None:
        return content
    return merge(read_experiment(path.with_name(f"{parent}.yaml"), (*children, path)), content)


def merge(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Nested merge, the second wins; ``reward`` is replaced as a whole, since its keys are not fixed."""
    merged = dict(base)
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and key != "reward":
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """``["fusion.weight=2", "selection=curriculum"]`` as a nested mapping; values are YAML."""
    content: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r}: write key=value, as in fusion.weight=2")
        try:
            nested: Any = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"override {override!r}: the value is not valid YAML") from None
        content = merge(content, nest(key, nested))
    return content


def nest(key: str, value: Any) -> dict[str, Any]:
    """``("fusion.weight", 2)`` as ``{"fusion": {"weight": 2}}``."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _profile_path(profile: str) -> Path:
    return Path(profile) if profile.endswith(".yaml") else EXPERIMENTS / "profiles" / f"{profile}.yaml"


KINDS = ("model", "method", "reward")
"""Of the files that a profile or a grid's cell names, in experiments/<kind>s/. The method comes after the model: how
many steps it takes, and at which size, is part of a published method."""


def grid_of(profile: str) -> str:
    """The grid that reproduces a profile: its key ``use_grid``. Raises ConfigError if it names none."""
    path = _profile_path(profile)
    grid = read_experiment(path).get("use_grid")
    if not isinstance(grid, str):
        raise ConfigError(f"{path}: names no grid; add  use_grid: paper  or run  adagrpo grid GRID --profile {profile}")
    return grid


def compose(
    profile: str,
    method: str | None = None,
    settings: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    reward: str | None = None,
) -> RunConfig:
    """Compose a run: the model, method and reward files that a profile names, the profile, settings, overrides.

    Any of these files may extend another one of its folder: ``extends: NAME``.

    Args:
        profile: name of a file in experiments/profiles/, or a path to one.
        method: name of a file in experiments/methods/; None is the profile's own.
        settings: a grid cell's keys.
        overrides: dotted ``key=value`` strings; the last word.
        model: name of a file in experiments/models/; None is the profile's own.
        reward: name of a file in experiments/rewards/; None is the profile's own.

    Raises:
        ConfigError: one line that names the file or key, and the nearest valid one.
    """
    path = _profile_path(profile)
    content = read_experiment(path)
    content.pop("use_grid", None)
    given = {"model": model, "method": method, "reward": reward}
    composed: dict[str, Any] = {}
    for kind in KINDS:
        own = content.pop(f"use_{kind}", None)
        name = own if given[kind] is None else given[kind]
        if name is not None:
            composed = merge(composed, read_experiment(EXPERIMENTS / f"{kind}s" / f"{name}.yaml"))
    for layer in (content, settings or {}, parse_overrides(overrides)):
        composed = merge(composed, layer)
    return validate(composed, where=str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path))


def validate(content: Mapping[str, Any], where: str) -> RunConfig:
    """A RunConfig, or a ConfigError in one line."""
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{where}: {one_line(error)}") from None


def load(path: Path) -> RunConfig:
    """The resolved config saved with a run."""
    return validate(read_yaml(path), where=str(path))


def dump(config: RunConfig) -> str:
    """A resolved config as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
