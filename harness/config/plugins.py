"""Plug-ins in a configuration: references are replaced by names that runs, tables and files can use."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import Field

from harness.config.section import PLUGINS, Section
from harness.foundation.errors import ConfigError
from harness.foundation.names import FUSIONS, METHODS, NORMALISATIONS, REWARDS, SELECTIONS
from harness.foundation.plugins import absolute, find, installed, is_reference


class PluginConfig(Section):
    """Plug-in that a setting names, with the requirements that a selection rule declares."""

    source: str
    """Reference: path/to/file.py:Object or module:Object."""
    samples: int = Field(1, ge=0, le=100)
    """Number of deterministic samples of each candidate that the rule receives."""
    reads_ledger: bool = False
    """Whether the rule receives the ledger, with the outcomes of earlier prompts."""


_BUILT_IN = {*SELECTIONS, *METHODS, *FUSIONS, *NORMALISATIONS, *REWARDS}
_NAMED = (("selection",), ("method", "kernel"), ("fusion", "kind"), ("objective", "normalisation"))
"""Settings whose value is a name of a registry, or a plug-in."""


@contextmanager
def declaring(plugins: Mapping[str, Any], rewards: Mapping[str, Any]) -> Iterator[None]:
    """Context in which the names of these plug-ins are valid values."""
    own = {name for name, settings in rewards.items() if isinstance(settings, Mapping) and settings.get("plugin")}
    token = PLUGINS.set(frozenset({*plugins, *own}))
    try:
        yield
    finally:
        PLUGINS.reset(token)


def declare(content: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's content with each reference replaced by its name, and recorded under ``plugins``.

    A reward's reference is recorded under ``rewards.NAME.plugin``. Lists of prompts and ``model.adapter`` keep theirs,
    made absolute. A plug-in that is recorded already, as in a saved configuration, is not loaded.

    Raises:
        PluginError: a plug-in cannot be found or imported.
        ConfigError: two plug-ins have one name, or one has a built-in name.
    """
    content = dict(content)
    plugins = {name: _noted(value) for name, value in dict(content.get("plugins") or {}).items()}
    rewards = dict(content.get("rewards") or {})

    def named(value: Any) -> Any:
        return _name(
            value, plugins, lambda plugin: {key: getattr(plugin, key) for key in _ASKED if hasattr(plugin, key)}
        )

    def reward(value: Any) -> Any:
        sources = {
            name: {"source": own["plugin"]}
            for name, own in rewards.items()
            if isinstance(own, dict) and "plugin" in own
        }
        name = _name(value, sources, lambda plugin: {})
        if name in sources:
            rewards[name] = {**(rewards.get(name) or {}), "plugin": sources[name]["source"]}
        return name

    for *sections, key in _NAMED:
        _replace(content, sections, key, named)
    for key in ("train", "validation", "test"):
        _replace(content, ["prompts"], key, _absolute)
    _replace(content, ["model"], "adapter", _absolute)
    for name in [name for name in rewards if is_reference(name)]:
        settings = rewards.pop(name)
        rewards[reward(name)] |= settings or {}
    if is_reference(content.get("reward")):
        content["reward"] = {content["reward"]: 1.0}
    if isinstance(content.get("reward"), dict):
        content["reward"] = {reward(name): weight for name, weight in content["reward"].items()}
    _replace(
        content,
        ["evaluation"],
        "judges",
        lambda judges: [*map(reward, judges)] if isinstance(judges, list | tuple) else judges,
    )
    content |= {"plugins": plugins} if plugins else {}
    return content | ({"rewards": rewards} if rewards else {})


_ASKED = ("samples", "reads_ledger")


def _noted(value: Any) -> Any:
    return {"source": absolute(value)} if isinstance(value, str) else value


def _absolute(value: Any) -> Any:
    return absolute(value) if is_reference(value) else value


def _name(value: Any, known: dict[str, Any], asked: Callable[[Any], Mapping[str, Any]]) -> Any:
    """Name for a reference, which is added to ``known``; any other value is returned unchanged."""
    if not isinstance(value, str) or value in _BUILT_IN or value in known:
        return value
    source = installed().get(value, value)
    if not is_reference(source):
        return value
    source = absolute(source)
    name = source.rpartition(":")[2] if source != installed().get(value) else value
    if name in _BUILT_IN:
        raise ConfigError(f"plug-in {source}: {name} is a name of the project's own; give the object another one")
    if name in known and known[name]["source"] != source:
        raise ConfigError(f"plug-ins {known[name]['source']} and {source}: have one name; give one another")
    known[name] = {"source": source, **asked(find(source).found)}
    return name


def _replace(content: dict[str, Any], sections: list[str], key: str, change: Callable[[Any], Any]) -> None:
    """Change a value in nested mappings, if it is present; the mappings are copied."""
    inner = content
    for section in sections:
        if not isinstance(inner.get(section), dict):
            return
        inner[section] = dict(inner[section])
        inner = inner[section]
    if inner.get(key) is not None:
        inner[key] = change(inner[key])
