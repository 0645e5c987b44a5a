"""Figures of the map: gain over random prompts, by how much of the reward's variance the prompt explains."""

from collections.abc import Mapping
from functools import partial

import pandas as pd
from matplotlib.axes import Axes

from analysis.cells.labels import selection_colour
from analysis.figures.drawing import INK, Panel

_AXES: Mapping[str, tuple[str, str, str]] = {
    "prompt_share": ("map", "share", "Share of reward variance that is the prompt's"),
    "cosine": ("map-gradients", "cosine", "Cosine with random prompts' update, untrained"),
}
"""Names of the figures, prefixes of the bounds' columns and labels of the horizontal axes."""
_APART = 0.011
"""Horizontal shift between rules as a share of the axis, so that their bounds do not cover each other."""


def map_panels(frame: pd.DataFrame) -> list[Panel]:
    """Make panels from ``analysis.verdicts.levels.map_frame``: by the prompt's share, and by cosines, if known.

    Beside points over cosines stands the prompt's share. A point without horizontal bounds is left out, since it would
    look exact.
    """
    title, panels = "When choosing prompts pays", []
    for column, (name, prefix, label) in _AXES.items():
        known = frame[frame[f"{prefix}_low"].notna()]
        note = "Vertical: one-sided 95 % bounds; horizontal: 95 % interval of the probe"
        if column == "cosine":
            note += "; numbers: the prompt's share of the variance"
        if len(known):
            panels.append(
                Panel(name, title, partial(_draw, frame=known, column=column, prefix=prefix, label=label), 3.9, note)
            )
    return panels


def _draw(axes: Axes, frame: pd.DataFrame, column: str, prefix: str, label: str) -> None:
    axes.axhline(0, color=INK, linewidth=0.8)
    rules, is_map = list(dict.fromkeys(frame["selection"])), column == "prompt_share"
    apart = _APART * max(frame[column].max() - frame[column].min(), 0.1) if is_map else 0.0
    for number, rule in enumerate(rules):
        rows, colour = frame[frame["selection"] == rule].sort_values(column), selection_colour(rule)
        shift, y = apart * (number - (len(rules) - 1) / 2), 100 * rows["difference"]
        axes.vlines(rows[column] + shift, 100 * rows["lower"], 100 * rows["upper"], color=colour, linewidth=2)
        # A rule's own points: their order along the axis may be chance.
        axes.hlines(
            y, rows[f"{prefix}_low"] + shift, rows[f"{prefix}_high"] + shift, color=colour, linewidth=0.8, alpha=0.6
        )
        axes.plot(rows[column] + shift, y, "o", color=colour, markersize=6, label=rule)
        for x, height, share in () if is_map else zip(rows[column], y, rows["prompt_share"], strict=True):
            axes.annotate(f"{share:.2f}", (x, height), (4, 4), textcoords="offset points", fontsize=7, color=colour)
    axes.set_xlabel(label)
    axes.set_ylabel("Beside random prompts,\n% of what these gain")
