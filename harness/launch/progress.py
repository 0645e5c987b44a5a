"""How far runs have come and what they have reached, read from their directories while they are at work."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

from analysis.recorded import name_files, name_repeats
from harness.config import ConfigError
from harness.files import read_text
from harness.identity import by_other_code, note_on_code
from harness.launch.cells import cell_names
from harness.launch.queue import SETTLED
from harness.runs import RunDirectory


def state_of(run: RunDirectory) -> str:
    """finished, running, waiting, failed, or interrupted: it says that it runs, but nobody holds its lock."""
    state = run.status()["state"]
    return "interrupted" if state == "running" and not run.is_locked() else state


class Progress:
    """How far a launch has come, from its runs' status files; as a string, one line."""

    def __init__(self, runs: Sequence[RunDirectory]) -> None:
        self.unsettled = list(runs)
        """Runs that have neither finished nor failed."""
        self.waiting = self.running = 0
        self.share = 0.0
        """Of the work that is settled or done, in [0, 1]."""
        self._total = len(runs)
        self._trained_and_settled = 0.0
        self.refresh()
        self._began, self._trained_at_start = time.monotonic(), self._trained

    def refresh(self) -> list[RunDirectory]:
        """Look again; returns the runs that have been settled since the last look."""
        # From status.json alone: this is asked twice a second, and reading every config would cost the workers.
        statuses = {run: run.status() for run in self.unsettled}
        trained = {run: status["iteration"] / status["iterations"] for run, status in statuses.items()}
        settled = [run for run, status in statuses.items() if status["state"] in SETTLED]
        self.unsettled = [run for run in self.unsettled if run not in settled]
        self._trained_and_settled += sum(trained[run] for run in settled)
        self._left = sum(1 - trained[run] for run in self.unsettled)
        self._trained = self._trained_and_settled + len(self.unsettled) - self._left
        self.share = 1 - self._left / self._total
        self.running = sum(statuses[run]["state"] == "running" and run.is_locked() for run in self.unsettled)
        self.waiting = len(self.unsettled) - self.running
        return settled

    def __str__(self) -> str:
        counts = f"{self.share:.0%} done, {self.running} running, {self.waiting} waiting"
        # What a failed run leaves undone says nothing about the pace.
        gained = self._trained - self._trained_at_start
        if gained <= 0:
            return counts
        minutes = (time.monotonic() - self._began) * self._left / gained / 60
        return f"{counts}, about {f'{minutes / 60:.1f} hours' if minutes >= 90 else f'{minutes:.1f} min'} left"


def standings(runs: Sequence[RunDirectory]) -> list[str]:
    """One line a cell, best first: the mean over its seeds of the trained reward at the latest validation.

    Rewards are ranked apart, since their scales differ. Cells are in the middle of training and have few seeds: this
    shows that training works, and compares nothing.
    """
    latest: dict[str, list[tuple[float, int]]] = {}
    rewards: dict[str, str] = {}
    configs = [run.config for run in runs]
    recorded = [_recorded(run) for run in runs]
    files = name_files([c.method.kernel for c in configs], [r[0] for r in recorded], [r[1] for r in recorded])
    cells = [", ".join(filter(None, names)) for names in zip(cell_names(configs), files, strict=True)]
    seeds = [(cell, config.seed) for cell, config in zip(cells, configs, strict=True)]
    repeats = name_repeats(seeds, [run.run_id for run in runs])
    cells = [", ".join(filter(None, names)) for names in zip(cells, repeats, strict=True)]
    for run, config, cell in zip(runs, configs, cells, strict=True):
        reached = latest_validation(run)
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
    identity = json.loads(read_text(path)) if path.is_file() else {}
    counts = {record["split"]: record["num_prompts"] for record in _evaluations(run) if "num_prompts" in record}
    return {"fingerprints": identity.get("fingerprints")}, counts


def _evaluations(run: RunDirectory) -> Iterator[dict[str, Any]]:
    path = run.folder / "eval.jsonl"
    for line in read_text(path).splitlines() if path.exists() else ():
        with suppress(json.JSONDecodeError):  # is being written at this moment
            yield json.loads(line)


def latest_validation(run: RunDirectory) -> tuple[float, int] | None:
    """The trained reward on validation prompts and the iteration it was measured at; None before the first."""
    records = [record for record in _evaluations(run) if record["split"] == "validation"]
    if not records:
        return None
    return run.config.trained_reward(records[-1]["metrics"]), records[-1]["iteration"]


def status_lines(root: Path) -> list[str]:
    """What ``adagrpo status`` prints: for each experiment counts, what is at work or broken, and the standings.

    Raises:
        ConfigError: no run is there.
    """
    experiments: dict[str, list[RunDirectory]] = {}
    for path in sorted(root.rglob("config.yaml")):
        experiments.setdefault(path.parent.parent.name, []).append(RunDirectory(path.parent))
    if not experiments:
        raise ConfigError(f"{root}: no runs there; start some with  make reproduce-paper")
    lines: list[str] = []
    for experiment, runs in experiments.items():
        states = {run: state_of(run) for run in runs}
        counts = Counter(states.values())
        lines.append(f"{experiment}: {len(runs)} runs, " + ", ".join(f"{n} {s}" for s, n in sorted(counts.items())))
        for run, state in states.items():
            if state in ("running", "interrupted", "failed"):
                lines.append(f"  {state} {_describe(run)}")
        lines += [f"  {line}" for line in note_on_code(len(by_other_code(run.folder for run in runs)))]
        ranked = standings(runs)
        if ranked:
            lines += ["  trained reward on validation prompts, latest, mean over seeds:", *(f"  {r}" for r in ranked)]
        lines.append("")
    return lines[:-1]


def _describe(run: RunDirectory) -> str:
    status = run.status()
    updated = datetime.fromisoformat(status["updated"])
    minutes = (datetime.now(UTC) - updated).total_seconds() / 60
    reason = f": {status['reason']}" if status["reason"] else ""
    done = f"{status['iteration']}/{status['iterations']} saved"
    return f"{run.run_id}  {done}, {minutes:.0f} min ago{reason}"


def _range(iterations: Sequence[int]) -> str:
    first, last = min(iterations), max(iterations)
    return str(first) if first == last else f"{first}-{last}"
