"""Comparison of what a profile's grid needs with what this machine has."""

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from analysis.cells.costs import measured_rates
from harness.config import ConfigError, RunConfig, compose, grid_of, verification
from harness.experiments.doctor.sizes import (
    Architecture,
    bytes_of,
    checkpoint_bytes,
    disk_bytes,
    find_architecture,
    fullest,
    host_memory,
    kept_bytes,
    memory,
)
from harness.experiments.doctor.speed import LINKS, UTILISATION, gathered_bytes, seconds_per_forward
from harness.experiments.grid import expand_grid
from harness.experiments.plan import expected_forwards, expected_seconds, num_prompts
from harness.foundation.places import cache_folder
from harness.models.pipelines.locate import find_local, how_to_get, is_hub_id, problem_of
from harness.models.pipelines.published import find_published
from harness.prompts.lists import read_prompts
from harness.rewards.readiness import find_ready
from harness.runs.directory import RUNS
from harness.training.accounting import expected_cost

# In a separate process: asking for a GPU's free memory occupies half a GiB of it for as long as the process lives.
_PROBE = """
import json, torch
numbers = range(torch.cuda.device_count())
print(json.dumps([(torch.cuda.get_device_name(n), torch.cuda.mem_get_info(n)[0]) for n in numbers]))
"""
_SAVING = {
    "memory": "a lower model.max_batch, settings of model.execution, rewards.NAME.offload, optimizer.tuning=lora, "
    "runtime.engine=fsdp2",
    "host": "fewer offloaded rewards, more machines",
}
CARDS = (24, 40, 80, 141)
"""GPU sizes that get a verdict of their own, in GB as they are sold; these are really GiB, less a reserved part."""
_USABLE = 0.97 * 2**30
_MARGIN = 1.1
"""Factor by which estimates of memory may be too low."""


class Finding(NamedTuple):
    """One fact about the machine, or an estimate."""

    area: str
    text: str
    problem: str | None = None
    """What is missing, and what to do about it; None if nothing is missing."""
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """Findings of all checks of a profile."""

    profile: str
    findings: list[Finding]

    @property
    def missing(self) -> list[str]:
        """Problems that keep the profile from running here; empty if there are none."""
        return [f"{finding.area}: {finding.problem}" for finding in self.findings if finding.problem is not None]

    def record(self) -> dict[str, Any]:
        """Record for programs: profile, its verification, findings, and what is missing."""
        found = [finding._asdict() for finding in self.findings]
        verified = verification(self.profile)
        return {"profile": self.profile, "verified": verified, "findings": found, "missing": self.missing}

    def lines(self) -> list[str]:
        """Lines to print."""
        lines = [f"profile {self.profile}, {verification(self.profile)}"]
        for area, text, problem, details in self.findings:
            lines.append(f"{' ' if problem is None else '!'} {area:9}{text}")
            lines += [f"{'':15}{detail}" for detail in details]
        missing = [f"- {line}" for line in self.missing]
        return [*lines, "missing:", *missing] if missing else [*lines, "nothing is missing"]


class Gpu(NamedTuple):
    """A GPU and its free memory at this moment, in bytes."""

    name: str
    free: int


def check(
    profile: str,
    overrides: Sequence[str] = (),
    seconds: float | None = None,
    measured: Mapping[str, float] = {},
) -> Report:
    """Compare what a profile's grid needs with what this machine has. Downloads nothing and loads no model.

    Args:
        profile: name of a file in experiments/profiles/, or a path to one.
        overrides: dotted ``key=value`` strings.
        seconds: time of one forward pass of a sample; None takes it from finished runs, else estimates it.
        measured: measurements of ``adagrpo gpu-check``, see ``read_measured``; what it lacks is estimated.

    Raises:
        ConfigError: the profile or its grid is not valid, or the GPUs do not answer.
    """
    config = compose(profile, overrides=overrides)
    configs = expand_grid(grid_of(profile), overrides, profile=profile)
    path, found = config.model.path, find_gpus()
    on_gpu = config.runtime.device == "cuda" or (config.runtime.device == "auto" and bool(found))
    gpus = found if on_gpu else None
    folder = find_local(path)
    problem = None if folder is None else problem_of(folder)
    architecture = find_architecture(path, None if problem else folder)
    rewards = tuple(dict.fromkeys(name for c in configs for name in (*c.reward, *c.evaluation.judges)))
    findings = [_gpus(config, gpus), _weights(path, folder, problem)]
    if architecture is None:
        findings.append(
            Finding("memory", f"not known: {path} is neither whole here nor of a kind whose sizes are known")
        )
    else:
        findings += _memory(configs, architecture, rewards, gpus, measured.get("activations", 1.0))
        findings.append(_disk(configs, architecture, download=folder is None))
    hours = _hours(configs, architecture, gpus, seconds, measured.get("flops"))
    return Report(profile, [*findings, *_rewards(rewards, configs), *_prompts(config), hours])


