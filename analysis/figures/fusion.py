"""Fusion: the paper's example groups, and the share of wrong signs that it corrects."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from analysis import paper
from analysis.figures.drawing import GREY, INK, Panel, series_colour

_EXAMPLE_WEIGHTS = (1.0, 5.0, 15.0)
_TITLES = {
    "weak": "The paper's weak example group",
    "strong": "The paper's strong example group",
}


def example_panels() -> list[Panel]:
    """The paper's two example groups: advantage against reward, local and fused at several weights."""
    table = paper.example_groups()
    note = "Shaded: between group mean and capability, where the local sign is wrong"
    return [
        Panel(f"fusion-example-{group}", title, partial(_draw_example, table[table["group"] == group]), 5.2, note)
        for group, title in _TITLES.items()
    ]


def sign_panel(signs: pd.DataFrame, labels: dict[str, str]) -> Panel:
    """Share of wrong signs that fusion corrects, by weight, in one- and in two-sided groups: rows of ``sign_frame``."""
    note = "Of samples whose local advantage has another sign than reward minus capability; band: 95 % interval"
    draw = partial(_draw_signs, signs=signs, labels=labels)
    return Panel("mechanism-signs", "Wrong signs that fusion corrects", draw, 3.0 + 0.45 * len(labels), note)


def _draw_example(rows: pd.DataFrame, axes: Axes) -> None:
    rows = rows.sort_values("reward")
    rewards, local, global_ = (rows[name].to_numpy(dtype=float) for name in ("reward", "local", "global"))
    mean, capability = float(rewards.mean()), float(rows["capability_mean"].iloc[0])
    axes.axvspan(min(mean, capability), max(mean, capability), color=GREY, alpha=0.2, linewidth=0)
    axes.axhline(0, color=INK, linewidth=0.8)
    for place, name, dash in ((mean, "group mean", "-"), (capability, "capability", "--")):
        axes.axvline(place, color=GREY, linewidth=1, linestyle=dash, label=f"{name} {place:.2f}")
    axes.plot(rewards, local, "o-", color=INK, markersize=4, linewidth=1.6, label="local")
    for number, weight in enumerate(_EXAMPLE_WEIGHTS):
        fused, label = local + weight * global_, f"fused, weight {weight:g}"
        axes.plot(rewards, fused, "o-", color=series_colour(number), markersize=4, label=label)
    axes.set_xlabel("Reward (HPS-v3)")
    axes.set_ylabel("Advantage")
    axes.set_yscale("symlog", linthresh=1)
    for tick in axes.get_yticklabels():
        tick.set_parse_math(True)  # powers of ten


def _draw_signs(axes: Axes, signs: pd.DataFrame, labels: dict[str, str]) -> None:
    drawn: Sequence[tuple[str, str]] = (("two-sided", "-"), ("one-sided", ":"))
    for number, (checkpoint, label) in enumerate(labels.items()):
        for sides, dash in drawn:
            rows = signs[(signs["checkpoint"] == checkpoint) & (signs["sides"] == sides)].sort_values("weight")
            if rows["corrected"].isna().all():
                continue
            weights, values = (np.concatenate([[0.0], rows[name].to_numpy()]) for name in ("weight", "corrected"))
            low, high = (np.concatenate([[0.0], rows[name].to_numpy()]) for name in ("low", "high"))
            colour = series_colour(number)
            axes.fill_between(weights, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(weights, values, dash, color=colour, linewidth=2, label=f"{label}, {sides} groups")
    axes.set_xlabel("Fusion weight")
    axes.set_ylabel("Share corrected")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(-0.03, 1.03)
