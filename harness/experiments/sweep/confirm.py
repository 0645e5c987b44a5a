"""The best trials and the reference again: on fresh seeds, measured on test prompts, as ordinary runs.

The best of many noisy trials is the luckiest, too: what the sweep says of it is too good. Only this says how good.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from harness.config import ConfigError, RunConfig
from harness.experiments.sweep.definition import TRAINING_REWARD, Sweep
from harness.experiments.sweep.runlog import evaluations
from harness.experiments.sweep.study import REFERENCE
from harness.experiments.sweep.tables import best_trials, cells, listed_trials, write_csv
from harness.runs.directory import RunDirectory

_MIN_SEEDS = 2


@dataclass(frozen=True)
class Candidate:
    """A point to be measured again.

    Attributes:
        trial: its number; None for a reference that is no trial.
        is_reference: whether the others are compared with it.
        values: config path -> configuration value.
    """

    trial: int | None
    is_reference: bool
    values: dict[str, Any]


def candidates(sweep: Sweep, study: optuna.Study, top: int) -> list[Candidate]:
    """The reference, then the best trials at other points than it and one another.

    Args:
        sweep: the sweep.
        study: its study.
        top: how many, at most.

    Raises:
        ConfigError: no trial is complete and feasible.
    """
    values = {
        trial.number: {p.path: p.config_value(trial.params[p.path]) for p in sweep.parameters}
        for trial in best_trials(sweep, study)
    }
    if not values:
        raise ConfigError(f"study {sweep.name}: no trial is complete and has not collapsed; nothing to measure again")
    origins = {trial.user_attrs.get("origin"): trial.number for trial in listed_trials(study)}
    chosen = [Candidate(origins.get(REFERENCE), True, sweep.reference_values)]
    for number, point in values.items():
        if len(chosen) <= top and all(point != other.values for other in chosen):
            chosen.append(Candidate(number, False, point))
    return chosen


def confirmation_configs(sweep: Sweep, candidate: Candidate, seeds: Sequence[int]) -> list[RunConfig]:
    """The runs of a candidate, one a seed.

    Raises:
        ConfigError: a seed is one of the sweep's own, or there are too few for an interval.
    """
    used = sorted(set(seeds) & set(sweep.file.seeds))
    if used:
        raise ConfigError(f"--seeds: {', '.join(map(str, used))} chose the best trials already; take fresh ones")
    if len(set(seeds)) < _MIN_SEEDS:
        raise ConfigError(f"--seeds: an interval needs at least {_MIN_SEEDS} seeds")
    return sweep.configs(candidate.values, seeds, test=True)


def write_confirmation(
    sweep: Sweep, measured: Sequence[tuple[Candidate, Sequence[RunDirectory]]], folder: Path
) -> None:
    """Write confirmation.csv: each metric of each finished run, on validation and on test prompts.

    The folder is made if it is missing. Columns: ``trial``, ``is_reference``, one a parameter, ``seed``, ``run_id``,
    ``split``, ``metric``, ``value``.
    """
    rows = []
    for candidate, runs in measured:
        point = cells(sweep, sweep.suggested(candidate.values))
        for run in runs:
            if run.status()["state"] != "finished":
                continue
            config = run.config
            for split in ("validation", "test"):
                _, metrics = evaluations(run, split)[-1]
                for metric, value in {TRAINING_REWARD: config.trained_reward(metrics), **metrics}.items():
                    whose = {"trial": candidate.trial, "is_reference": candidate.is_reference, **point}
                    of_run = {"seed": config.seed, "run_id": run.run_id, "split": split}
                    rows.append({**whose, **of_run, "metric": metric, "value": value})
    folder.mkdir(parents=True, exist_ok=True)
    names = ["trial", "is_reference", *(p.column for p in sweep.parameters)]
    write_csv(folder / "confirmation.csv", rows, [*names, "seed", "run_id", "split", "metric", "value"])
