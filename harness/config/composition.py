"""Composition of configurations from YAML files under experiments/ and dotted keys that override them."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.config import strict_yaml
from harness.config.arithmetic import with_arithmetic
from harness.config.messages import validated
from harness.config.names import check_name
from harness.config.run import RunConfig
from harness.foundation.errors import ConfigError
from harness.foundation.places import ROOT, from_here
from harness.foundation.plugins import absolute, is_reference

EXPERIMENTS = ROOT / "experiments"


class _Layer(NamedTuple):
    """Part of a configuration, and the place where each of its values was written."""

    content: dict[str, Any]
    origins: Mapping[str, str]
    """File and line, or override, by dotted key."""


class Weights(dict[str, Any]):
    """Weights of single rewards, as in ``reward.colour=0.5``: merged into the present weights, not replacing them."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Mapping in a YAML file. Raises ConfigError if it is missing, invalid, not a mapping, empty, or repeats a key."""
    return _read_layer(path).content


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _read_layer(path: Path) -> _Layer:
    origins: dict[str, str] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); files there: {known}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    content = strict_yaml.parse(text, str(path), lambda key, line: origins.update({key: f"{_shown(path)}:{line}"}))
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path}: must hold key: value pairs")
    return _Layer(content, origins)


_PATHS = re.compile(r"prompts\.\w+|model\.path|rewards\.[^.]+\.(path|base|question|python)|use_\w+")
"""Dotted keys of settings that name files."""


def _located(value: Any, written_in: Path | None, key: str = "") -> Any:
    """A value in which the files and plug-ins that it names have absolute paths, see ``from_here`` and ``absolute``."""
    if isinstance(value, Mapping):
        prefix = f"{key}." if key else ""
        found = {
            absolute(name, written_in) if is_reference(name) else name: _located(inner, written_in, prefix + name)
            for name, inner in value.items()
        }
        return Weights(found) if isinstance(value, Weights) else found
    if isinstance(value, list | tuple):
        return [_located(inner, written_in, key) for inner in value]
    if is_reference(value):
        return absolute(value, written_in)
    is_path = isinstance(value, str) and _PATHS.fullmatch(key) and (value.endswith(".yaml") or key[:4] != "use_")
    return from_here(value, written_in) if is_path else value


def read_experiment(path: Path) -> dict[str, Any]:
    """Content of a file of experiments/, merged into that of the file beside it that its key ``extends`` names.

    Raises:
        ConfigError: as in ``read_yaml``, or files extend each other.
    """
    content: dict[str, Any] = {}
    for layer in _with_parents(path):
        content = merge(content, layer.content)
    return content


def _with_parents(path: Path, children: tuple[Path, ...] = ()) -> list[_Layer]:
    if path in children:
        raise ConfigError(f"{path}: extends itself, by way of {', '.join(child.stem for child in children)}")
    content, origins = _read_layer(path)
    settings = {key: value for key, value in content.items() if key != "extends"}
    own = _Layer(_located(settings, path), origins)
    if "extends" not in content:
        return [own]
    parent = check_name(content["extends"], f"{path}: extends")
    return [*_with_parents(path.with_name(f"{parent}.yaml"), (*children, path)), own]


def experiment_path(kind: str, name: str, written_in: Path | None = None) -> Path:
    """Path of a file of experiments/<kind>/ by its name; a name that ends in .yaml is a path, see ``from_here``.

    Raises:
        ConfigError: the name is neither.
    """
    if isinstance(name, str) and name.endswith(".yaml"):
        return Path(from_here(name, written_in))
    return EXPERIMENTS / kind / f"{check_name(name, f'experiments/{kind}')}.yaml"


def merge(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; the second wins. ``reward``, whose keys vary, is replaced as a whole except by Weights."""
    merged = dict(base)
    for key, value in other.items():
        before = merged.get(key)
        replaces = key == "reward" and not isinstance(value, Weights)
        if isinstance(value, Mapping) and isinstance(before, Mapping) and not replaces:
            inner = merge(before, value)
            merged[key] = Weights(inner) if isinstance(before, Weights) else inner
        else:
            merged[key] = value
    return merged


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Nested mapping of overrides such as ``["fusion.weight=2", "selection=curriculum"]``, whose values are YAML.

    Raises:
        ConfigError: an override is not key=value, or its value is not valid, see ``strict_yaml``.
    """
    content: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"override {override!r}: write key=value, as in fusion.weight=2")
        if not value.strip():
            raise ConfigError(f"override {override!r}: has no value; write {key}=null for none")
        content = merge(content, nest(key, strict_yaml.parse(value, f"override {override!r}")))
    return content


def located_overrides(overrides: Iterable[str]) -> list[str]:
    """Overrides in which the files and plug-ins that they name have absolute paths, to be read in another folder."""
    found = []
    for override in overrides:
        key, _, text = override.partition("=")
        value = strict_yaml.parse(text, f"override {override!r}")
        there = _located(value, None, key)
        found.append(override if there == value else f"{key}={json.dumps(there)}")
    return found