def find_gpus() -> list[Gpu]:
    """CUDA devices that a process started here may use. Raises ConfigError if they do not answer."""
    if not torch.cuda.is_available():
        return []
    result = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(f"the CUDA devices of this machine do not answer: {reason}")
    return [Gpu(*facts) for facts in json.loads(result.stdout)]


def size(count: float) -> str:
    """Human-readable number of bytes, such as ``61.9 GiB``."""
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} GiB"


def _gpus(config: RunConfig, gpus: Sequence[Gpu] | None) -> Finding:
    """Compare the number of GPUs with the number of processes on one machine."""
    wanted = config.runtime.processes // config.runtime.machines
    if gpus is None:
        return Finding("GPUs", f"none needed: with runtime.device={config.runtime.device} it runs on the CPU here")
    problem = f"{len(gpus)} of {wanted} CUDA devices are here; use such a machine, or fewer runtime.processes"
    names = ", ".join(sorted({gpu.name for gpu in gpus})) or "none"
    return Finding("GPUs", f"{wanted} wanted, {len(gpus)} found: {names}", problem if len(gpus) < wanted else None)


def _weights(path: str, folder: Path | None, problem: str | None) -> Finding:
    if folder is None:
        return Finding("weights", f"{path} is not on this machine", how_to_get(path))
    if problem is not None:
        return Finding("weights", f"{path} is not whole", problem + (f"; {how_to_get(path)}" * is_hub_id(path)))
    return Finding("weights", f"{path} is here")


