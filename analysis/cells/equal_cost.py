"""Cells at equal cost: base cells that cost as much as + AdaGRPO, and rewards at equal spending."""

from collections.abc import Collection

import numpy as np

from analysis.cells.labels import Cell
from analysis.cells.logs import TRAINING_REWARD
from analysis.cells.spending import SECONDS, with_spending
from analysis.cells.study import Study
from analysis.statistics import Pair

_MATCHED = 0.03


def mean_compute(study: Study) -> dict[Cell, float]:
    """Mean compute of each cell's finished runs, since others have not spent all of theirs; NaN if there are none."""
    return {cell: float(runs.loc[runs["state"] == "finished", "compute"].mean()) for cell, runs in study.cells}


def matched_baselines(study: Study, base: Cell, treatment: Cell) -> list[Cell]:
    """Find the variants of a base cell whose runs cost as many network forwards as the treatment's, within 3 %."""
    cost = mean_compute(study)
    return [
        cell
        for cell in cost
        if cell.variant and cell._replace(variant="") == base and abs(cost[cell] / cost[treatment] - 1) <= _MATCHED
    ]


def equal_cost_pair(
    study: Study, treatment: Cell, control: Cell, axis: str, among: Collection[int]
) -> tuple[list[int], Pair]:
    """Pair validation rewards at the control's total cost; returns the seeds, and both rewards by seed.

    The treatment's reward is interpolated between its validations; the control's is its last. Seconds are compared
    only where one model of processor made both runs.

    Args:
        study: the study that has both cells.
        treatment: the cell that costs more per iteration.
        control: the other cell.
        axis: name of one of ``analysis.cells.spending.AXES``.
        among: seeds to consider.
    """
    ours, theirs = (_curves(study, cell, axis) for cell in (treatment, control))
    values = {}
    for seed in sorted(set(ours) & set(theirs) & set(among)):
        (costs, rewards, processor), (budget, reached, its_processor) = ours[seed], theirs[seed]
        is_comparable = axis != SECONDS or processor == its_processor
        if is_comparable and costs[-1] >= budget[-1]:
            values[seed] = float(np.interp(budget[-1], costs, rewards)), float(reached[-1])
    pairs = np.array(list(values.values())).reshape(-1, 2)
    return list(values), Pair(pairs[:, 0], pairs[:, 1])


def _curves(study: Study, cell: Cell, axis: str) -> dict[int, tuple[np.ndarray, np.ndarray, str]]:
    """Costs and validation rewards of each finished run, and the processor that made it, by seed."""
    members = dict(study.cells)[cell]
    ids = set(members["run_id"]) & study.finished
    made_by = members.set_index("run_id")["processor"]
    rows = study.validations(TRAINING_REWARD)
    curves = with_spending(rows[rows["run_id"].isin(ids)], study.spent).sort_values("iteration")
    return {
        int(of_run["seed"].iloc[0]): (of_run[axis].to_numpy(), of_run["value"].to_numpy(), str(made_by[run_id]))
        for run_id, of_run in curves.groupby("run_id", observed=True)
    }
