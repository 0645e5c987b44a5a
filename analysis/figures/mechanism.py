"""Gradients at fixed checkpoints: by strategy, by difficulty, and by the weight of fusion and of its control."""

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.drawing import GREY, Panel
from analysis.figures.marks import mark_intervals, series_colour

_LABEL_WIDTH = 28  # Letters in a line beside an axis.
_NOTE = "Lines: 95 % intervals over blocks of rounds"
_CURVES_NOTE = "Random prompts; bands: 95 % intervals over blocks of rounds; weight 0: local advantages"


class Shown(NamedTuple):
    """What panels of a measurement have in common."""

    effects: pd.DataFrame
    """Of ``analysis.gradients.effects.effect_frame``."""
    checkpoints: Mapping[str, str]
    """Their labels, in their order."""
    metrics: Mapping[str, str]
    """Names of axes."""


def set_panels(shown: Shown, name: str, title: str, sets: Mapping[str, str], x_label: str) -> list[Panel]:
    """For each metric a panel: a point a set of updates and checkpoint, with local advantages.

    Args:
        shown: the measurement.
        name: of the files.
        title: what is compared.
        sets: labels of the sets, in the order of the axis.
        x_label: of the axis.
    """
    rows = shown.effects[(shown.effects["advantage"] == "local") & shown.effects["set"].isin(list(sets))]
    return [
        Panel(
            f"mechanism-{name}-{metric}",
            title,
            partial(
                _draw_sets,
                rows=rows[rows["metric"] == metric],
                checkpoints=shown.checkpoints,
                sets=sets,
                labels=(x_label, label),
            ),
            height=3.1 + 0.2 * len(shown.checkpoints),
            note=_NOTE,
        )
        for metric, label in shown.metrics.items()
    ]


def weight_panels(shown: Shown, selection: str = "random") -> list[Panel]:
    """For each metric a panel: fused (solid) and rescaled advantages (dotted) by weight, a colour a checkpoint."""
    rows = shown.effects[shown.effects["set"] == selection]
    return [
        Panel(
            f"mechanism-fusion-{metric}",
            "Fusion and rescaling by weight",
            partial(_draw_weights, rows=rows[rows["metric"] == metric], checkpoints=shown.checkpoints, label=label),
            height=3.1 + 0.4 * len(shown.checkpoints),
            note=_CURVES_NOTE,
        )
        for metric, label in shown.metrics.items()
    ]


def _draw_sets(
    axes: Axes, rows: pd.DataFrame, checkpoints: Mapping[str, str], sets: Mapping[str, str], labels: Sequence[str]
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
        start = of_checkpoint[of_checkpoint["advantage"] == "local"]
        for advantage, dash in (("fused", "-"), ("rescaled", ":")):
            curve = pd.concat([start, of_checkpoint[of_checkpoint["advantage"] == advantage].sort_values("weight")])
            colour = series_colour(number)
            if advantage == "fused":
                axes.fill_between(curve["weight"], curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
            line = axes.plot(curve["weight"], curve["value"], dash, color=colour, linewidth=2, marker="o", markersize=3)
            line[0].set_label(f"{name}, {advantage}")
    axes.set_xlabel("Weight")
    axes.set_ylabel(textwrap.fill(label, _LABEL_WIDTH))
