"""What a profile's grid needs, compared with what is here."""

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from harness.config import ConfigError, RunConfig, compose, grid_of
from harness.experiments.doctor import compute, machine
from harness.experiments.doctor.architecture import Architecture, find_architecture
from harness.experiments.doctor.machine import Gpu
from harness.experiments.doctor.memory import checkpoint_bytes, embedding_bytes, estimate, how_to_save
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
    path, gpus = config.model.path, machine.find_gpus()
    on_gpu = config.runtime.device == "cuda" or (config.runtime.device == "auto" and bool(gpus))
    folder = find_local(path)
    problem = None if folder is None else problem_of(folder)
    architecture = find_architecture(path, None if problem else folder)
    rewards = tuple(dict.fromkeys(name for c in configs for name in (*c.reward, *c.evaluation.judges)))
    findings = [_gpus(config, gpus, on_gpu), _weights(path, folder, problem)]
    if architecture is None:
        findings.append(Finding("memory", f"not known: {path} is neither whole here nor one whose sizes are known"))
    else:
        usable = gpus[: config.runtime.processes // config.runtime.machines] if on_gpu else None
        findings.append(_memory(configs, architecture, rewards, usable))
        findings.append(_disk(configs, architecture, download=folder is None))
    findings += [*_rewards(rewards, configs), *_prompts(config), _compute(configs, architecture, gpus, on_gpu, seconds)]
    return Report(profile, findings)


def _gpus(config: RunConfig, gpus: Sequence[Gpu], on_gpu: bool) -> Finding:
    wanted = config.runtime.processes // config.runtime.machines
    if not on_gpu:
        return Finding("GPUs", f"none needed: with runtime.device={config.runtime.device} it runs on the CPU here")
    names = ", ".join(sorted({gpu.name for gpu in gpus})) or "none"
    problem = f"{len(gpus)} of {wanted} CUDA devices are here; use such a machine, or fewer runtime.processes"
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
    """The cell of the grid that needs most, against the GPU with the least free memory, or main memory."""
    processes = configs[0].runtime.processes // configs[0].runtime.machines
    estimates = [(estimate(config, architecture, rewards, gpus is not None), config) for config in configs]
    needed, config = max(estimates, key=lambda pair: pair[0].total)
    if gpus is None:
        free, where = machine.free_memory() // processes, "of main memory free for each"
    else:
        # Without a GPU there is nothing to compare with, and that is a finding of its own.
        free, where = min((gpu.free for gpu in gpus), default=0), "free on a GPU"
    has_room = gpus == [] or needed.total <= free
    advice = how_to_save(config, needed.moment)
    problem = f"a process needs about {size(needed.total)}, {size(free)} are {where}; {advice}"
    compared = "" if gpus == [] else f", {size(free)} {where}"
    return Finding(
        "memory",
        f"about {size(needed.total)} a process{compared}, while {needed.moment}; sizes from {architecture.source}",
        None if has_room else problem,
        tuple(f"{size(part):>10}  {name}" for name, part in needed.parts.items() if part),
    )


def _disk(configs: Sequence[RunConfig], architecture: Architecture, download: bool) -> Finding:
    """Checkpoints of all runs, embeddings of freed encoders, the model's download; they may share a disk."""
    published = find_published(configs[0].model.path)
    of_runs = sum(checkpoint_bytes(config, architecture) for config in configs)
    needs = [(f"{len(configs)} runs", of_runs, RUNS)]
    if configs[0].model.execution.text_encoders == "free":
        of_prompts = compute.most_prompts(configs, _prompt_counter()) * embedding_bytes(configs[0], architecture)
        needs.append(("embeddings of prompts", of_prompts, cache_folder("embeddings")))
    if download and published is not None:
        needs.append(("the download", int(published.gigabytes * 1e9), machine.hub_cache()))
    on_disk: dict[int, list[tuple[str, int, Path]]] = defaultdict(list)
    for need in needs:
        on_disk[machine.existing(need[2]).stat().st_dev].append(need)
    texts, problems = [], []
    for together in on_disk.values():
        total, free, place = sum(need[1] for need in together), machine.free_disk(together[0][2]), together[0][2]
        what = ", ".join(f"{size(need[1])} for {need[0]}" for need in together)
        texts.append(f"{what}, {size(free)} free")
        if total > free:
            problems.append(f"{what} are needed, {size(free)} are free at {machine.existing(place)}")
    return Finding("disk", "; ".join(texts), "; ".join(problems) or None)


def _rewards(names: Sequence[str], configs: Sequence[RunConfig]) -> list[Finding]:
    settings = {name: setting for config in configs for name, setting in config.rewards.items()}
    panel = find_ready(names, settings)
    ready = [reward.name for reward in panel.ready]
    findings = [Finding("rewards", f"ready: {', '.join(ready)}")] if ready else []
    return findings + [Finding("rewards", f"not ready: {n}", reason) for n, reason in panel.missing.items()]


def _prompts(config: RunConfig) -> list[Finding]:
    counts, problems = {}, []
    for split in ("train", "validation", "test"):
        try:
            counts[split] = len(read_prompts(getattr(config.prompts, split)).prompts)
        except ConfigError as error:
            problems.append(Finding("prompts", f"{split} cannot be read", str(error)))
    text = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    return ([Finding("prompts", text)] if counts else []) + problems


def _compute(
    configs: Sequence[RunConfig],
    architecture: Architecture | None,
    gpus: Sequence[Gpu],
    on_gpu: bool,
    seconds: float | None,
) -> Finding:
    """Hours of the grid: as finished runs took, else by counted forwards."""
    config = configs[0]
    work = compute.work_of(configs, _prompt_counter())
    details = (
        f"{work.num_runs} runs, {work.iterations:,} iterations: {work.training.sample_forwards:,} forwards to sample, "
        f"{work.training.train_forwards:,} with gradient (counting 3), {work.evaluation_forwards:,} for evaluation",
    )
    cost = measured_cost({c.experiment for c in configs}) if seconds is None else None
    if cost is not None:
        spent = work.iterations * cost.seconds_per_iteration + work.num_runs * cost.evaluation_seconds_per_run
        return _hours(
            spent * config.runtime.processes, config, on_gpu, f"as {cost.num_runs} finished runs took", details
        )
    gpu = compute.known_gpu(gpus[0].name if gpus else None) or compute.ASSUMED_GPU
    if seconds is None and on_gpu and architecture is not None:
        each = compute.seconds_per_forward(architecture, config, gpu)
        basis = (
            f"{each:.3g} s a forward, estimated for {gpu} at {compute.UTILISATION:.0%} of its peak; give "
            "--seconds-per-forward once it is measured"
        )
    elif seconds is not None:
        each, basis = seconds, f"{seconds:.3g} s a forward, as given"
    else:
        note = "hours are not known before a run has finished, or with --seconds-per-forward"
        return Finding("compute", f"{work.forwards:,} forwards; {note}", details=details)
    scoring = sum(compute.scoring_seconds(c, gpu) for c in configs) if on_gpu else 0.0
    return _hours(work.forwards * each + scoring, config, on_gpu, basis, details)


def _hours(seconds: float, config: RunConfig, on_gpu: bool, basis: str, details: tuple[str, ...]) -> Finding:
    hours, processes = seconds / 3600, config.runtime.processes
    unit, together = ("GPU-hours", f"{processes} GPUs") if on_gpu else ("hours", f"{processes} processes")
    each = f" ({hours / processes:,.1f} hours on {together})" if processes > 1 else ""
    return Finding("compute", f"{hours:,.1f} {unit}{each}: {basis}", details=details)


def _prompt_counter() -> compute.PromptCounter:
    @cache
    def count(path: str) -> int:
        try:
            return len(read_prompts(path).prompts)
        except ConfigError:
            return 0  # a finding of its own

    return lambda config, split: count(getattr(config.prompts, split))
