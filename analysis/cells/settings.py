"""What was run: the settings that all runs share, those that vary, and where the runs were made."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

_IDENTITY = {"experiment", "seed", "selection", "fusion.enabled", "fusion.weight"}


def split_settings(configs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Dotted settings of runs as text: those with one value, and those with several, which name no cell or seed.

    Args:
        configs: resolved configurations.

    Returns:
        ``{key: value}`` and ``{key: values}``; a key that some runs lack has the value "-" there.
    """
    flat = [dict(flatten(config)) for config in configs]
    keys = dict.fromkeys(key for config in flat for key in config if key not in _IDENTITY)
    values = {key: list(dict.fromkeys(config.get(key, "-") for config in flat)) for key in keys}
    shared = {key: found[0] for key, found in values.items() if len(found) == 1}
    return shared, {key: found for key, found in values.items() if len(found) > 1}


def describe_environments(environments: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Where runs were made: commit, Python, packages, hardware; each with all values that occur."""

    def every(values: Iterator[str]) -> str:
        return ", ".join(sorted(set(values)))

    recorded = [environment for environment in environments if environment]
    packages = (
        f"{name} {version}" for environment in recorded for name, version in environment.get("packages", {}).items()
    )
    gpus = (gpu for environment in recorded for gpu in environment.get("gpus") or ["no GPU"])
    machines = (f"{e.get('cores', '?')} cores {e.get('processor', '')}".strip() for e in recorded)
    described = {
        "Code": every(
            f"{one['code_sha256'][:12]}{' (resumed)' if one is not environment else ''}"
            for environment in recorded
            for one in (environment, *environment.get("resumed", ()))
            if one.get("code_sha256")
        ),
        "Commit": every(str(e["commit"]) for e in recorded if e.get("commit")),
        "Python": every(str(e["python"]) for e in recorded if e.get("python")),
        "Packages": every(packages),
        "Hardware": every(machines),
        "GPU": every(gpus),
    }
    return {name: text for name, text in described.items() if text}


def count_warnings(runs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, int]:
    """What runs warned of, such as prompts that are cut off, and that their prompt lists may overlap.

    Args:
        runs: resolved configuration and environment of each.

    Returns:
        Lines, each with the number of runs that it is true of.
    """
    counts: Counter[str] = Counter()
    for config, environment in runs:
        counts.update(map(str, environment.get("warnings") or ()))
        prompts = config.get("prompts")
        if isinstance(prompts, Mapping) and prompts.get("allow_overlap"):
            counts["prompts.allow_overlap is set: lists with prompts in common are taken"] += 1
    return counts


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted keys and texts, lists with commas."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield prefix + name, ", ".join(map(str, value))
        else:
            yield prefix + name, str(value)
