"""What a profile's grid needs, compared with what is here."""

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from harness.config import ConfigError, RunConfig, compose, grid_of
from harness.experiments.doctor import machine
from harness.experiments.doctor.architecture import Architecture, find_architecture
from harness.experiments.doctor.compute import (
    UTILISATION,
    PromptCounter,
    forwards_of,
    most_prompts,
    seconds_per_forward,
)
from harness.experiments.doctor.machine import Gpu
from harness.experiments.doctor.memory import SAVINGS, checkpoint_bytes, embedding_bytes, estimate
from harness.experiments.doctor.report import Finding, Report, size
from harness.experiments.grid import expand_grid
from harness.experiments.jobs.plan import measured_cost
from harness.models.pipelines.files import cache_folder
from harness.models.pipelines.locate import find_local, how_to_get, is_hub_id, problem_of
from harness.models.pipelines.published import find_published
from harness.prompts.lists import read_prompts
from harness.rewards.readiness import find_ready
from harness.runs.directory import RUNS


def check(profile: str, overrides: Sequence[str] = (), seconds: float | None = None) -> Report:
    """Compare what a profile's grid needs with what is here. Downloads nothing and loads no model.

    Args:
        profile: name of a file in experiments/profiles/, or a path to one.
        overrides: dotted ``key=value`` strings.
        seconds: that one forward of a sample takes; None is as measured by finished runs, else an estimate.

    Raises:
        ConfigError: the profile or its grid is not valid, or a GPU does not answer.
    """
    config = compose(profile, overrides=overrides)
    configs = expand_grid(grid_of(profile), overrides, profile=profile)
    path, found = config.model.path, machine.find_gpus()
    on_gpu = config.runtime.device == "cuda" or (config.runtime.device == "auto" and bool(found))
    gpus = found if on_gpu else None
    folder = find_local(path)
    problem = None if folder is None else problem_of(folder)
    architecture = find_architecture(path, None if problem else folder)
    rewards = tuple(dict.fromkeys(name for c in configs for name in (*c.reward, *c.evaluation.judges)))
    prompts, count_prompts = _prompts(config)
    findings = [_processes(config, gpus), _weights(path, folder, problem)]
    if architecture is None:
        findings.append(Finding("memory", f"not known: {path} is neither whole here nor one whose sizes are known"))
    else:
        findings.append(_memory(configs, architecture, rewards, gpus))
        findings.append(_disk(configs, architecture, count_prompts, download=folder is None))
    hours = _hours(configs, architecture, count_prompts, gpus, seconds)
    return Report(profile, [*findings, *_rewards(rewards, configs), *prompts, hours])


