"""Marks that figures of ordered series share: colours, and estimates with their intervals."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

# Okabe and Ito's palette, told apart with any colour vision.
_COLOURS = ("#56B4E9", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


def series_colour(number: int) -> str:
    """Colour of a series by its position, hexadecimal; repeated after the sixth."""
    return _COLOURS[number % len(_COLOURS)]


def mark_intervals(axes: Axes, places: Sequence[float], rows: pd.DataFrame, colour: str, label: str) -> None:
    """Points with 95 % intervals.

    Args:
        axes: to draw on.
        places: where, one a row.
        rows: columns value, low, high; a row without a value is left out, and an interval that is not finite.
        colour: of all.
        label: in the legend.
    """
    values, low, high = (rows[name].to_numpy(dtype=float) for name in ("value", "low", "high"))
    there, bounded = np.isfinite(values), np.isfinite(low) & np.isfinite(high)
    x = np.asarray(places, dtype=float)
    axes.vlines(x[bounded], low[bounded], high[bounded], color=colour, linewidth=1.6)
    axes.plot(x[there], values[there], "o", color=colour, markersize=5, label=label)
