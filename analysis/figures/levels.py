"""Figures of the map: gain over random prompts, by how much of the reward's variance the prompt explains."""

from collections.abc import Mapping
from functools import partial
from itertools import cycle

import pandas as pd
from matplotlib.axes import Axes

from analysis.cells.labels import selection_colour
from analysis.figures.drawing import GREY, INK, Panel

_AXES: Mapping[str, tuple[str, str, str, str]] = {
    "prompt_share": ("map", "share", "Gain by the prompt's share", "Share of reward variance that is the prompt's"),
    "cosine": (
        "map-gradients",
        "cosine",
        "Gain by an update's direction",
        "Cosine with random prompts' update (untrained)",
    ),
}
"""Name of the figure, prefix of its bounds' columns, title, and label of the horizontal axis."""
_NOTE = "Vertical: one-sided 95 % bounds; horizontal: 95 % interval of the probe"
_APART = 0.011
"""Horizontal shift between rules as a share of the axis, so that their bounds do not cover each other."""
_MARKERS = "osD^vP"
"""One for each level, from least to most of the variance, where the horizontal axis does not tell."""


def map_panels(frame: pd.DataFrame) -> list[Panel]:
    """Make panels from ``analysis.verdicts.levels.map_frame``: by the prompt's share, and by cosines, if known.

    A point without horizontal bounds is left out, since it would look exact.
    """
    panels = []
    for column, (name, prefix, title, label) in _AXES.items():
        known = frame[frame[f"{prefix}_low"].notna()]
        if len(known):
            draw = partial(_draw, frame=known, column=column, prefix=prefix, label=label)
            height = 3.9 if column == "prompt_share" else 4.8  # its legend is longer
            panels.append(Panel(name, title, draw, height, _NOTE))
    return panels


def _draw(axes: Axes, frame: pd.DataFrame, column: str, prefix: str, label: str) -> None:
    axes.axhline(0, color=INK, linewidth=0.8)
    rules, shares = list(dict.fromkeys(frame["selection"])), sorted(set(frame["prompt_share"]))
    is_map = column == "prompt_share"
    apart = _APART * max(frame[column].max() - frame[column].min(), 0.1) if is_map else 0.0
    markers = {share: "o" if is_map else mark for share, mark in zip(shares, cycle(_MARKERS), strict=False)}
    for number, rule in enumerate(rules):
        colour, shift = selection_colour(rule), apart * (number - (len(rules) - 1) / 2)
        for row in frame[frame["selection"] == rule].sort_values(column).to_dict("records"):
            x, y = row[column] + shift, 100 * row["difference"]
            axes.vlines(x, 100 * row["lower"], 100 * row["upper"], color=colour, linewidth=2)
            # A rule's own points: their order along the axis may be chance.
            low, high = (row[f"{prefix}_{end}"] + shift for end in ("low", "high"))
            axes.hlines(y, low, high, color=colour, linewidth=0.8, alpha=0.6)
            axes.plot(x, y, markers[row["prompt_share"]], color=colour, markersize=6)
        axes.plot([], [], "o", color=colour, markersize=6, label=rule)
    for share in () if is_map else shares:
        axes.plot([], [], markers[share], color=GREY, markersize=6, label=f"share {share:.2f}")
    axes.set_xlabel(label)
    axes.set_ylabel("Beside random prompts,\n% of what these gain")
