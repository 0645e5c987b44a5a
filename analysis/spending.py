"""What runs had spent when they were measured: network forwards, reward calls, seconds; and values at equal cost."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.claims import Pair
from analysis.labels import Cell
from analysis.logs import TRAINING_REWARD
from analysis.study import Study

FORWARDS, REWARD_CALLS, SECONDS = "forwards", "reward_calls", "seconds"
SPENDING_METRICS = ("total_sample_forwards", "total_train_forwards", "total_reward_calls", "seconds/iteration")
"""Training metrics that spending is counted from."""
_MATCHED = 0.03


class Axis(NamedTuple):
    """A kind of cost."""

    name: str
    words: str
    label: str


AXES = (
    Axis(FORWARDS, "network forwards", "Network forwards spent on training\n(a trained sample counts 3)"),
    Axis(REWARD_CALLS, "reward calls", "Reward calls spent on training"),
    Axis(SECONDS, "seconds", "Seconds of training, as recorded"),
)


def spent(runs: pd.DataFrame) -> pd.DataFrame:
    """What runs had spent on training after each iteration.

    Args:
        runs: rows of ``load_runs``, with ``SPENDING_METRICS``.

    Returns:
        Columns run_id, iteration, forwards (a trained sample counts 3), reward_calls, seconds; nothing at iteration 0.
    """
    train = runs[(runs["split"] == "train") & runs["metric"].isin(SPENDING_METRICS)]
    wide = train.pivot_table(index=["run_id", "iteration"], columns="metric", values="value", observed=True)
    wide = wide.reindex(columns=list(SPENDING_METRICS))
    costs = {
        FORWARDS: wide["total_sample_forwards"] + 3 * wide["total_train_forwards"],
        REWARD_CALLS: wide["total_reward_calls"],
        SECONDS: wide["seconds/iteration"].groupby("run_id", observed=True).cumsum(),
    }
    return pd.DataFrame(costs).reset_index()


def with_spending(rows: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Evaluations with the columns of ``spent``; those whose cost is unknown are left out."""
    costs = [axis.name for axis in AXES]
    joined = rows.merge(spent(runs), on=["run_id", "iteration"], how="left")
    # Nothing is spent before the first iteration, which writes the first line.
    joined.loc[joined["iteration"] == 0, costs] = 0.0
    return joined[joined[FORWARDS].notna()]


def matched_baselines(study: Study, base: Cell, treatment: Cell) -> list[Cell]:
    """Variants of a base cell whose runs cost as many network forwards as the treatment's, within 3 %."""
    cost = {cell: float(members["compute"].mean()) for cell, members in study.cells}
    return [
        cell
        for cell in cost
        if cell.variant and cell._replace(variant="") == base and abs(cost[cell] / cost[treatment] - 1) <= _MATCHED
    ]


def equal_cost_pair(
    study: Study, treatment: Cell, control: Cell, axis: str, among: Collection[int]
) -> tuple[list[int], Pair]:
    """Validation rewards when the treatment has spent what the control spent in all: seeds, and both by seed.

    The treatment's is interpolated between its validations; the control's is its last.

    Args:
        study: of both cells.
        treatment: the cell that costs more an iteration.
        control: the other.
        axis: ``FORWARDS``, ``REWARD_CALLS`` or ``SECONDS``.
        among: seeds that count.
    """
    ours, theirs = (_curves(study, cell, axis) for cell in (treatment, control))
    values = {}
    for seed in sorted(set(ours) & set(theirs) & set(among)):
        (costs, rewards), (budget, reached) = ours[seed], theirs[seed]
        if costs[-1] >= budget[-1]:
            values[seed] = float(np.interp(budget[-1], costs, rewards)), float(reached[-1])
    pairs = np.array(list(values.values())).reshape(-1, 2)
    return list(values), Pair(pairs[:, 0], pairs[:, 1])


def _curves(study: Study, cell: Cell, axis: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """By seed, costs and validation rewards of a finished run."""
    members = dict(study.cells)[cell]
    ids = set(members["run_id"]) & study.finished
    rows = study.runs[study.runs["run_id"].isin(ids)]
    measured = rows[(rows["split"] == "validation") & (rows["metric"] == TRAINING_REWARD)]
    curves = with_spending(measured, rows).sort_values("iteration")
    return {
        int(of_run["seed"].iloc[0]): (of_run[axis].to_numpy(), of_run["value"].to_numpy())
        for _, of_run in curves.groupby("run_id", observed=True)
    }
