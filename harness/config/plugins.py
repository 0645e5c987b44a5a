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


BUILT_IN = {*SELECTIONS, *METHODS, *FUSIONS, *NORMALISATIONS, *REWARDS}
_NAMED = ("selection", "method.kernel", "fusion.kind", "objective.normalisation")
"""Settings whose value is a name of a registry, or a plug-in."""
_LOCATED = ("prompts.train", "prompts.validation", "prompts.test", "model.adapter")
"""Settings whose value may be a reference, which is only made absolute."""
_ASKED = ("samples", "reads_ledger")
"""Attributes of a rule that are recorded with its reference."""


@contextmanager
def declaring(content: Mapping[str, Any]) -> Iterator[None]:
    """Context in which the names of the plug-ins that a configuration's content records are valid values."""
    recorded = [(content.get("plugins", {}), "source"), (content.get("rewards", {}), "plugin")]
    names = {
        name for section, key in recorded if _is_of_sections(section) for name in section if section[name].get(key)
    }
    token = PLUGINS.set(frozenset(names))
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
    content = {key: dict(value) if isinstance(value, dict) else value for key, value in content.items()}
    plugins, rewards = content.get("plugins", {}), content.get("rewards", {})
    if not (_is_of_sections(plugins) and _is_of_sections(rewards)):
        return content  # its validation says what is wrong

    def named(value: Any) -> Any:
        name, source = _referred(value, {name: plugin.get("source") for name, plugin in plugins.items()})
        if source is not None:
            rule = find(source).found
            plugins[name] = {"source": source} | {key: getattr(rule, key) for key in _ASKED if hasattr(rule, key)}
        return name

    def reward(value: Any) -> Any:
        name, source = _referred(value, {name: own["plugin"] for name, own in rewards.items() if "plugin" in own})
        if source is not None:
            find(source)
            rewards[name] = {**rewards.get(name, {}), "plugin": source}
        return name

    for key in _NAMED:
        _replace(content, key, named)
    for key in _LOCATED:
        _replace(content, key, lambda value: absolute(value) if is_reference(value) else value)
    for name in [name for name in rewards if is_reference(name)]:
        settings = rewards.pop(name)
        rewards[reward(name)] |= settings
    if is_reference(content.get("reward")):
        content["reward"] = {content["reward"]: 1.0}
    if isinstance(content.get("reward"), dict):
        content["reward"] = {reward(name): weight for name, weight in content["reward"].items()}
    _replace(
        content, "evaluation.judges", lambda names: [*map(reward, names)] if isinstance(names, list | tuple) else names
    )
    return content | {key: section for key, section in (("plugins", plugins), ("rewards", rewards)) if section}


def _is_of_sections(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(section, dict) for section in value.values())


def _referred(value: Any, known: Mapping[str, str]) -> tuple[Any, str | None]:
    """Name and reference of the plug-in that a value refers to; the value and None if it refers to no new one."""
    source = installed().get(value, value) if isinstance(value, str) else None
    if value in (*BUILT_IN, *known) or not is_reference(source):
        return value, None
    source = absolute(str(source))
    name = value if value in installed() else source.rpartition(":")[2]
    if name in BUILT_IN:
        raise ConfigError(f"plug-in {source}: {name} is a name of the project's own; give the object another one")
    if known.get(name, source) != source:
        raise ConfigError(f"plug-ins {known[name]} and {source}: have one name; give one another")
    return name, source


def _replace(content: dict[str, Any], key: str, change: Callable[[Any], Any]) -> None:
    """Change the value of a dotted key, if there is one."""
    *sections, last = key.split(".")
    inner = content.get(sections[0]) if sections else content
    if isinstance(inner, dict) and inner.get(last) is not None:
        inner[last] = change(inner[last])