def check_overrides(overrides: Iterable[str], taken: Mapping[str, str] = {}) -> None:
    """Raise ConfigError if two overrides set the same value, or one sets a key of ``taken``: one would be ignored.

    The values of ``taken`` say what sets its keys.
    """
    given = dict(taken)
    for override in overrides:
        key = override.partition("=")[0]
        for earlier, text in given.items():
            if f"{key}.".startswith(f"{earlier}.") or f"{earlier}.".startswith(f"{key}."):
                raise ConfigError(f"{text} and {override!r}: both set {max(key, earlier, key=len)}; keep one")
        given[key] = repr(override)


def nest(key: str, value: Any) -> dict[str, Any]:
    """Nested mapping of a dotted key: ``("fusion.weight", 2)`` becomes ``{"fusion": {"weight": 2}}``."""
    first, *rest = key.split(".")
    for part in reversed(rest):
        value = Weights({part: value}) if first == "reward" else {part: value}
    return {first: value}


KINDS = ("model", "method", "reward")
"""Kinds of files, in experiments/<kind>s/, that a profile or a grid's cell names, in order of composition: a published
method includes the number of steps and the size, and so overrides the model's."""
_NOT_SETTINGS = {"use_grid", "verified", *(f"use_{kind}" for kind in KINDS)}
"""Keys of a profile beside its settings."""


def grid_of(profile: str) -> str:
    """Grid that reproduces a profile: its key ``use_grid``. Raises ConfigError if it names none."""
    path = experiment_path("profiles", profile)
    grid = read_experiment(path).get("use_grid")
    if not isinstance(grid, str):
        raise ConfigError(f"{path}: names no grid; add  use_grid: paper  or run  adagrpo grid GRID --profile {profile}")
    return grid


VERIFICATIONS = {
    "proved": "numbers of it are published in results/",
    "executed": "tests or CI execute it; no numbers are published",
    "twins": "all its code is executed on tiny random twins of its models",
    "never": "nobody has run it",
}
"""Levels of verification that a profile's key ``verified`` can give."""


def verification(profile: str) -> str:
    """Verification level of a profile, in words; it also holds for its grids and extensions. Raises ConfigError."""
    path = experiment_path("profiles", profile)
    level = read_experiment(path).get("verified", "never")
    if level not in VERIFICATIONS:
        raise ConfigError(f"{path}: verified: {level!r} is none of {', '.join(VERIFICATIONS)}")
    return f"{level}: {VERIFICATIONS[level]}"


def compose(
    profile: str,
    method: str | None = None,
    settings: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    reward: str | None = None,
    written_in: Path | None = None,
) -> RunConfig:
    """Compose a run from the model, method and reward files that a profile names, the profile, settings and overrides.

    Later ones win. Each of these files may extend another one of its folder: ``extends: NAME``. The result records
    where each of its values was written, see ``RunConfig.origins``.

    Args:
        profile: name of a file in experiments/profiles/, or a path to one.
        method: name of a file in experiments/methods/; None for the profile's own.
        settings: nested settings of a grid's cell or a sweep's trial.
        overrides: dotted ``key=value`` strings; they win over all else, later ones over earlier ones.
        model: name of a file in experiments/models/; None for the profile's own.
        reward: name of a file in experiments/rewards/; None for the profile's own.
        written_in: file that contains these names and the settings; None if they were typed.

    Raises:
        ConfigError: one line that names the file or key, and the nearest valid one.
    """
    path = experiment_path("profiles", profile, written_in)
    profiles = _with_parents(path)
    named = {key: value for layer in profiles for key, value in layer.content.items()}
    layers: list[_Layer] = []
    for kind, given in zip(KINDS, (model, method, reward), strict=True):
        name = named.get(f"use_{kind}") if given is None else given
        if name is not None:
            layers += _with_parents(experiment_path(f"{kind}s", name, written_in))
    for layer in profiles:
        own = {key: value for key, value in layer.content.items() if key not in _NOT_SETTINGS}
        layers.append(_Layer(own, layer.origins))
    cell = _located(settings or {}, written_in)
    source = "a cell or trial" if written_in is None else f"{_shown(written_in)}, a cell or trial"
    layers.append(_Layer(cell, dict.fromkeys(leaves(cell), source)))
    for override in overrides:
        nested = _located(parse_overrides([override]), None)
        layers.append(_Layer(nested, dict.fromkeys(leaves(nested), f"override {override}")))
    composed: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        composed = merge(composed, layer.content)
        origins.update(layer.origins)
    config = with_arithmetic(validated(RunConfig, composed, _shown(path), origins))
    kept = leaves(composed)
    config.__dict__["origins"] = {key: origin for key, origin in origins.items() if key in kept}
    return config


def leaves(content: Mapping[str, Any]) -> dict[str, Any]:
    """Values that are not mappings, and empty mappings, by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}.{inner}": one for inner, one in leaves(value).items()}
        else:
            flat[key] = value
    return flat


def validate(content: Mapping[str, Any], where: str) -> RunConfig:
    """Validate a configuration as a RunConfig. Raises ConfigError with one line that begins with ``where``."""
    return validated(RunConfig, content, where)


def load(path: Path) -> RunConfig:
    """Load the resolved configuration saved with a run."""
    return validate(read_yaml(path), str(path))


def dump(config: RunConfig) -> str:
    """YAML of a resolved configuration."""
    return strict_yaml.dump(config.model_dump(mode="json"))
