"""How steady training is, and whether it hacks its reward or collapses: measures of runs, cell by cell."""

import math
from collections.abc import Collection

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.claims import Pair
from analysis.labels import Cell
from analysis.logs import TRAINING_REWARD
from analysis.study import Study


def roughness(values: ArrayLike) -> float:
    """Standard deviation of a curve about its trend, from differences of neighbours, which need no fit of the trend.

    With d_i = (y_{i-1} + y_{i+1}) / 2 - y_i of equally spaced points, sqrt(2 / (3 (n - 2)) sum d_i^2): for independent
    noise of standard deviation s on a straight line its square has mean s^2 (Gasser, Sroka, Jennen-Steinmetz 1986,
    "Residual variance and residual pattern in nonlinear regression", Biometrika 73(3)).

    Args:
        values: ``[n]``, in order.

    Returns:
        In the units of the values; NaN for n < 3.
    """
    curve = np.asarray(values, dtype=float)
    if len(curve) < 3:
        return math.nan
    deviations = (curve[:-2] + curve[2:]) / 2 - curve[1:-1]
    return float(np.sqrt(2 / 3 * np.mean(deviations**2)))


def roughness_by_seed(study: Study, cell: Cell) -> pd.Series:
    """``roughness`` of the validation reward after the first iteration, of each finished run of a cell, by seed.

    Validation reads the same prompts and noises each time: what moves is the policy. The reward of training would also
    move with the prompts that were selected.
    """
    members = dict(study.cells)[cell]
    rows = study.final
    rows = rows[(rows["split"] == "validation") & (rows["metric"] == TRAINING_REWARD)]
    rows = rows[rows["run_id"].isin(members["run_id"])].sort_values("iteration")
    of_runs = rows.groupby("run_id", observed=True).agg(seed=("seed", "first"), value=("value", roughness))
    return of_runs.dropna().groupby("seed")["value"].mean()


def roughness_pair(study: Study, first: Cell, second: Cell, seeds: Collection[int]) -> tuple[list[int], Pair]:
    """Those of ``seeds`` that two cells have finished, and their roughness."""
    ours, theirs = roughness_by_seed(study, first), roughness_by_seed(study, second)
    shared = sorted(set(ours.index) & set(theirs.index) & set(seeds))
    return shared, Pair(ours[shared].to_numpy(), theirs[shared].to_numpy())
