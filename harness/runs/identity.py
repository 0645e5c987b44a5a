"""Identity of a run: fingerprints of the files it reads, and the code and machine that executed it.

Written into the run's directory when it is made and compared before training, because a file with the same name may
have other content by then.
"""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.runs.sources import (
    changes_since,
    note_on_changes,
    numbers_sha256,
    package_versions,
    protocol_sha256,
    require_environment,
    seal_sha256,
)
from harness.config import NUMERICS_VERSION, ConfigError, RunConfig, leaves, numeric_settings
from harness.config.run import FEWEST_PROMPTS
from harness.foundation import processor
from harness.foundation.files import read_text, write_atomically
from harness.foundation.places import CODE, IS_CHECKOUT
from harness.foundation.plugins import explaining, find

if TYPE_CHECKING:
    from harness.prompts.lists import PromptList
    from harness.rewards import Reward

FILE = "identity.json"
ENVIRONMENT = "environment.json"
ORIGINS = "origins.json"
_EXECUTION = ("commit", "code_sha256", "seal_sha256", "protocol_sha256", "packages", "python", "processor", "gpus")
"""Keys of environment.json; if one of them changes, a resumed run records another execution."""

_FIT: set[str] = set()
"""Prompt lists and rewards that fit together, see ``_require_fit``."""


def fingerprints_of(config: RunConfig) -> dict[str, str]:
    """Fingerprints of everything a run reads: ``model``, prompt lists by split, ``reward NAME`` and ``plugin NAME``.

    Raises:
        ConfigError: model, prompt list or reward model missing or damaged, unknown reward, adapters merged into 16-bit
            weights, fewer training prompts than an iteration draws, lists with prompts in common, a prompt that a
            reward cannot score, validation prompts without a sign in ``stop.on``, or a refused plug-in.
    """
    from harness.models.pipelines.files import model_fingerprint
    from harness.models.pipelines.locate import find_pipeline
    from harness.prompts.lists import read_prompts
    from harness.rewards import RewardError, build_rewards

    _require_exact_sampling(config)
    fingerprints = {"model": model_fingerprint(find_pipeline(config.model.path))}
    try:
        training, measured = build_rewards(config.reward, config.evaluation.judges, config.rewards)
    except ValueError as error:
        raise ConfigError(f"reward or evaluation.judges: {error}") from None
    rewards = {reward.name: reward for reward in (*training.parts, *measured[1:])}
    lists = {split: read_prompts(getattr(config.prompts, split)) for split in config.prompt_splits}
    drawn = config.rollout.prompts_per_iteration * config.rollout.candidates
    if len(lists["train"].prompts) < drawn:
        raise ConfigError(
            f"prompts.train {config.prompts.train}: has {len(lists['train'].prompts)} prompts, but an iteration draws "
            f"{drawn}, rollout.prompts_per_iteration times rollout.candidates"
        )
    _require_fit(config, lists, rewards)
    _require_signs(config, lists["validation"].prompts)
    fingerprints |= {split: found.sha256 for split, found in lists.items()}
    try:
        fingerprints |= {f"reward {name}": reward.fingerprint() for name, reward in rewards.items()}
    except RewardError as error:
        raise ConfigError(str(error)) from None
    return fingerprints | plugin_fingerprints(config)


def plugin_fingerprints(config: RunConfig) -> dict[str, str]:
    """sha256 of each plug-in's source by ``plugin NAME``, but for rewards and prompt lists; tests plug-ins first."""
    if not (config.plugins or config.model.adapter):
        return {}
    from harness.rules.plugins import try_out

    sources = [plugin.source for plugin in config.plugins.values()]
    sources += [config.model.adapter] if config.model.adapter else []
    rule = None if config.rule.reads_ledger else config.source_of(config.selection)
    fusion, local, kernel = map(
        config.source_of, (config.fusion.kind, config.objective.normalisation, config.method.kernel)
    )
    with explaining():
        try_out(rule, config.candidate_samples, fusion, local, kernel, config.method.eta)
        if config.model.adapter:
            from harness.models.pipelines.registry import policy_class

            policy_class(config.model)
    return {f"plugin {(plugin := find(source)).name}": plugin.sha256 for source in sources}


def _require_exact_sampling(config: RunConfig) -> None:
    """Raise ConfigError if merging adapters into 16-bit weights would lose most of an update.

    Checked when a run is made or trained, not for every configuration, so that older runs can still be read.
    """
    optimizer = config.optimizer
    if config.model.precision != "fp32" and optimizer.tuning == "lora" and optimizer.lora.merge_while_sampling:
        raise ConfigError(
            "optimizer.lora.merge_while_sampling: adapters merged into 16-bit weights lose most of an update; set it "
            "to false, or model.precision=fp32"
        )


