"""Settings that all runs share, settings that vary, and the environments in which the runs were made."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from analysis.runs.sources import has_begun

OF_CELL_AND_SEED = ("experiment", "seed", "selection", "fusion.enabled", "fusion.weight")
"""Settings that already name a run's cell and seed."""


def split_settings(configs: Iterable[Mapping[str, Any]]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Split the settings of runs into those with one value and those with several, without those of cell and seed.

    Returns:
        ``{dotted key: value}`` and ``{dotted key: values}`` as text; "-" stands for a key that a run lacks.
    """
    flat = [dict(flatten(config)) for config in configs]
    keys = dict.fromkeys(key for config in flat for key in config if key not in OF_CELL_AND_SEED)
    values = {key: list(dict.fromkeys(config.get(key, "-") for config in flat)) for key in keys}
    shared = {key: found[0] for key, found in values.items() if len(found) == 1}
    return shared, {key: found for key, found in values.items() if len(found) > 1}


def describe_environments(environments: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Describe how and where runs were made: all values of code, command, commit, Python, packages and hardware."""
    found: dict[str, set[str]] = {"Code": set(), "Command": set()}

    def add(name: str, *values: str) -> None:
        found.setdefault(name, set()).update(filter(None, values))

    for one in filter(has_begun, environments):
        add("Command", str(one.get("command") or "not recorded, see docs/results.md"))
        for execution, what in ((one, ""), *(({**one, **own}, " (resumed)") for own in one.get("resumed", ()))):
            add("Code", f"{sha256[:12]}{what}" if (sha256 := execution.get("code_sha256")) else "")
            add("Commit", str(execution.get("commit") or ""))
            add("Python", str(execution.get("python") or ""))
            add("Packages", *(f"{name} {version}" for name, version in execution.get("packages", {}).items()))
            add("Hardware", f"{execution.get('cores', '?')} cores {execution.get('processor', '')}".strip())
            add("GPU", *(execution.get("gpus") or ["no GPU"]))
    return {name: ", ".join(sorted(values)) for name, values in found.items() if values}


def count_warnings(configs: Iterable[Mapping[str, Any]], environments: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Count runs by warning, such as truncated prompts or prompt lists that may overlap."""
    counts: Counter[str] = Counter()
    for config, environment in zip(configs, environments, strict=True):
        counts.update(map(str, environment.get("warnings") or ()))
        if config.get("prompts", {}).get("allow_overlap"):
            counts["prompts.allow_overlap is set: lists with prompts in common are taken"] += 1
    return counts


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Flatten nested settings to pairs of dotted key and text; lists are joined with commas."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield prefix + name, ", ".join(map(str, value))
        else:
            yield prefix + name, str(value)
