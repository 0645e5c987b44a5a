"""A trial: one run after another on paired seeds, watched at every validation, and their mean."""

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from harness.config import ConfigError, RunConfig, nearest
from harness.errors import StopRun
from harness.experiments.sweep.definition import COSTS, TRAINING_REWARD, Sweep
from harness.experiments.sweep.study import REFERENCE

NOT_FINITE, BELOW_BASE, NOT_VALID = "not_finite", "below_base", "not_valid"
"""Constraints of a trial, violated above 0: seeds that diverged; trained reward lost against the untrained model; that
the configuration refuses the point, each of whose values it takes beside the reference's."""
SURPLUS, INTERRUPTED = "surplus", "interrupted"
"""User attributes: of a trial begun beyond the budget; the number of the interrupted trial that this one repeats."""

OnValidation = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class RunResult:
    """How a run ended, other than by being stopped."""

    run_id: str
    costs: Mapping[str, float]
    """By the names of ``COSTS``."""
    divergence: str | None = None
    """Why training could not go on; None if the run is finished."""


ExecuteRun = Callable[[RunConfig, OnValidation], RunResult]
"""Executes a run, or continues it, and calls back at each validation in order, also at those of an earlier execution;
an iteration that is measured again after a kill may be reported again."""


class SurplusTrial(Exception):
    """The study has as many trials as it is to have."""


@dataclass
class SeedRecord:
    """One seed of a trial: what was measured so far."""

    seed: int
    run_id: str = ""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """Iteration and trained reward at each validation."""
    values: dict[str, float] = field(default_factory=dict)
    """Latest value of each objective."""

    @property
    def base(self) -> float:
        """Trained reward before training."""
        return self.curve[0][1]

    @property
    def reached(self) -> float:
        """Trained reward at the latest validation."""
        return self.curve[-1][1]


class Objective:
    """What Optuna calls with a trial, in a worker's process.

    Args:
        sweep: the sweep.
        execute: executes a run.
        say: receives lines of progress.
    """

    def __init__(self, sweep: Sweep, execute: ExecuteRun, say: Callable[[str], None]) -> None:
        self.sweep, self.execute, self.say = sweep, execute, say
        self.number: int | None = None
        """Of the latest trial."""
        self.was_taken_over = False
        """Whether another worker has the latest trial, since this one was silent for too long."""

    def __call__(self, trial: optuna.Trial) -> list[float]:
        """The values of the objectives.

        Raises:
            TrialPruned: it is not promising.
            SurplusTrial: the budget is spent.
            UpdateFinishedTrialError: another worker has it now.
        """
        self.number, self.was_taken_over = trial.number, False
        try:
            return self._measure(trial)
        except UpdateFinishedTrialError:
            self.was_taken_over = True
            raise

    def _measure(self, trial: optuna.Trial) -> list[float]:
        began = time.monotonic()
        self._begin(trial)
        suggested = {p.path: p.suggest(trial) for p in self.sweep.parameters}
        values = {p.path: p.config_value(suggested[p.path]) for p in self.sweep.parameters}
        self.say(f"trial {trial.number}: " + "  ".join(f"{path} {value}" for path, value in suggested.items()))
        seeds: list[SeedRecord] = []
        divergence = None
        configs = self._configs(trial, values)
        try:
            for config in configs:
                seeds.append(SeedRecord(config.seed))
                divergence = self._execute_seed(trial, config, seeds)
                # The others would cost what this trial is not worth.
                if divergence is not None:
                    break
        finally:
            trial.set_user_attr("seeds", [vars(record) for record in seeds])
            trial.set_user_attr("seconds", time.monotonic() - began)
        trial.set_user_attr("collapse", divergence)
        trial.set_constraint(NOT_FINITE, float(divergence is not None))
        trial.set_constraint(BELOW_BASE, mean(s.base for s in seeds) - mean(s.reached for s in seeds))
        return [mean(record.values[metric] for record in seeds) for metric in self.sweep.file.objectives]

    def _configs(self, trial: optuna.Trial, values: Mapping[str, Any]) -> list[RunConfig]:
        """The runs of a point. Raises TrialPruned if there can be none; TPE learns to keep away from it."""
        try:
            return self.sweep.configs(values, self.sweep.file.seeds)
        except ConfigError as error:
            trial.set_user_attr("collapse", str(error))
            trial.set_constraint(NOT_VALID, 1.0)
            self.say(f"trial {trial.number}: no run can have these values: {error}")
            raise optuna.TrialPruned(str(error)) from None

    def _begin(self, trial: optuna.Trial) -> None:
        # With the number: a trial that is tried again inherits the attributes of the one before.
        trial.set_user_attr("begun", trial.number)
        trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
        taken = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        before = [t for t in trial.study.get_trials(deepcopy=False, states=taken) if t.number < trial.number]
        # Two workers may have found the last place free at the same time.
        if self.sweep.is_full(len(before)):
            trial.set_user_attr(SURPLUS, True)
            raise SurplusTrial

    def _execute_seed(self, trial: optuna.Trial, config: RunConfig, seeds: list[SeedRecord]) -> str | None:
        """Execute a seed's run; why it diverged, or None."""
        record, is_last = seeds[-1], len(seeds) == len(self.sweep.file.seeds)
        may_stop = self.sweep.file.pruner.kind != "none" and trial.user_attrs.get("origin") != REFERENCE
        seen: set[int] = set()

        def watch(iteration: int, metrics: Mapping[str, float]) -> None:
            if iteration in seen:
                return
            seen.add(iteration)
            self._note(record, config, iteration, metrics)
            # The untrained model is the same in all trials.
            if iteration == 0:
                return
            try:
                self._report(trial, seeds, iteration)
            except UpdateFinishedTrialError:
                raise StopRun("another worker has its trial now") from None
            # A run that is trained to the end may as well be finished: another trial can reuse it.
            if may_stop and iteration < config.iterations and trial.should_prune():
                raise StopRun(f"given up as trial {trial.number} of the sweep {self.sweep.name}")

        try:
            result = self.execute(config, watch)
        except StopRun as stop:
            raise optuna.TrialPruned(str(stop)) from None
        if not record.curve:
            raise ConfigError(f"the untrained model cannot be measured: {result.divergence}")
        record.run_id = result.run_id
        record.values |= {metric: result.costs[metric] for metric in self.sweep.file.objectives if metric in COSTS}
        if result.divergence is None and may_stop and not is_last and trial.should_prune():
            raise optuna.TrialPruned(f"given up after seed {config.seed}")
        return result.divergence

    def _note(self, record: SeedRecord, config: RunConfig, iteration: int, metrics: Mapping[str, float]) -> None:
        measured = {**metrics, TRAINING_REWARD: config.trained_reward(metrics)}
        record.curve.append((iteration, measured[TRAINING_REWARD]))
        for metric in self.sweep.file.objectives:
            if metric in COSTS:
                continue
            if metric not in measured:
                raise ConfigError(f"objectives: {metric!r} is not measured; {nearest(metric, sorted(measured))}")
            record.values[metric] = measured[metric]

    def _report(self, trial: optuna.Trial, seeds: list[SeedRecord], iteration: int) -> None:
        """Tell the pruner: mean of the seeds begun so far, at a step that counts the iterations of all of them.

        All trials have the same seeds in the same order, so at a step all have trained the same seeds as long.
        """
        (metric, *others) = self.sweep.file.objectives
        if others or metric in COSTS:
            return
        step = (len(seeds) - 1) * self.sweep.base.iterations + iteration
        trial.report(mean(record.values[metric] for record in seeds), step)