def _require_fit(config: RunConfig, lists: Mapping[str, "PromptList"], rewards: Mapping[str, "Reward"]) -> None:
    """Raise ConfigError if a reward cannot score a prompt, or if two lists have prompts in common and must not.

    Runs of a plan that have the same lists and rewards are checked once.
    """
    known = repr((config.prompts, config.rewards, [*rewards], [found.sha256 for found in lists.values()]))
    if known in _FIT:
        return
    for split, found in lists.items():
        try:
            for prompt in found.prompts:
                for reward in rewards.values():
                    reward.check_prompt(prompt)
        except ValueError as error:
            raise ConfigError(f"prompts.{split} {getattr(config.prompts, split)}: {error}") from None
    if not config.prompts.allow_overlap:
        for line in overlaps(config, {split: found.prompts for split, found in lists.items()}):
            raise ConfigError(f"{line}; remove them from one, or set prompts.allow_overlap=true")
    _FIT.add(known)


def _require_signs(config: RunConfig, validation: Sequence[str]) -> None:
    """Raise ConfigError if the validation prompts are too few, or not the miniature's, for a sign in ``stop.on``."""
    from harness.models.miniature.prompts import is_miniature

    measured = validation[: config.evaluation.validation_prompts]
    if {"judge", "texture"} & {*config.stop.on} and len(measured) < FEWEST_PROMPTS:
        raise ConfigError(
            f"stop.on: a sign needs {FEWEST_PROMPTS} prompts, but validations measure {len(measured)}; raise "
            "evaluation.validation_prompts, or name a longer list in prompts.validation"
        )
    if "texture" in config.stop.on and not is_miniature(measured):
        raise ConfigError(
            f"stop.on: texture is that of the miniature's pictures, but prompts.validation {config.prompts.validation} "
            "has other prompts; leave it out"
        )


def doubts(config: RunConfig, lists: Mapping[str, Sequence[str]]) -> list[str]:
    """Warnings about a run's prompt lists: prompts in common that are allowed, and too few for validation."""
    found, wanted = len(lists["validation"]), config.evaluation.validation_prompts
    few = [f"evaluation.validation_prompts is {wanted}, but prompts.validation has {found}"] if found < wanted else []
    return [*(overlaps(config, lists) if config.prompts.allow_overlap else []), *few]


def overlaps(config: RunConfig, lists: Mapping[str, Sequence[str]]) -> list[str]:
    """Messages, one for each pair of a run's prompt lists with common prompts: their number and the first of them."""
    from harness.prompts.lists import prompt_key

    keys = {split: {prompt_key(prompt): prompt for prompt in prompts} for split, prompts in lists.items()}
    lines = []
    for one, other in combinations(lists, 2):
        if common := [prompt for key, prompt in keys[other].items() if key in keys[one]]:
            path, its_path = (getattr(config.prompts, split) for split in (one, other))
            lines.append(
                f"prompts.{one} {path} and prompts.{other} {its_path}: have {len(common)} prompts in common, such as "
                f"{common[0][:80]!r}"
            )
    return lines


# --- what a run is ----------------------------------------------------------------------------------------------------


def write_identity(folder: Path, config: RunConfig, fingerprints: Mapping[str, str]) -> None:
    """Write the identity of a new run, the origins of its settings, and the source of its plug-ins."""
    content = {
        "numerics_version": NUMERICS_VERSION,
        "settings": numeric_settings(config),
        "fingerprints": dict(fingerprints),
        "command": _command(),
    }
    write_atomically(folder / FILE, json.dumps(content, indent=1) + "\n")
    for name, source in config.plugin_sources.items():
        for path, text in find(source).files.items():
            (folder / "plugins" / name / path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "plugins" / name / path, text)
    write_atomically(folder / ORIGINS, json.dumps(dict(config.origins), indent=1) + "\n")


def _command() -> str | None:
    """Command line of ``adagrpo`` that makes the run, without passwords in URLs; None for another program."""
    if Path(sys.argv[0]).stem not in ("adagrpo", "cli"):
        return None
    return re.sub(r"//[^/@\s]+@", "//", shlex.join(["adagrpo", *sys.argv[1:]]))


def read_identity(folder: Path, name: str = FILE) -> dict[str, Any]:
    """Content of identity.json or origins.json; empty for a run without one. Raises ConfigError if it is damaged."""
    return _read(folder / name) if (folder / name).is_file() else {}


