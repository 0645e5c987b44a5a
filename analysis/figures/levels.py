"""Figures of the map: gain over random prompts, by how much of the reward's variance the prompt explains."""

from collections.abc import Mapping
from functools import partial

import pandas as pd
from matplotlib.axes import Axes

from analysis.cells.labels import selection_colour
from analysis.figures.drawing import INK, Panel

_AXES: Mapping[str, tuple[str, str]] = {
    "prompt_share": ("map", "Share of reward variance that is the prompt's"),
    "cosine": ("map-gradients", "Cosine with random prompts' update, untrained"),
}
_APART = 0.011
"""Horizontal shift between rules as a share of the axis, so that their bounds do not cover each other."""


def map_panels(frame: pd.DataFrame) -> list[Panel]:
    """Make panels from ``analysis.verdicts.levels.map_frame``: by the prompt's share, and by cosines, if known."""
    title = "When choosing prompts pays"
    note = "Vertical: one-sided 95 % bounds; horizontal: 95 % interval of the probe"
    return [
        Panel(name, title, partial(_draw, frame=frame, column=column, label=label), 3.9, note)
        for column, (name, label) in _AXES.items()
        if frame[column].notna().any()
    ]


def _draw(axes: Axes, frame: pd.DataFrame, column: str, label: str) -> None:
    axes.axhline(0, color=INK, linewidth=0.8)
    rules = list(dict.fromkeys(frame["selection"]))
    prefix = "share" if column == "prompt_share" else column
    apart = _APART * max(frame[column].max() - frame[column].min(), 0.1)
    for number, rule in enumerate(rules):
        rows, colour = frame[frame["selection"] == rule].sort_values(column), selection_colour(rule)
        shift, y = apart * (number - (len(rules) - 1) / 2), 100 * rows["difference"]
        axes.vlines(rows[column] + shift, 100 * rows["lower"], 100 * rows["upper"], color=colour, linewidth=2)
        # A rule's own points: their order along the axis may be chance.
        axes.hlines(
            y, rows[f"{prefix}_low"] + shift, rows[f"{prefix}_high"] + shift, color=colour, linewidth=0.8, alpha=0.6
        )
        axes.plot(rows[column] + shift, y, "o", color=colour, markersize=6, label=rule)
    axes.set_xlabel(label)
    axes.set_ylabel("Beside random prompts,\n% of what these gain")
