"""Trial of a sweep: one run after another on paired seeds, watched at every validation, and their mean."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from analysis.sweep.tables import REFERENCE, SURPLUS, TRAINING_REWARD
from harness.config import ConfigError, RunConfig, nearest
from harness.experiments.jobs.interruption import interruption_heard
from harness.experiments.sweep.definition import COMPUTE, Sweep
from harness.foundation.errors import StopRun

NOT_FINITE, BELOW_BASE, NOT_VALID = "not_finite", "below_base", "not_valid"
"""Constraints of a trial, violated above 0: a seed diverged; the trained reward fell below the untrained model's by
more than ``_LOSS``; the configuration refuses a point, although each value is valid beside the reference's others."""
_LOSS = 0.05
"""Share of the untrained model's reward that may be lost: a few worse validation samples are not a collapse."""

OnValidation = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class RunResult:
    """Result of a run that was not stopped."""

    run_id: str
    compute: float
    """Forward passes spent on training, a trained sample counting 3."""
    divergence: str | None = None
    """Reason why training could not go on; None if the run is finished."""


ExecuteRun = Callable[[RunConfig, OnValidation], RunResult]
"""Function that executes or resumes a run and calls back at each validation in order, including those of an earlier
execution; an iteration that is measured again after a kill may be reported again."""


class SurplusTrial(Exception):
    """Raised by a trial beyond those that the study is to have."""


@dataclass
class SeedRecord:
    """Measurements of one seed of a trial so far."""

    seed: int
    run_id: str = ""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """Iteration and trained reward at each validation."""
    values: dict[str, float] = field(default_factory=dict)
    """Latest value of each objective."""


@dataclass
class Objective:
    """Objective function that Optuna calls with a trial, in a worker's process.

    Attributes:
        sweep: the sweep.
        execute: function that executes a run.
        number: number of the latest trial; None before the first.
    """

    sweep: Sweep
    execute: ExecuteRun
    number: int | None = None

    def __call__(self, trial: optuna.Trial) -> list[float]:
        """Values of the objectives.

        Raises:
            TrialPruned: the trial is not promising or not valid, or another worker has it now.
            SurplusTrial: the budget is spent.
        """
        self.number, began = trial.number, time.monotonic()
        # The value is the number, since a trial that is tried again inherits the attributes of the one before.
        trial.set_user_attr("begun", trial.number)
        taken = trial.study.get_trials(
            deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        )
        # Two workers may have found the last place free at the same time.
        if self.sweep.is_full(sum(other.number < trial.number for other in taken)):
            trial.set_user_attr(SURPLUS, True)
            raise SurplusTrial
        suggested = {p.path: p.suggest(trial) for p in self.sweep.parameters}
        print(f"trial {trial.number}: " + "  ".join(f"{path} {value}" for path, value in suggested.items()), flush=True)
        seeds: list[SeedRecord] = []
        divergence = None
        try:
            for config in self._configs(trial, suggested):
                seeds.append(SeedRecord(config.seed))
                divergence = self._execute_seed(trial, config, seeds)
                # The trial is not worth the cost of the other seeds.
                if divergence is not None:
                    break
        except KeyboardInterrupt:
            interruption_heard()
            raise
        finally:
            with suppress(UpdateFinishedTrialError):  # another worker has its trial now
                trial.set_user_attr("seeds", [vars(record) for record in seeds])
                trial.set_user_attr("seconds", time.monotonic() - began)
        trial.set_user_attr("collapse", divergence)
        trial.set_constraint(NOT_FINITE, float(divergence is not None))
        untrained, trained = (mean(s.curve[end][1] for s in seeds) for end in (0, -1))
        trial.set_constraint(BELOW_BASE, untrained - trained - _LOSS * abs(untrained))
        return [mean(record.values[metric] for record in seeds) for metric in self.sweep.file.objectives]

    def _configs(self, trial: optuna.Trial, suggested: Mapping[str, Any]) -> list[RunConfig]:
        """Configurations of a point's runs. Raises TrialPruned if the point is not valid; TPE learns to avoid it."""
        values = {p.path: p.config_value(suggested[p.path]) for p in self.sweep.parameters}
        try:
            return self.sweep.configs(values, self.sweep.file.seeds)
        except ConfigError as error:
            trial.set_user_attr("collapse", str(error))
            trial.set_constraint(NOT_VALID, 1.0)
            raise optuna.TrialPruned(f"no run can have these values: {error}") from None

    def _execute_seed(self, trial: optuna.Trial, config: RunConfig, seeds: list[SeedRecord]) -> str | None:
        """Execute the run of a seed. Returns the reason if it diverged, else None."""
        record, objectives = seeds[-1], [metric for metric in self.sweep.file.objectives if metric != COMPUTE]
        may_stop = self.sweep.file.pruner.kind != "none" and trial.user_attrs.get("origin") != REFERENCE

        def watch(iteration: int, metrics: Mapping[str, float]) -> None:
            if iteration in dict(record.curve):
                return
            measured = {**metrics, TRAINING_REWARD: config.trained_reward(metrics)}
            record.curve.append((iteration, measured[TRAINING_REWARD]))
            for metric in objectives:
                if metric not in measured:
                    raise ConfigError(f"objectives: {metric!r} is not measured; {nearest(metric, sorted(measured))}")
                record.values[metric] = measured[metric]
            # The untrained model is the same in all trials; trials with several objectives cannot be pruned.
            if iteration == 0 or len(self.sweep.file.objectives) > 1 or not objectives:
                return
            try:
                # All trials have the same seeds in the same order: at a step, all have trained the same seeds as long.
                step = (len(seeds) - 1) * self.sweep.base.iterations + iteration
                trial.report(mean(s.values[objectives[0]] for s in seeds), step)
            except UpdateFinishedTrialError:
                raise StopRun("another worker has its trial now") from None
            # A run at its last iteration is finished rather than stopped: another trial can reuse it.
            if may_stop and iteration < config.iterations and trial.should_prune():
                raise StopRun(f"given up as trial {trial.number} of the sweep {self.sweep.name}")

        try:
            result = self.execute(config, watch)
        except StopRun as stop:
            raise optuna.TrialPruned(str(stop)) from None
        if not record.curve:
            raise ConfigError(f"the untrained model cannot be measured: {result.divergence}")
        record.run_id, record.values[COMPUTE] = result.run_id, result.compute
        is_last = len(seeds) == len(self.sweep.file.seeds)
        if result.divergence is None and may_stop and not is_last and trial.should_prune():
            raise optuna.TrialPruned(f"given up after seed {config.seed}")
        return result.divergence
