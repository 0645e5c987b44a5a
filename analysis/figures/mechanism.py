"""Gradients at fixed checkpoints: by strategy, by difficulty, and by the weight of fusion and of its control."""

import textwrap
from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.drawing import GREY, Panel, mark_intervals, series_colour

_LABEL_WIDTH = 28  # Letters in a line beside an axis.
_NOTE = "Lines: 95 % intervals over blocks of rounds"
_CURVES_NOTE = "Random prompts; bands: 95 % intervals over blocks of rounds; weight 0: local advantages"


def set_panel(
    name: str,
    what: str,
    rows: pd.DataFrame,
    checkpoints: Mapping[str, str],
    sets: Mapping[str, str],
    labels: tuple[str, str],
) -> Panel:
    """A point a set of updates and checkpoint, with local advantages.

    Args:
        name: of the file.
        what: is compared.
        rows: of one metric of ``analysis.gradients.effects.effect_frame``.
        checkpoints: their labels, in their order.
        sets: labels of the sets, in the order of the axis.
        labels: of the axes.
    """
    rows = rows[(rows["advantage"] == "local") & rows["set"].isin(list(sets))]
    draw = partial(_draw_sets, rows=rows, checkpoints=checkpoints, sets=sets, labels=labels)
    return Panel(f"mechanism-{name}", f"Which prompts teach: {what}", draw, 3.1 + 0.2 * len(checkpoints), _NOTE)


def weight_panel(name: str, rows: pd.DataFrame, checkpoints: Mapping[str, str], label: str) -> Panel:
    """Fused (solid) and rescaled advantages (dotted) of random prompts by weight, a colour per checkpoint."""
    draw = partial(_draw_weights, rows=rows[rows["set"] == "random"], checkpoints=checkpoints, label=label)
    height = 3.1 + 0.4 * len(checkpoints)
    return Panel(f"mechanism-{name}", "Fusion and rescaling by weight", draw, height, _CURVES_NOTE)


def _draw_sets(
    axes: Axes, rows: pd.DataFrame, checkpoints: Mapping[str, str], sets: Mapping[str, str], labels: tuple[str, str]
) -> None:
    offsets = np.linspace(-0.2, 0.2, len(checkpoints)) if len(checkpoints) > 1 else [0.0]
    for number, (checkpoint, label) in enumerate(checkpoints.items()):
        of_checkpoint = rows[rows["checkpoint"] == checkpoint].set_index("set").reindex(list(sets))
        places = np.arange(len(sets)) + offsets[number]
        mark_intervals(axes, list(places), of_checkpoint, series_colour(number), label)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xticks(range(len(sets)), list(sets.values()), fontsize=9.5)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(textwrap.fill(labels[1], _LABEL_WIDTH))
    axes.grid(visible=False, axis="x")


def _draw_weights(axes: Axes, rows: pd.DataFrame, checkpoints: Mapping[str, str], label: str) -> None:
    for number, (checkpoint, name) in enumerate(checkpoints.items()):
        of_checkpoint = rows[rows["checkpoint"] == checkpoint]
        start, colour = of_checkpoint[of_checkpoint["advantage"] == "local"], series_colour(number)
        for advantage, dash in (("fused", "-"), ("rescaled", ":")):
            curve = pd.concat([start, of_checkpoint[of_checkpoint["advantage"] == advantage].sort_values("weight")])
            if advantage == "fused":
                axes.fill_between(curve["weight"], curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
            line = axes.plot(curve["weight"], curve["value"], dash, color=colour, linewidth=2, marker="o", markersize=3)
            line[0].set_label(f"{name}, {advantage}")
    axes.set_xlabel("Weight")
    axes.set_ylabel(textwrap.fill(label, _LABEL_WIDTH))