def _memory(
    configs: Sequence[RunConfig],
    architecture: Architecture,
    rewards: Sequence[str],
    gpus: Sequence[Gpu] | None,
    activations: float,
) -> list[Finding]:
    """Compare the grid's most demanding cell with the used GPU that has least free memory, or with main memory."""
    runtime, available = configs[0].runtime, psutil.virtual_memory().available
    processes = runtime.processes // runtime.machines
    parts = fullest(memory(config, architecture, rewards, gpus is not None, activations) for config in configs)
    if gpus is None:
        return [_fits("memory", "per process", parts, available // processes, "of main memory for each")]
    # Without a GPU there is nothing to compare with; the missing GPU is a finding of its own.
    free = min((gpu.free for gpu in gpus[:processes]), default=None)
    cards = ", ".join(f"{card} GB {verdict(sum(parts.values()), card * _USABLE)}" for card in CARDS)
    on_host = fullest(host_memory(config, architecture, rewards) for config in configs)
    return [
        _fits("memory", f"per process ({cards})", parts, free, "on a GPU"),
        _fits("host", "of main memory on a machine", on_host, available if gpus else None),
    ]


def verdict(needed: float, free: float) -> str:
    """Whether the needed memory fits, if the estimate may be too low by the factor ``_MARGIN``."""
    return "fits" if needed * _MARGIN <= free else "tight" if needed <= free else "does not fit"


def _fits(area: str, what: str, parts: dict[str, int], free: int | None, where: str = "here") -> Finding:
    needed = sum(parts.values())
    details = tuple(f"{size(count):>10}  {name}" for name, count in parts.items() if count)
    text = f"about {size(needed)} {what}"
    if free is None:
        return Finding(area, text, None, details)
    problem = f"about {size(needed)} are needed, {size(free)} are free {where}; what may save: {_SAVING[area]}"
    text = f"{text}; {verdict(needed, free)}, {size(free)} are free {where}"
    return Finding(area, text, problem if needed > free else None, details)


def _disk(configs: Sequence[RunConfig], architecture: Architecture, download: bool) -> Finding:
    """Disk space of all runs' checkpoints, embeddings of freed encoders, and the model's download, summed per disk."""
    from huggingface_hub.constants import HF_HUB_CACHE

    model, published = configs[0].model, find_published(configs[0].model.path)
    needs = [
        (f"{len(configs)} runs", sum(disk_bytes(config, architecture) for config in configs), RUNS),
        # The old checkpoint stays until the new one is complete.
        ("one more checkpoint", max(checkpoint_bytes(config, architecture) for config in configs), RUNS),
    ]
    if configs[0].runtime.checkpoints_of_finished == "remove":
        of_one = max(kept_bytes(config, architecture) for config in configs)
        needs.append(("the checkpoints of a run at work", of_one, RUNS))
    if model.execution.text_encoders == "free":
        of_prompt = architecture.text_tokens(model) * architecture.text_channels * bytes_of(model)
        of_prompts = _most_prompts(configs) * of_prompt
        needs.append(("embeddings of prompts", of_prompts, cache_folder("embeddings")))
    if download and published is not None:
        needs.append(("the download", int(published.gigabytes * 1e9), Path(HF_HUB_CACHE)))
    disks: dict[int, list[tuple[str, int, Path]]] = defaultdict(list)
    for name, count, path in needs:
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        disks[there.stat().st_dev].append((name, count, there))
    texts, problems = [], []
    for on_disk in disks.values():
        what = ", ".join(f"{size(count)} for {name}" for name, count, _ in on_disk)
        free = shutil.disk_usage(on_disk[0][2]).free
        texts.append(f"{what}, {size(free)} free")
        if sum(count for _, count, _ in on_disk) > free:
            problems.append(f"{what} are needed, {size(free)} are free at {on_disk[0][2]}")
    return Finding("disk", "; ".join(texts), "; ".join(problems) or None)


def _most_prompts(configs: Sequence[RunConfig]) -> int:
    """Largest number of different prompts that runs of the same lists can ask for: those drawn, or all there are."""
    lists, of_a_seed = configs[0].prompts, dict[int, int]()
    for c in configs:
        of_a_seed[c.seed] = c.iterations * c.rollout.prompts_per_iteration * c.rollout.candidates
    drawn = min(num_prompts(lists.train), sum(of_a_seed.values()))
    return drawn + num_prompts(lists.validation) + num_prompts(lists.test)


def _rewards(names: Sequence[str], configs: Sequence[RunConfig]) -> list[Finding]:
    panel = find_ready(names, {name: setting for config in configs for name, setting in config.rewards.items()})
    ready = ", ".join(reward.name for reward in panel.ready)
    findings = [Finding("rewards", f"ready: {ready}")] if ready else []
    return findings + [Finding("rewards", f"not ready: {name}", why) for name, why in panel.missing.items()]


def _prompts(config: RunConfig) -> list[Finding]:
    """Number of prompts in each list, and lists that cannot be read."""
    lists = {split: str(getattr(config.prompts, split)) for split in ("train", "validation", "test")}
    counts = ", ".join(f"{num_prompts(path):,} {split}" for split, path in lists.items())
    findings = [Finding("prompts", counts)]
    for path in dict.fromkeys(lists.values()):
        try:
            read_prompts(path)
        except ConfigError as error:
            findings.append(Finding("prompts", f"{path} cannot be read", str(error)))
    return findings


def _hours(
    configs: Sequence[RunConfig],
    architecture: Architecture | None,
    gpus: Sequence[Gpu] | None,
    seconds: float | None,
    flops: float | None,
) -> Finding:
    """Hours of the grid: from the given time per forward pass, from finished runs, or from an estimate for the GPU."""
    processes, forwards = configs[0].runtime.processes, sum(map(_forwards, configs))
    details: tuple[str, ...] = ()
    rates = measured_rates(RUNS / configs[0].experiment) if seconds is None and flops is None else None
    if seconds is not None:
        total, basis = forwards * seconds, f"{seconds:.3g} s per forward, as given"
    elif rates is not None:
        total = sum(expected_seconds(config, rates) for config in configs) * processes
        basis = f"as {rates.num_runs} finished runs took"
    elif gpus is not None and architecture is not None:
        each, gpu = seconds_per_forward(architecture, configs[0], gpus[0].name if gpus else "", flops)
        how = f"estimated for {gpu} at {UTILISATION:.0%} of its peak; adagrpo gpu-check measures it, for --measured"
        if flops is not None:
            how = f"by {flops / 1e12:.0f} measured TFLOP/s"
        basis = f"{each:.3g} s per forward, {how}"
        total, moved = forwards * each, gathered_bytes(architecture, configs[0])
        if moved:
            waits = {link: moved / rate for link, rate in LINKS.items()}
            total += waits["NVLink"] * processes * sum(config.iterations for config in configs)
            times = ", ".join(f"{wait:.0f} s over {link}" for link, wait in waits.items())
            details = (f"fsdp2 gathers {size(moved)} of weights an iteration and process: {times}",)
    else:
        unknown = "not known before a run has finished, or with --seconds-per-forward"
        return Finding("hours", f"{forwards:,} forwards; {unknown}")
    hours = total / 3600
    unit, together = ("hours", "processes") if gpus is None else ("GPU-hours", "GPUs")
    shared = f" ({hours / processes:,.1f} hours on {processes} {together})" if processes > 1 else ""
    return Finding("hours", f"{hours:,.1f} {unit}{shared}: {basis}", None, details)


def _forwards(config: RunConfig) -> int:
    """Work of a run in forward passes; with gradient checkpointing, a backward pass repeats its forward pass."""
    again = expected_cost(config).train_forwards if config.model.execution.gradient_checkpointing else 0
    return expected_forwards(config) + config.iterations * again
