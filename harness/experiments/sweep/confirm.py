"""New measurement of the best trials and the reference: on fresh seeds and on test prompts, as ordinary runs.

The best of many noisy trials is also the luckiest, so its value in the sweep is too good; the new one is not biased.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.cells.logs import hardware_of
from analysis.runs.runlog import read_directory
from analysis.sweep.tables import TRAINING_REWARD, SweepStudy
from harness.config import ConfigError, RunConfig
from harness.experiments.sweep.definition import Sweep
from harness.experiments.sweep.space import as_point
from harness.foundation.files import write_atomically
from harness.foundation.records import read_lines
from harness.runs.directory import RunDirectory

Candidate = tuple[int | None, dict[str, Any]]
"""Number of a trial and its configuration values; the number is None for a reference that is not complete."""


def candidates(sweep: Sweep, study: SweepStudy, top: int) -> list[Candidate]:
    """The reference, then at most ``top`` of the best trials, at other points than it and one another.

    Raises:
        ConfigError: no trial is complete and feasible.
    """
    if not study.best:
        raise ConfigError(f"study {sweep.name}: no trial is complete and has not collapsed; nothing to measure again")
    chosen: list[Candidate] = [(None if study.reference is None else study.reference.number, sweep.file.reference)]
    for trial in study.best:
        values = {p.path: p.config_value(trial.params[p.path]) for p in sweep.parameters}
        if len(chosen) <= top and all(values != others for _, others in chosen):
            chosen.append((trial.number, values))
    return chosen


def confirmation_configs(sweep: Sweep, values: Mapping[str, Any], seeds: Sequence[int]) -> list[RunConfig]:
    """Configurations of a candidate's runs, one per seed.

    Raises:
        ConfigError: a seed is one of the sweep's own, or there are too few for an interval.
    """
    used = sorted(set(seeds) & set(sweep.file.seeds))
    if used:
        raise ConfigError(f"--seeds: {', '.join(map(str, used))} chose the best trials already; take fresh ones")
    if len(set(seeds)) < 2:
        raise ConfigError("--seeds: an interval needs at least 2 seeds")
    return sweep.configs(values, seeds, test=True)


def write_confirmation(
    sweep: Sweep, study: SweepStudy, measured: Sequence[tuple[Candidate, Sequence[RunDirectory]]], folder: Path
) -> None:
    """Write confirmation.csv: each metric of each finished run, on validation and on test prompts.

    The first candidate in ``measured`` is the reference. Columns: ``trial``, ``is_reference``, one per parameter,
    ``seed``, ``run_id``, ``processor``, ``split``, ``metric``, ``value``.
    """
    rows = []
    for place, ((trial, values), runs) in enumerate(measured):
        point = study.cells(as_point(sweep.parameters, values))
        whose = {"trial": trial, "is_reference": place == 0, **point}
        for run in (run for run in runs if run.status()["state"] == "finished"):
            hardware = hardware_of(read_directory(run.folder))
            latest = {record["split"]: record["metrics"] for record in read_lines(run.folder / "eval.jsonl")}
            for split in ("validation", "test"):
                metrics = {TRAINING_REWARD: run.config.trained_reward(latest[split]), **latest[split]}
                of_run = {"seed": run.config.seed, "run_id": run.run_id, "processor": hardware, "split": split}
                rows += [{**whose, **of_run, "metric": name, "value": value} for name, value in metrics.items()]
    columns = ["trial", "is_reference", *study.columns.values(), "seed", "run_id", "processor", "split"]
    columns += ["metric", "value"]
    table = pd.DataFrame(rows, columns=columns, dtype=object)
    write_atomically(folder / "confirmation.csv", table.to_csv(index=False, lineterminator="\n"))
