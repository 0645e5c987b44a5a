"""A smooth surface through noisy trials, over two parameters."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.sweep.marks import COLOUR_MAP, mark, mark_special, split_states
from analysis.sweep.tables import Objective, Parameter, SweepTables, Values

_BANDWIDTHS = (0.06, 0.08, 0.1, 0.13, 0.17, 0.22, 0.3)
_FARTHEST = 0.2
"""Distance from the nearest trial, in units of the parameters' ranges, beyond which no surface is drawn."""
_RESOLUTION = 161


def smooth(points: Values, values: Values, at: Values, bandwidth: float) -> Values:
    """Kernel regression with a Gaussian: sum_i w_i y_i / sum_i w_i, w_i = exp(-|x - x_i|^2 / (2 h^2)).

    Nadaraya 1964 and Watson 1964.

    Args:
        points: ``[n, d]``.
        values: ``[n]``.
        at: ``[m, d]``.
        bandwidth: h, in the points' units.

    Returns:
        ``[m]``.
    """
    squares = ((at[:, None, :] - points[None, :, :]) ** 2).sum(axis=2)
    # Relative to the nearest point, so that far away from all of them not every weight is 0.
    weights = np.exp(-(squares - squares.min(axis=1, keepdims=True)) / (2 * bandwidth**2))
    return np.asarray((weights @ values) / weights.sum(axis=1))


def best_bandwidth(points: Values, values: Values) -> float:
    """The bandwidth that predicts each value best from all others."""
    errors = []
    for bandwidth in _BANDWIDTHS:
        left_out = [
            smooth(np.delete(points, i, axis=0), np.delete(values, i), points[i : i + 1], bandwidth)[0]
            for i in range(len(points))
        ]
        errors.append(float(((np.asarray(left_out) - values) ** 2).mean()))
    return _BANDWIDTHS[int(np.argmin(errors))]


def draw_surface(axes: Axes, tables: SweepTables, objective: Objective, pair: list[Parameter]) -> None:
    """Contours of an objective over two ranges, with the trials they come from."""
    horizontal, vertical = pair
    rows = tables.feasible
    points = np.column_stack([p.positions(rows[p.column]) for p in pair])
    values = rows[objective.column].to_numpy(dtype=float)
    ticks = np.linspace(0, 1, _RESOLUTION)
    at = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    surface = smooth(points, values, at, best_bandwidth(points, values))
    nearest = np.sqrt(((at[:, None, :] - points[None, :, :]) ** 2).sum(axis=2)).min(axis=1)
    shape = (_RESOLUTION, _RESOLUTION)
    masked = np.ma.masked_where(nearest.reshape(shape) > _FARTHEST, surface.reshape(shape))
    across = [horizontal.value_at(tick) for tick in ticks]
    up = [vertical.value_at(tick) for tick in ticks]
    colours = COLOUR_MAP if objective.is_maximized else COLOUR_MAP.reversed()
    filled = axes.contourf(across, up, masked, levels=10, cmap=colours)
    axes.figure.colorbar(filled, ax=axes, label=objective.label, shrink=0.9)
    for axis, parameter in (("x", horizontal), ("y", vertical)):
        axes.set(**{f"{axis}label": parameter.path})
        if parameter.is_log:
            axes.set(**{f"{axis}scale": "log"})
    xs, ys = tables.trials[horizontal.column], tables.trials[vertical.column]
    for kind, own in split_states(tables.trials, objective.column).items():
        if len(own):
            style: dict[str, Any] = {"edgecolors": "white", "linewidths": 0.5} if kind == "complete" else {}
            style |= {"color": "#333333", "s": 16} if kind == "complete" else {}
            mark(axes, kind, xs[own.index], ys[own.index], **style)
    mark_special(axes, tables, xs, pd.Series(ys))
    axes.set_xlim(across[0], across[-1])
    axes.set_ylim(up[0], up[-1])
    axes.grid(visible=False)
