"""The map in one picture: gain over random prompts against the share of reward variance that is the prompt's."""

from functools import partial

import pandas as pd
from matplotlib.axes import Axes

from analysis.cells.labels import selection_colour
from analysis.figures.drawing import INK, Panel

_APART = 0.008
"""Shift of a rule's points, so that bounds do not cover each other."""


def map_panel(frame: pd.DataFrame) -> Panel:
    """Rows as of ``analysis.verdicts.levels.map_frame``."""
    note = "Line: one-sided 95 % bounds"
    return Panel("map", "When choosing prompts pays", partial(_draw, frame=frame), note=note)


def _draw(axes: Axes, frame: pd.DataFrame) -> None:
    axes.axhline(0, color=INK, linewidth=0.8)
    rules = list(dict.fromkeys(frame["selection"]))
    for number, rule in enumerate(rules):
        rows, colour = frame[frame["selection"] == rule].sort_values("prompt_share"), selection_colour(rule)
        x = rows["prompt_share"] + _APART * (number - (len(rules) - 1) / 2)
        axes.vlines(x, 100 * rows["lower"], 100 * rows["upper"], color=colour, linewidth=2)
        axes.plot(x, 100 * rows["difference"], "o-", color=colour, linewidth=1, markersize=6, label=rule)
    axes.set_xlabel("Share of reward variance that is the prompt's")
    axes.set_ylabel("Reward less that of random prompts,\n% of what random prompts gain")
