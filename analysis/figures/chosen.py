"""Figure of the prompts that each selection trains on as the model learns: reward of the chosen by iteration."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.cells.labels import SELECTIONS, selection_colour
from analysis.cells.study import Study
from analysis.figures.drawing import GREY, INK, Panel
from analysis.statistics import Values

_HEIGHT = 5.2  # Inches, six lines of legend included.
_POINTS = 16
"""Points of a curve; iterations are averaged in this many bins."""


def chosen_panels(study: Study) -> list[Panel]:
    """Make one panel over methods and finished seeds, with and without fusion; none if no candidates were scored."""
    members = {
        selection: {run for cell, rows in study.grid_cells if cell.selection == selection for run in rows["run_id"]}
        & study.finished
        for selection in SELECTIONS
    }
    chosen = study.rows("train", "chosen_reward_mean")
    found = {selection: _binned(chosen[chosen["run_id"].isin(ids)]) for selection, ids in members.items()}
    curves = {selection: curve for selection, curve in found.items() if curve is not None}
    scored = study.rows("train", "candidate_reward_mean")
    everything = _binned(scored[scored["run_id"].isin(set().union(*(members[selection] for selection in curves)))])
    if len(curves) < 2 or everything is None:
        return []
    note = "Reward of the deterministic sample of the prompt that is trained on; grey: of all candidates"
    draw = partial(_draw, curves=curves, everything=everything, label=f"Reward ({study.reward})")
    return [Panel(f"{study.prefix}chosen", "Difficulty of the prompts trained on", draw, _HEIGHT, note)]


def _binned(rows: pd.DataFrame) -> Values | None:
    """``[2, points]`` iterations and mean values; None without rows."""
    if rows.empty:
        return None
    by_iteration = rows.groupby("iteration")["value"].mean()
    parts = np.array_split(by_iteration.to_numpy(), min(_POINTS, len(by_iteration)))
    places = np.array_split(by_iteration.index.to_numpy(dtype=float), min(_POINTS, len(by_iteration)))
    return np.array([[p.mean() for p in places], [p.mean() for p in parts]])


def _draw(axes: Axes, curves: Mapping[str, Values], everything: Values, label: str) -> None:
    axes.plot(*everything, color=GREY, linewidth=4, alpha=0.5, label="all candidates")
    for selection, curve in curves.items():
        axes.plot(*curve, color=selection_colour(selection), linewidth=2, label=selection)
    axes.set_xlabel("Training iteration", color=INK)
    axes.set_ylabel(label)
