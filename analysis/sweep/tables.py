"""Tables of a sweep, made from what its Optuna study records."""

import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

TRAINING_REWARD = "training_reward"
"""Objective: the trained reward on validation prompts, whatever its components."""
DEFINITION = "definition"
"""User attribute of a study with its ``space``, ``objectives`` and ``seeds``."""
REFERENCE = "reference"
"""Value of a trial's user attribute ``origin`` that marks the reference, with which other trials are compared."""
SURPLUS = "surplus"
"""User attribute of a trial that was begun beyond the budget and measured nothing."""
_FEWEST_FOR_IMPORTANCE = 4


@dataclass(frozen=True)
class SweepStudy:
    """An Optuna study of a sweep."""

    study: optuna.Study

    @cached_property
    def columns(self) -> dict[str, str]:
        """Short names of parameters for tables, by path in the configuration."""
        return {path: entry["column"] for path, entry in self.study.user_attrs[DEFINITION]["space"].items()}

    @cached_property
    def objectives(self) -> dict[str, str]:
        """Directions, ``maximize`` or ``minimize``, by metric."""
        return dict(self.study.user_attrs[DEFINITION]["objectives"])

    def sign(self, metric: str) -> int:
        """Sign of a metric: -1 if lower values are better, 1 if higher ones are."""
        return -1 if self.objectives.get(metric) == "minimize" else 1

    @cached_property
    def trials(self) -> list[FrozenTrial]:
        """All trials except those that failed and were retried, and those begun beyond the budget."""
        trials = [trial for trial in self.study.get_trials() if SURPLUS not in trial.user_attrs]
        again = {number for trial in trials for number in trial.system_attrs.get("retry_history", [])}
        return [trial for trial in trials if trial.state != TrialState.FAIL or trial.number not in again]

    @cached_property
    def complete(self) -> list[FrozenTrial]:
        """Trials that were trained to the end, including collapsed ones."""
        return [trial for trial in self.trials if trial.state == TrialState.COMPLETE]

    @cached_property
    def best(self) -> list[FrozenTrial]:
        """Complete trials that did not collapse, best first; with several objectives the Pareto front, by the first."""
        several = len(self.objectives) > 1
        feasible = [t for t in (self.study.best_trials if several else self.complete) if not violated(t)]
        sign = self.sign(next(iter(self.objectives)))
        return sorted(feasible, key=lambda trial: (-sign * trial.values[0], trial.number))

    @cached_property
    def reference(self) -> FrozenTrial | None:
        """Trial of the reference; None if there is none or it is not complete."""
        return next((trial for trial in self.complete if trial.user_attrs.get("origin") == REFERENCE), None)

    def value(self, trial: FrozenTrial | None, metric: str) -> float:
        """Value of a trial in a metric; NaN without a trial, or if the metric is not an objective."""
        if trial is None or metric not in self.objectives:
            return math.nan
        return float(trial.values[list(self.objectives).index(metric)])

    @property
    def num_finished(self) -> int:
        """Number of complete and pruned trials, which count for the budget."""
        return len(self.complete) + sum(trial.state == TrialState.PRUNED for trial in self.trials)

    def cells(self, point: dict[str, Any]) -> dict[str, Any]:
        """Columns of a point. The choice None becomes "None", since an empty cell means a parameter without a value."""
        values = {column: point.get(path, "") for path, column in self.columns.items()}
        return {column: "None" if value is None else value for column, value in values.items()}

    def point_text(self, cells: Any) -> str:
        """Text of a point, such as "decay 0.93, weight 4.2", from ``cells`` or a row with these columns."""
        values = {column: cells[column] for column in self.columns.values()}
        return ", ".join(f"{column} {short(value)}" for column, value in values.items() if not pd.isna(value))

    def trial_frame(self) -> pd.DataFrame:
        """Table of trials, one row per trial.

        Columns: ``trial`` (its number), one per parameter, one per objective (``value``, or ``value_METRIC`` if there
        are several: mean over seeds; for a pruned trial at its latest validation), ``seeds`` (number of started seeds),
        ``state``, ``feasible``, ``collapse`` (why training broke off or could not begin, or below_base), ``base``
        (trained reward of the untrained model), ``origin``, ``seconds``.
        """
        values = ["value"] if len(self.objectives) == 1 else [f"value_{metric}" for metric in self.objectives]
        columns = ["trial", *self.columns.values(), *values]
        columns += ["seeds", "state", "feasible", "collapse", "base", "origin", "seconds"]
        rows = [self._row(trial) | dict(zip(values, trial.values or (), strict=False)) for trial in self.trials]
        return pd.DataFrame(rows, columns=columns, dtype=object)

    def _row(self, trial: FrozenTrial) -> dict[str, Any]:
        curves = [seed["curve"] for seed in _seeds(trial) if seed["curve"]]
        collapse = violated(trial)
        return {
            "trial": trial.number,
            # A waiting trial has its point only as fixed parameters.
            **self.cells(trial.params or trial.system_attrs.get("fixed_params", {})),
            "seeds": len(curves),
            "state": "failed" if trial.state == TrialState.FAIL else trial.state.name.lower(),
            "feasible": not collapse,
            "collapse": trial.user_attrs.get("collapse") or " ".join(collapse),
            "base": sum(curve[0][1] for curve in curves) / len(curves) if curves else None,
            "origin": trial.user_attrs.get("origin", "sampled"),
            "seconds": round(trial.user_attrs.get("seconds", 0.0), 3),
        }

    def curve_frame(self) -> pd.DataFrame:
        """Trained reward at each validation: columns ``trial``, ``seed``, ``run_id``, ``iteration``, ``value``."""
        rows = [
            (trial.number, seed["seed"], seed["run_id"], iteration, value)
            for trial in self.trials
            for seed in _seeds(trial)
            for iteration, value in seed["curve"]
        ]
        return pd.DataFrame(rows, columns=["trial", "seed", "run_id", "iteration", "value"])

    def importance_frame(self) -> pd.DataFrame:
        """Share of each parameter in deciding whether a trial is among the best, by Optuna's PED-ANOVA: columns
        ``objective``, ``parameter``, ``importance``. Empty until there are enough complete trials."""
        rows = []
        for index, metric in enumerate(self.objectives if len(self.complete) >= _FEWEST_FOR_IMPORTANCE else ()):
            sign = -self.sign(metric)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns that low targets count as good, as intended here
                shares = optuna.importance.get_param_importances(
                    self.study,
                    target=lambda trial, index=index, sign=sign: sign * trial.values[index],  # type: ignore[misc]
                )
            # Further digits depend on the processor.
            rows += [(metric, self.columns[path], round(share, 6)) for path, share in shares.items()]
        return pd.DataFrame(rows, columns=["objective", "parameter", "importance"])


def violated(trial: FrozenTrial) -> list[str]:
    """Names of the constraints that a trial violates, each a kind of collapse."""
    return [name for name, value in trial.constraints.items() if value > 0]


def short(value: object) -> str:
    """Short text of a parameter's value."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _seeds(trial: FrozenTrial) -> list[dict[str, Any]]:
    # An unfinished retry still holds the measurements of its predecessor.
    return trial.user_attrs.get("seeds", []) if trial.state.is_finished() else []
