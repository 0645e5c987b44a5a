"""Measurements without training: gradients at fixed checkpoints, and whether choosing prompts can matter."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from harness.commands import Where, command, say
from harness.foundation.errors import ConfigError, HarnessError
from harness.foundation.places import WORK

if TYPE_CHECKING:
    from torch import Tensor


@command
def mechanism(
    overrides: Annotated[
        Sequence[str], "first the name of a file in experiments/mechanism/ (default: miniature), then KEY=VALUE"
    ] = (),
    *,
    checkpoints: Annotated[Sequence[str], "run directories, and base: the untrained model (default: base)"] = ("base",),
    slots: Annotated[int | None, "chunks at a time (default: as many as cores, or GPUs, suffice for)", 1] = None,
    output: Annotated[Path | None, "folder (default: results/mechanism)"] = None,
) -> int:
    """Which prompts teach, and what fusion does: gradients at fixed checkpoints; resumable."""
    from analysis.gradients.report import write_mechanism_report
    from harness.experiments.gradients.chunks import plan
    from harness.experiments.gradients.definition import load_mechanism
    from harness.experiments.gradients.tables import is_written, write_tables
    from harness.experiments.jobs.runner import run_jobs

    named = [*overrides[:1]] if overrides and "=" not in overrides[0] else []
    loaded = load_mechanism(named[0] if named else "miniature", checkpoints, overrides[len(named) :])
    folder = output or WORK / "results" / "mechanism"
    if is_written(loaded, folder):
        print(f"{folder} holds this measurement already")
    elif (folder / "about.json").exists():
        raise ConfigError(f"{folder}: holds another measurement; name a folder with --output, or delete its about.json")
    else:
        working = loaded.folder(loaded.checkpoints[0]).parent
        outcome = run_jobs(plan(loaded), slots, working, say, stop_at_failure=True)
        for name, reason in outcome.failed.items():
            raise HarnessError(f"{name}: {reason}; the same command continues where it stopped")
        write_tables(loaded, folder)
    print(f"summary: {write_mechanism_report(folder)}")
    return 0


@command
def oracle(
    overrides: Annotated[Sequence[str], "as in adagrpo train"] = (),
    *,
    profile: Annotated[str, "of the run"] = "miniature",
    checkpoint: Annotated[str, "run directory, or base: the untrained model"] = "base",
    references: Annotated[int, "training prompts that the reference direction is of", 2] = 256,
    prompts: Annotated[int, "training prompts to choose from", 2] = 32,
    noises: Annotated[int, "initial noises per prompt", 2] = 8,
    output: Annotated[Path | None, "folder (default: results/oracle)"] = None,
) -> int:
    """An upper bound: what choosing prompts could gain at most, one update ahead; resumable."""
    from harness.experiments.gradients.oracle import load_oracle, measure
    from harness.experiments.upper_bound import write_upper_bound
    from harness.foundation.files import read_text, write_atomically

    loaded = load_oracle(profile, overrides, checkpoint, references, prompts, noises)
    folder = output or WORK / "results" / "oracle"
    table = folder / "oracle.json"
    if not table.exists():
        table_of = {key: json.dumps(value) for key, value in measure(loaded, say).items()}
        write_atomically(table, "{" + ",\n".join(f'"{key}": {value}' for key, value in table_of.items()) + "}\n")
    elif json.loads(read_text(table))["identity"] != loaded.identity:
        raise ConfigError(f"{table}: is of another measurement; name a folder with --output, or delete it")
    print(f"{write_upper_bound(folder)}\nwritten to {folder}")
    return 0


@command
def probe(
    overrides: Annotated[Sequence[str], "as in adagrpo train"] = (),
    *,
    profile: Annotated[str, "of the run"] = "miniature",
    models: Annotated[Sequence[str], "files in experiments/models/ (default: the profile's own)"] = (),
    prompts: Annotated[int, "from the validation list's start", 2] = 64,
    noises: Annotated[int, "deterministic samples per prompt", 2] = 8,
    output: Annotated[Path | None, "folder (default: results/probes/PROFILE)"] = None,
    device: Where = "auto",
) -> int:
    """How much of the reward is the prompt's, how prompts and groups spread: of untrained models."""
    import torch

    from analysis.probing import choices_table, summary, table
    from harness.config import compose
    from harness.experiments import probe as probing
    from harness.experiments.choices import Chosen, choices
    from harness.foundation.files import write_atomically
    from harness.prompts.lists import read_prompts
    from harness.runs.directory import environment
    from harness.trained.loading import device_of

    named: Sequence[str | None] = models or [None]
    configs = [compose(profile, overrides=overrides, model=model) for model in named]
    lists = [read_prompts(config.prompts.validation) for config in configs]
    for config, found in zip(configs, lists, strict=True):
        if len(found.prompts) < prompts:
            raise ConfigError(f"--prompts {prompts}: {config.prompts.validation} has {len(found.prompts)} prompts")
    folder, where = output or WORK / "results" / "probes" / Path(profile).stem, device_of(device)
    summaries: dict[str, dict[str, Any]] = {}
    for config, found, model in zip(configs, lists, named, strict=True):
        torch.set_num_threads(config.runtime.threads)
        name = model or Path(config.model.path).name
        say(f"{name}: {probing.num_pictures(config, prompts, noises):,} pictures")
        probed = probing.probe(config, found.prompts[:prompts], noises, where, say)
        judged = {judge: values.tolist() for judge, values in probed.judged.items()}
        chosen: Mapping[str, Chosen] = {}
        if prompts >= config.rollout.candidates:
            chosen = choices(probed.rewards, probed.groups, config.rollout.candidates, config.model.num_steps)
        told = {rule: one._asdict() for rule, one in chosen.items()}
        summaries[name] = summary(probed.rewards, probed.groups, judged) | {"choices": told}
        content = {
            "profile": profile,
            "overrides": overrides,
            "model": config.model.path,
            "prompts_sha256": found.sha256,
            "summary": summaries[name],
            "environment": environment(),
            "prompts": found.prompts[:prompts],
            "rewards": _rounded(probed.rewards),
            "groups": _rounded(probed.groups),
        }
        write_atomically(folder / f"probe-{name}.json", json.dumps(content, indent=1) + "\n")
    lines = [*table(summaries), "", *choices_table(summaries)]
    write_atomically(folder / "probe.md", "\n".join(lines) + "\n")
    print("\n".join(["", *lines, "", f"written to {folder}"]))
    return 0


def _rounded(values: "Tensor") -> list[object]:
    """As nested lists, to the fourth digit: what a score holds."""
    rounded: list[object] = (values * 1e4).round().div(1e4).tolist()
    return rounded