def _processes(config: RunConfig, gpus: Sequence[Gpu] | None) -> Finding:
    """GPUs against processes."""
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
    configs: Sequence[RunConfig], architecture: Architecture, rewards: Sequence[str], gpus: Sequence[Gpu] | None
) -> Finding:
    """The cell of the grid that needs most, against the GPU in use with the least free memory, or main memory."""
    import psutil

    processes = configs[0].runtime.processes // configs[0].runtime.machines
    estimates = [(estimate(config, architecture, rewards, gpus is not None), config) for config in configs]
    needed, config = max(estimates, key=lambda pair: pair[0].total)
    text = f"about {size(needed.total)} per process while {needed.moment}"
    details = tuple(f"{size(part):>10}  {name}" for name, part in needed.parts.items() if part)
    # Without a GPU there is nothing to compare with, and that is a finding of its own.
    free = (
        [gpu.free for gpu in gpus[:processes]] if gpus is not None else [psutil.virtual_memory().available // processes]
    )
    if not free or needed.total <= min(free):
        return Finding("memory", text, None, details)
    where = "on a GPU" if gpus else "of main memory for each"
    also = [
        "optimizer.tuning=lora" * (config.optimizer.tuning == "full"),
        "runtime.engine=fsdp2" * (config.optimizer.tuning == "full" and processes > 1),
        "model.execution.text_encoders=free" * (config.model.execution.text_encoders == "keep"),
    ]
    advice = ", or ".join([*filter(None, also), SAVINGS[needed.moment]])
    problem = f"a process needs about {size(needed.total)}, {size(min(free))} are free {where}; what saves: {advice}"
    return Finding("memory", text, problem, details)


def _disk(
    configs: Sequence[RunConfig], architecture: Architecture, count_prompts: PromptCounter, download: bool
) -> Finding:
    """Checkpoints of all runs, embeddings of freed encoders, the model's download; they may share a disk."""
    from huggingface_hub.constants import HF_HUB_CACHE

    published = find_published(configs[0].model.path)
    needs = [(f"{len(configs)} runs", sum(checkpoint_bytes(config, architecture) for config in configs), RUNS)]
    if configs[0].model.execution.text_encoders == "free":
        of_prompts = most_prompts(configs, count_prompts) * embedding_bytes(configs[0], architecture)
        needs.append(("embeddings of prompts", of_prompts, cache_folder("embeddings")))
    if download and published is not None:
        needs.append(("the download", int(published.gigabytes * 1e9), Path(HF_HUB_CACHE)))
    disks: dict[int, list[tuple[str, int, Path]]] = defaultdict(list)
    for need in needs:
        disks[machine.existing(need[2]).stat().st_dev].append(need)
    texts, problems = [], []
    for on_disk in disks.values():
        what = ", ".join(f"{size(count)} for {name}" for name, count, _ in on_disk)
        free = machine.free_disk(on_disk[0][2])
        texts.append(f"{what}, {size(free)} free")
        if sum(count for _, count, _ in on_disk) > free:
            problems.append(f"{what} are needed, {size(free)} are free at {machine.existing(on_disk[0][2])}")
    return Finding("disk", "; ".join(texts), "; ".join(problems) or None)


def _rewards(names: Sequence[str], configs: Sequence[RunConfig]) -> list[Finding]:
    panel = find_ready(names, {name: setting for config in configs for name, setting in config.rewards.items()})
    ready = ", ".join(reward.name for reward in panel.ready)
    findings = [Finding("rewards", f"ready: {ready}")] if ready else []
    return findings + [Finding("rewards", f"not ready: {name}", why) for name, why in panel.missing.items()]


def _prompts(config: RunConfig) -> tuple[list[Finding], PromptCounter]:
    """Lists that cannot be read, and how many prompts the lists of a run have; 0 where one cannot be read."""

    @cache
    def count(path: str) -> int:
        try:
            return len(read_prompts(path).prompts)
        except ConfigError as error:
            problems.append(Finding("prompts", f"{path} cannot be read", str(error)))
            return 0

    problems: list[Finding] = []
    counts = [f"{count(getattr(config.prompts, split)):,} {split}" for split in ("train", "validation", "test")]
    found = [Finding("prompts", ", ".join(counts)), *problems]
    return found, lambda of, split: count(getattr(of.prompts, split))


def _hours(
    configs: Sequence[RunConfig],
    architecture: Architecture | None,
    count_prompts: PromptCounter,
    gpus: Sequence[Gpu] | None,
    seconds: float | None,
) -> Finding:
    """Hours of the grid: as finished runs took, else by counted forwards."""
    processes, forwards = configs[0].runtime.processes, forwards_of(configs, count_prompts)
    cost = measured_cost({config.experiment for config in configs}) if seconds is None else None
    if seconds is not None:
        total, basis = forwards * seconds, f"{seconds:.3g} s per forward, as given"
    elif cost is not None:
        iterations = sum(config.iterations for config in configs)
        spent = iterations * cost.seconds_per_iteration + len(configs) * cost.evaluation_seconds_per_run
        total, basis = spent * processes, f"as {cost.num_runs} finished runs took"
    elif gpus is not None and architecture is not None:
        each, gpu = seconds_per_forward(architecture, configs[0], gpus[0].name if gpus else None)
        basis = f"{each:.3g} s per forward, estimated for {gpu} at {UTILISATION:.0%} of its peak"
        total, basis = forwards * each, f"{basis}; give --seconds-per-forward once it is measured"
    else:
        unknown = "not known before a run has finished, or with --seconds-per-forward"
        return Finding("hours", f"{forwards:,} forwards; {unknown}")
    hours = total / 3600
    unit, together = ("hours", "processes") if gpus is None else ("GPU-hours", "GPUs")
    shared = f" ({hours / processes:,.1f} hours on {processes} {together})" if processes > 1 else ""
    return Finding("hours", f"{hours:,.1f} {unit}{shared}: {basis}")
