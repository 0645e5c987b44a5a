"""The marks of trials, the same in all figures of a sweep."""

from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.drawing import GREY, INK
from analysis.sweep.tables import SweepTables

# Okabe and Ito's palette, told apart with any colour vision.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
COLOUR_MAP = matplotlib.colormaps["viridis"]


def split_states(trials: pd.DataFrame, column: str) -> dict[str, pd.DataFrame]:
    """Trials that have a value, by what became of them: complete, pruned, collapsed."""
    valued = trials[trials[column].notna()]
    complete = valued["state"] == "complete"
    return {
        "complete": valued[complete & valued["feasible"]],
        "pruned": valued[valued["state"] == "pruned"],
        "collapsed": valued[complete & ~valued["feasible"]],
    }


def mark(axes: Axes, kind: str, x: Any, y: Any, label: bool = True, **style: Any) -> None:
    """Draw trials of one kind: complete, pruned, collapsed, reference or best."""
    looks: dict[str, dict[str, Any]] = {
        "complete": {"marker": "o", "s": 26, "color": BLUE, "linewidths": 0, "zorder": 3},
        "pruned": {"marker": "o", "s": 18, "facecolors": "none", "edgecolors": GREY, "zorder": 2},
        "collapsed": {"marker": "x", "s": 26, "color": INK, "linewidths": 1.2, "zorder": 3},
        "reference": {"marker": "*", "s": 130, "color": ORANGE, "edgecolors": "white", "linewidths": 0.6, "zorder": 5},
        "best": {"marker": "D", "s": 46, "color": GREEN, "edgecolors": "white", "linewidths": 0.6, "zorder": 5},
    }
    texts = {"complete": "Complete", "pruned": "Pruned: where it was given up", "collapsed": "Collapsed"}
    texts |= {"reference": "Reference", "best": "Best"}
    look = looks[kind] | style
    if "c" in look:
        look.pop("color", None)
    axes.scatter(x, y, label=texts[kind] if label else None, **look)


def mark_special(axes: Axes, tables: SweepTables, xs: pd.Series, ys: pd.Series) -> None:
    """Mark the reference and the best trial at their places; both series are indexed like the trials."""
    best, reference = tables.best(), tables.reference
    if len(best) and len(tables.objectives) == 1:
        mark(axes, "best", xs[best.index[0]], ys[best.index[0]])
    if reference is not None:
        place: Any = reference.name
        mark(axes, "reference", xs[place], ys[place])
