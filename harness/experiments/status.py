"""State and results of runs, read from their directories while they are at work."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

from analysis.runs.recorded import name_files, name_repeats
from harness.config import ConfigError, RunConfig
from harness.config.cells import cell_names
from harness.experiments.jobs.launchers import JOB, queued
from harness.experiments.jobs.runner import launches_at_work
from harness.foundation.records import BROKEN, read_lines
from harness.runs.directory import RunDirectory
from harness.runs.identity import changes_of, note_on_code, read_identity


def state_of(run: RunDirectory) -> str:
    """State in status.json, or damage; interrupted if it says running, but no process holds the run's lock."""
    state = run.status()["state"]
    return "interrupted" if state == "running" and not run.is_locked() else state


def counts_of(states: Iterable[str]) -> str:
    """Number of runs in each state, such as "1 failed, 2 finished"."""
    return ", ".join(f"{number} {state}" for state, number in sorted(Counter(states).items()))


def standings(runs: Sequence[RunDirectory], damages: dict[str, str] | None = None) -> list[str]:
    """One line per cell, best first: the trained reward at the latest validation, averaged over seeds.

    Cells with different rewards are ranked separately, since scales differ. Runs may be in the middle of training and
    have few seeds: the lines show that training works, and are not a comparison. A run that cannot be read is left out,
    and ``damages`` receives the reason, by the name of the run.
    """
    read: list[tuple[RunDirectory, RunConfig, tuple[float, int] | None, dict[str, Any]]] = []
    for run in runs:
        try:
            config = run.config
            read.append((run, config, latest_validation(run, config), read_identity(run.folder)))
        except ConfigError as error:
            if damages is not None:
                damages[run.run_id] = str(error)
    configs = [config for _, config, _, _ in read]
    files = name_files([c.method.kernel for c in configs], [identity for *_, identity in read], [{}] * len(read))
    named = [", ".join(filter(None, names)) for names in zip(cell_names(configs), files, strict=True)]
    seeds = [(cell, config.seed) for cell, config in zip(named, configs, strict=True)]
    cells: dict[tuple[str, str], list[tuple[float, int]]] = {}
    repeats = name_repeats(seeds, [run.run_id for run, *_ in read])
    for (_, config, latest, _), cell, repeat in zip(read, named, repeats, strict=True):
        if latest is not None:
            key = str(sorted(config.reward.items())), ", ".join(filter(None, (cell, repeat)))
            cells.setdefault(key, []).append(latest)
    width = min(60, max((len(name) for _, name in cells), default=0))  # a long name does not push all values aside
    lines = []
    for (reward, name), reached in cells.items():
        value, iterations = mean(value for value, _ in reached), sorted({iteration for _, iteration in reached})
        span = "-".join(map(str, dict.fromkeys((iterations[0], iterations[-1]))))
        lines.append((reward, -value, f"{name:{width}}  {value:.3f}  seeds {len(reached)}, iteration {span}"))
    return [line for _, _, line in sorted(lines)]


def latest_validation(run: RunDirectory, config: RunConfig) -> tuple[float, int] | None:
    """Trained reward on validation prompts and the iteration that it was measured at; None before the first validation.

    Raises:
        ConfigError: eval.jsonl is damaged.
    """
    path = run.folder / "eval.jsonl"
    for record in reversed(read_lines(path)):
        if record.get("split") == "validation":
            try:
                return config.trained_reward(record["metrics"]), record["iteration"]
            except (AttributeError, KeyError, TypeError) as error:
                raise ConfigError(f"{path}: iteration {record['iteration']} has damaged metrics: {error}") from None
    return None


def status_lines(root: Path) -> list[str]:
    """Lines of ``adagrpo status``: launches at work; for each experiment counts of states, problems, and standings.

    Raises:
        ConfigError: there is no run.
    """
    experiments: dict[str, list[RunDirectory]] = {}
    for path in sorted(root.rglob("config.yaml")):
        experiments.setdefault(path.parent.parent.name, []).append(RunDirectory(path.parent))
    lines = [f"at work in {folder}: {progress}" for folder, progress in launches_at_work(root)]
    if not experiments and not lines:
        raise ConfigError(f"{root}: no runs there; start some with  make reproduce-paper")
    for experiment, runs in experiments.items():
        states = {run: state_of(run) for run in runs}
        lines += [*([""] if lines else []), f"{experiment}: {len(runs)} runs, {counts_of(states.values())}"]
        try:  # includes a sweep's workers, which are not runs
            in_queue = queued(sorted(path.parent for path in runs[0].folder.parent.glob(f"*/{JOB}")))
            lines += [f"  in the queue: {folder.name}  {job}" for folder, job in in_queue.items()]
        except ConfigError as error:
            lines.append(f"  {error}")
        damages: dict[str, str] = {}
        ranked = standings(runs, damages)
        for run, state in states.items():
            if state in ("running", "interrupted", "preempted", "failed", *BROKEN):
                lines.append(f"  {state} {run.run_id}{_described(run.status())}")
            if run.run_id in damages:
                lines.append(f"  cannot be read: {damages[run.run_id]}")
        lines += [f"  {line}" for line in note_on_code(changes_of(run.folder) for run in runs)]
        if ranked:
            lines += ["  trained reward on validation prompts, latest, mean over seeds:", *(f"  {r}" for r in ranked)]
    return lines


def status_records(root: Path) -> list[dict[str, Any]]:
    """Records for programs, one per run: experiment, run, state, iteration, iterations, reason, latest validation."""
    records = []
    for path in sorted(root.rglob("config.yaml")):
        run = RunDirectory(path.parent)
        status, latest = run.status(), None
        with suppress(ConfigError):  # the state tells that the run cannot be read
            latest = latest_validation(run, run.config)
        record = {key: status[key] for key in ("iteration", "iterations", "reason")}
        reached = None if latest is None else {"trained_reward": latest[0], "iteration": latest[1]}
        about = {"experiment": path.parent.parent.name, "run": run.run_id, "state": state_of(run)}
        records.append(about | record | {"validation": reached})
    return records


def _described(status: Mapping[str, Any]) -> str:
    """Progress of a run, the time of its latest update, and the reason why it stopped."""
    reason = f": {status['reason']}" if status["reason"] else ""
    if status["state"] in BROKEN:
        return reason
    ago = ""
    if "updated" in status:
        minutes = (datetime.now(UTC) - datetime.fromisoformat(status["updated"])).total_seconds() / 60
        ago = f", {minutes:.0f} min ago"
    return f"  {status['iteration']}/{status['iterations']} saved{ago}{reason}"
