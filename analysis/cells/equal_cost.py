"""Cells at equal cost: base cells that cost as much as + AdaGRPO, and rewards at equal compute."""

from collections.abc import Collection

import numpy as np

from analysis.cells.labels import Cell
from analysis.cells.spending import FORWARDS, with_spending
from analysis.cells.study import Study

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


def at_equal_compute(study: Study, dearer: Cell, cheaper: Cell, among: Collection[int]) -> list[float]:
    """Differences of validation rewards where the dearer cell has spent the cheaper one's total, one per seed.

    The dearer cell's reward is interpolated between its validations; the other one's is its last.

    Args:
        study: the study that has both cells.
        dearer: the cell whose runs take more network forwards.
        cheaper: the other cell.
        among: seeds to consider.
    """
    ours, theirs = (_curves(study, cell) for cell in (dearer, cheaper))
    differences = []
    for seed in sorted(set(ours) & set(theirs) & set(among)):
        (costs, rewards), (budget, reached) = ours[seed], theirs[seed]
        if costs[-1] >= budget[-1]:
            differences.append(float(np.interp(budget[-1], costs, rewards)) - float(reached[-1]))
    return differences


def _curves(study: Study, cell: Cell) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Network forwards and validation rewards of each finished run, by seed."""
    return {
        int(of_run["seed"].iloc[0]): (of_run[FORWARDS].to_numpy(), of_run["value"].to_numpy())
        for _, of_run in with_spending(study.validations(cell), study.spent).groupby("run_id", observed=True)
    }