def require_unchanged(folder: Path, config: RunConfig, fingerprints: Mapping[str, str] | None = None) -> None:
    """Check that a run has not changed since it was made.

    Args:
        folder: directory of the run.
        config: saved configuration that is about to be executed.
        fingerprints: present result of ``fingerprints_of``; None computes it.

    Raises:
        ConfigError: something has changed, which the message names: a setting, prompt list, model, reward or plug-in.
    """
    now = fingerprints_of(config) if fingerprints is None else fingerprints
    known = _read(folder / FILE)
    paths = {split: f"prompts.{split} {getattr(config.prompts, split)}" for split in config.prompt_splits}
    paths |= {f"plugin {name}": f"plug-in {source}" for name, source in config.plugin_sources.items()}
    paths["model"] = f"model.path {config.model.path}"
    changed = [
        f"{paths.get(name, name)} is another one than the run was made with"
        for name in sorted(known["fingerprints"].keys() | now.keys())
        if known["fingerprints"].get(name) != now.get(name)
    ]
    # Converted to JSON and back like the saved settings, because tuples become lists.
    before, after = leaves(known["settings"]), leaves(json.loads(json.dumps(numeric_settings(config))))
    changed += [
        f"{key} is {after.get(key, 'the default')} in config.yaml, and was {before.get(key, 'the default')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if known["numerics_version"] != NUMERICS_VERSION:
        changed.append(
            f"the run is of numerics version {known['numerics_version']}, and the code of {NUMERICS_VERSION}"
        )
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise ConfigError(
            f"{folder}: {changed[0]}{more}; undo that, or begin a new run with  adagrpo train --profile ..."
        )


# --- what it was made by ----------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Commit, protocol, versions and hardware, as recorded in environment.json."""
    import torch

    return {
        "commit": _commit(),
        "protocol_sha256": protocol_sha256(),
        "code_sha256": numbers_sha256(),
        "seal_sha256": seal_sha256(),
        "numerics_version": NUMERICS_VERSION,
        "python": platform.python_version(),
        "packages": package_versions(),
        # Times of two runs can only be compared if both are the same.
        "processor": processor.with_capability(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _commit() -> str | None:
    if not IS_CHECKOUT:  # git might find another repository that contains the installation
        return None
    command = ["git", "-C", str(CODE), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def record_execution(folder: Path, environment: Mapping[str, Any]) -> list[str]:
    """Write a run's environment to environment.json; if it has changed since, append the new one under ``resumed``.

    Returns:
        Messages: code or packages, or the rules that judge the result, have changed since the last execution.
    """
    path = folder / ENVIRONMENT
    if not path.is_file():
        write_atomically(path, json.dumps(dict(environment), indent=1) + "\n")
        return []
    first = _read(path)
    last = [first, *first.get("resumed", [])][-1]
    own = {key: environment.get(key) for key in _EXECUTION}
    if all(last.get(key) == value for key, value in own.items()):
        return []
    write_atomically(path, json.dumps({**first, "resumed": [*first.get("resumed", []), own]}, indent=1) + "\n")
    said = []
    if any(last.get(key) != own[key] for key in ("code_sha256", "packages")):
        said.append(
            "resumed by other code or packages than it was begun with: its numbers are of both, see environment.json"
        )
    if last.get("seal_sha256") != own["seal_sha256"]:
        said.append("resumed under another seal of the rules that judge it: its result is marked, see environment.json")
    return said


def changes_of(folder: Path) -> list[str]:
    """``changes_since`` for a run's directory; a damaged environment.json counts as code that was not recorded."""
    try:
        return changes_since(_read(folder / ENVIRONMENT) if (folder / ENVIRONMENT).is_file() else {})
    except ConfigError:
        return ["code not recorded"]


def note_on_code(runs: Iterable[Collection[str]]) -> list[str]:
    """Same as ``note_on_changes``, with a hint about --rerun-changed."""
    return [f"{line}; --rerun-changed runs again what is changed" for line in note_on_changes(runs)]


def set_aside(folder: Path) -> Path:
    """Rename a run's folder to ``NAME.before-N``, which no reader takes for a run; returns the new path."""
    number = 1
    while (kept := folder.with_name(f"{folder.name}.before-{number}")).exists():
        number += 1
    folder.rename(kept)
    # A folder with a config.yaml would be taken for a run.
    (kept / "config.yaml").rename(kept / "config.before.yaml")
    return kept


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
        if not isinstance(content, dict):
            raise ValueError("no object")
        require_environment(content)
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: is damaged ({error}); restore it, or remove the run's folder") from None
    return content
