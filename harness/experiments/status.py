"""What runs have reached, read from their directories while they are at work."""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

from analysis.runs.recorded import name_files, name_repeats
from harness.config import ConfigError, RunConfig
from harness.config.cells import cell_names
from harness.experiments.jobs.runner import launches_at_work
from harness.files import read_text
from harness.records import BROKEN, read_lines
from harness.runs.directory import RunDirectory
from harness.runs.identity import changes_of, note_on_code


def state_of(run: RunDirectory) -> str:
    """finished, running, waiting, failed, or interrupted: it says that it runs, but nobody holds its lock."""
    state = run.status()["state"]
    return "interrupted" if state == "running" and not run.is_locked() else state


def standings(runs: Sequence[RunDirectory], damages: dict[str, str] | None = None) -> list[str]:
    """One line a cell, best first: the mean over its seeds of the trained reward at the latest validation.

    Rewards are ranked apart, since their scales differ. Cells are in the middle of training and have few seeds: this
    shows that training works, and compares nothing. A run that cannot be read is left out; ``damages`` receives why, by
    its name.
    """
    latest: dict[str, list[tuple[float, int]]] = {}
    rewards: dict[str, str] = {}
    readable = []
    for run in runs:
        try:
            config = run.config
            readable.append((run, config, latest_validation(run, config), _recorded(run)))
        except ConfigError as error:
            if damages is not None:
                damages[run.run_id] = str(error)
    configs = [config for _, config, _, _ in readable]
    recorded = [of_run for _, _, _, of_run in readable]
    files = name_files([c.method.kernel for c in configs], [r[0] for r in recorded], [r[1] for r in recorded])
    cells = [", ".join(filter(None, names)) for names in zip(cell_names(configs), files, strict=True)]
    seeds = [(cell, config.seed) for cell, config in zip(cells, configs, strict=True)]
    repeats = name_repeats(seeds, [run.run_id for run, _, _, _ in readable])
    cells = [", ".join(filter(None, names)) for names in zip(cells, repeats, strict=True)]
    for (_, config, reached, _), cell in zip(readable, cells, strict=True):
        if reached is not None:
            latest.setdefault(cell, []).append(reached)
            rewards[cell] = str(sorted(config.reward.items()))
    if not latest:
        return []
    width = max(map(len, latest))
    ordered = sorted(latest.items(), key=lambda item: (rewards[item[0]], -mean(value for value, _ in item[1])))
    return [
        f"{cell:{width}}  {mean(value for value, _ in reached):.3f}  seeds {len(reached)}, "
        f"iteration {_range([iteration for _, iteration in reached])}"
        for cell, reached in ordered
    ]


def _recorded(run: RunDirectory) -> tuple[dict[str, Any], dict[str, int]]:
    """What ``name_files`` compares: fingerprints of the run's files, and how many prompts were measured."""
    path = run.folder / "identity.json"
    try:
        identity = json.loads(read_text(path)) if path.is_file() else {}
        fingerprints = {"fingerprints": identity.get("fingerprints")}
    except (json.JSONDecodeError, RecursionError, AttributeError):
        raise ConfigError(f"{path}: is damaged; put back a copy of it") from None
    evaluations = read_lines(run.folder / "eval.jsonl")
    return fingerprints, {line["split"]: line["num_prompts"] for line in evaluations if "num_prompts" in line}


def latest_validation(run: RunDirectory, config: RunConfig | None = None) -> tuple[float, int] | None:
    """The trained reward on validation prompts and the iteration it was measured at; None before the first.

    Args:
        run: the run.
        config: its configuration, if it has been read.

    Raises:
        ConfigError: eval.jsonl or config.yaml is damaged.
    """
    path = run.folder / "eval.jsonl"
    for record in reversed(read_lines(path)):
        if record.get("split") == "validation":
            try:
                return (config or run.config).trained_reward(record["metrics"]), record["iteration"]
            except (KeyError, TypeError) as error:
                raise ConfigError(f"{path}: iteration {record['iteration']} has no {error}") from None
    return None


def status_lines(root: Path) -> list[str]:
    """What ``adagrpo status`` prints: launches at work, and of each experiment counts, what is broken, and standings.

    Raises:
        ConfigError: no run is there.
    """
    experiments: dict[str, list[RunDirectory]] = {}
    for path in sorted(root.rglob("config.yaml")):
        experiments.setdefault(path.parent.parent.name, []).append(RunDirectory(path.parent))
    if not experiments:
        raise ConfigError(f"{root}: no runs there; start some with  make reproduce-paper")
    lines = [f"at work in {folder}: {progress}" for folder, progress in launches_at_work(root)]
    for experiment, runs in experiments.items():
        states = {run: state_of(run) for run in runs}
        damages: dict[str, str] = {}
        ranked = standings(runs, damages)
        counts = Counter(states.values())
        lines.append(f"{experiment}: {len(runs)} runs, " + ", ".join(f"{n} {s}" for s, n in sorted(counts.items())))
        for run, state in states.items():
            if state in ("running", "interrupted", "failed", *BROKEN):
                lines.append(f"  {state} {_describe(run)}")
            if run.run_id in damages:
                lines.append(f"  cannot be read: {damages[run.run_id]}")
        lines += [f"  {line}" for line in note_on_code(changes_of(run.folder) for run in runs)]
        if ranked:
            lines += ["  trained reward on validation prompts, latest, mean over seeds:", *(f"  {r}" for r in ranked)]
        lines.append("")
    return lines[:-1]


def _describe(run: RunDirectory) -> str:
    status = run.status()
    reason = f": {status['reason']}" if status["reason"] else ""
    if status["state"] in BROKEN:
        return f"{run.run_id}{reason}"
    updated = datetime.fromisoformat(status["updated"])
    minutes = (datetime.now(UTC) - updated).total_seconds() / 60
    done = f"{status['iteration']}/{status['iterations']} saved"
    return f"{run.run_id}  {done}, {minutes:.0f} min ago{reason}"


def _range(iterations: Sequence[int]) -> str:
    first, last = min(iterations), max(iterations)
    return str(first) if first == last else f"{first}-{last}"
