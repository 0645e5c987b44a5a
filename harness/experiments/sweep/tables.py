"""A study as plain tables, for the analysis: nothing but these files is needed to draw and to judge a sweep."""

import csv
import io
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.experiments.sweep.definition import Sweep
from harness.experiments.sweep.trial import INTERRUPTED, SURPLUS
from harness.files import write_atomically


def write_tables(sweep: Sweep, study: optuna.Study, folder: Path) -> None:
    """Write study.json, trials.csv, curves.csv and importance.csv; the same study gives the same bytes.

    Args:
        sweep: the sweep.
        study: its study, complete or not.
        folder: to write to; made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trials = listed_trials(study)
    write_atomically(folder / "study.json", json.dumps(_description(sweep), indent=1) + "\n")
    rows = [trial_row(sweep, trial) for trial in trials]
    write_csv(folder / "trials.csv", rows, trial_columns(sweep))
    write_csv(folder / "curves.csv", [row for trial in trials for row in _curve_rows(trial)], _CURVE_COLUMNS)
    write_csv(folder / "importance.csv", importance(sweep, study), _IMPORTANCE_COLUMNS)


_CURVE_COLUMNS = ("trial", "seed", "run_id", "iteration", "value")
_IMPORTANCE_COLUMNS = ("objective", "parameter", "importance")


def listed_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The study's trials without those that say nothing of their own: begun beyond the budget, or tried again later."""
    trials = study.get_trials()
    again = {number for trial in trials for number in trial.system_attrs.get("retry_history", [])}
    again |= {trial.user_attrs[INTERRUPTED] for trial in trials if INTERRUPTED in trial.user_attrs}
    return [
        trial
        for trial in trials
        if not trial.user_attrs.get(SURPLUS) and not (trial.state == TrialState.FAIL and trial.number in again)
    ]


def objective_columns(sweep: Sweep) -> dict[str, str]:
    """Column of each objective: ``value``, and ``value_METRIC`` for each where there are several."""
    metrics = list(sweep.file.objectives)
    return {metric: "value" if len(metrics) == 1 else f"value_{metric}" for metric in metrics}


def cells(sweep: Sweep, point: Mapping[str, Any]) -> dict[str, Any]:
    """A point's columns in a table. The choice None is written out: an empty cell is a parameter without a value."""
    return {p.column: "None" if point.get(p.path, "") is None else point.get(p.path) for p in sweep.parameters}


def trial_columns(sweep: Sweep) -> list[str]:
    """Columns of ``trial_row``."""
    start = ["trial", *(p.column for p in sweep.parameters), *objective_columns(sweep).values()]
    return [*start, "seeds", "state", "feasible", "collapse", "base", "origin", "seconds"]


def trial_row(sweep: Sweep, trial: FrozenTrial) -> dict[str, Any]:
    """A trial in the table.

    Columns: ``trial`` (its number), one a parameter, one an objective (mean over seeds; of a pruned trial at its latest
    validation), ``seeds`` (how many were begun), ``state`` (complete, pruned, failed, running, waiting), ``feasible``,
    ``collapse`` (why training broke off or could not begin, or below_base), ``base`` (trained reward of the untrained
    model), ``origin`` (reference, planned, sampled), ``seconds``.
    """
    seeds: list[Mapping[str, Any]] = trial.user_attrs.get("seeds", []) if trial.state.is_finished() else []
    curves = [seed["curve"] for seed in seeds if seed["curve"]]
    values = trial.values or [None] * len(sweep.file.objectives)
    collapse = violated(trial)
    return {
        "trial": trial.number,
        **cells(sweep, _point(trial)),
        **dict(zip(objective_columns(sweep).values(), values, strict=False)),
        "seeds": len(curves),
        "state": "failed" if trial.state == TrialState.FAIL else trial.state.name.lower(),
        "feasible": not collapse,
        "collapse": trial.user_attrs.get("collapse") or " ".join(collapse),
        "base": sum(curve[0][1] for curve in curves) / len(curves) if curves else None,
        "origin": trial.user_attrs.get("origin", "sampled"),
        "seconds": round(trial.user_attrs.get("seconds", 0.0), 3),
    }


def _point(trial: FrozenTrial) -> Mapping[str, Any]:
    # One that waits has its point as what is to be suggested.
    return trial.params or trial.system_attrs.get("fixed_params", {})


def _curve_rows(trial: FrozenTrial) -> list[dict[str, Any]]:
    if not trial.state.is_finished():
        return []
    return [
        {"trial": trial.number, "seed": seed["seed"], "run_id": seed["run_id"], "iteration": iteration, "value": value}
        for seed in trial.user_attrs.get("seeds", [])
        for iteration, value in seed["curve"]
    ]


def importance(sweep: Sweep, study: optuna.Study) -> list[dict[str, Any]]:
    """PED-ANOVA of each objective: how much a parameter decides whether a trial is among the best tenth; shares of 1.

    A collapsed trial counts as the worst, whatever it had reached before. Empty before there are enough complete trials
    to tell.
    """
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    rows = []
    for index, (metric, direction) in enumerate(sweep.file.objectives.items()):
        if len(complete) < 4:
            continue
        sign = 1 if direction == "minimize" else -1
        worst = max(sign * trial.values[index] for trial in complete)

        def lower_is_better(trial: FrozenTrial, index: int = index, sign: int = sign, worst: float = worst) -> float:
            return sign * trial.values[index] if not violated(trial) else worst

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it takes low targets for good ones, as it is meant to here
            shares = optuna.importance.get_param_importances(study, target=lower_is_better)
        columns = {parameter.path: parameter.column for parameter in sweep.parameters}
        rows += [
            # Digits beyond these depend on the processor.
            {"objective": metric, "parameter": columns[path], "importance": round(value, 6)}
            for path, value in shares.items()
        ]
    return rows


def best_trials(sweep: Sweep, study: optuna.Study) -> list[FrozenTrial]:
    """Complete, feasible trials, best first: by the objective, or, of several, the Pareto front by the first one."""
    multiple = len(sweep.file.objectives) > 1
    trials = study.best_trials if multiple else study.get_trials(states=(TrialState.COMPLETE,))
    feasible = [trial for trial in trials if not violated(trial)]
    sign = 1 if next(iter(sweep.file.objectives.values())) == "minimize" else -1
    return sorted(feasible, key=lambda trial: (sign * trial.values[0], trial.number))


def violated(trial: FrozenTrial) -> list[str]:
    """Names of the constraints that a trial violates; none of a feasible one."""
    return [name for name, value in trial.constraints.items() if value > 0]


def _description(sweep: Sweep) -> dict[str, Any]:
    """What the tables do not say: names, scales, directions."""
    file, columns = sweep.file, objective_columns(sweep)
    return {
        "name": sweep.name,
        "profile": file.profile,
        "method": sweep.base.method.kernel,
        "settings": file.settings,
        "reward": sweep.base.reward,
        "iterations": sweep.base.iterations,
        "seeds": list(file.seeds),
        "parameters": [parameter.describe() for parameter in sweep.parameters],
        "objectives": [
            {"metric": metric, "direction": direction, "column": columns[metric]}
            for metric, direction in file.objectives.items()
        ],
        "reference": cells(sweep, sweep.suggested(file.reference)) if file.reference else None,
        "sampler": file.sampler.model_dump(),
        "pruner": file.pruner.model_dump(),
        "trials": sweep.num_trials,
    }


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Replace a table; without rows it has its header alone."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
