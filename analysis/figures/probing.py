"""Figures of a probe: prompts, groups, the rules' choices, the cost of candidates, and the moving capability."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from analysis.figures.drawing import GREY, INK, Panel, series_colour
from analysis.statistics import Values

_BLUE, _ORANGE, _GREEN = series_colour(1), series_colour(2), series_colour(3)


def probe_panels(
    rewards: Values,
    spreads: Values,
    choices: Mapping[str, Mapping[str, float]],
    cost: Mapping[str, Any],
    stream: Values,
) -> list[Panel]:
    """Make the panels of a probe.

    Args:
        rewards: ``[prompts, noises]`` rewards.
        spreads: ``[prompts, groups]`` standard deviations of rewards.
        choices: ``gain``, ``gain_error`` and ``forwards`` by rule.
        cost: ``forwards`` for training on a random prompt, and ``rules``, the extra forwards by rule.
        stream: ``[iterations, 3]`` mean of an iteration's candidates, mu, sigma.
    """
    note = "Bars: prompts; line: mean of all pictures"
    costs = {name: forwards / cost["forwards"] for name, forwards in cost["rules"].items()}
    return [
        Panel("prompts", "Mean reward of a prompt", partial(_histogram, rewards.mean(axis=1), "prompts"), note=note),
        Panel(
            "groups",
            "Spread of a group's rewards",
            partial(_histogram, spreads.ravel(), "groups"),
            note="At 0: groups that teach nothing; line: mean",
        ),
        Panel(
            "choices",
            "Spread of the groups that rules choose",
            partial(_dots, choices),
            4.2,
            "Beside random prompts, ± 2 standard errors over prompts",
        ),
        Panel(
            "costs",
            "What candidates cost here",
            partial(_bars, costs),
            note="Further forwards, beside those of a prompt trained on at random (a trained sample counts 3)",
        ),
        Panel(
            "capability",
            "How the capability moves",
            partial(_stream, stream),
            note="Grey: mean of an iteration's candidates; blue: mu ± sigma. The model does not learn here",
        ),
    ]


def parallel_panel(cosines: Sequence[Mapping[str, Any]]) -> Panel:
    """Make the panel of cosines of rules' updates from rows of ``first``, ``second``, ``value``, ``low``, ``high``."""
    return Panel(
        "parallel",
        "How parallel strategies' updates are",
        partial(_cosines, list(cosines)),
        1.2 + 0.3 * len(cosines),
        "Cosine of expected updates, noise taken out; lines: 95 % intervals over blocks of rounds",
    )


def _histogram(values: Values, what: str, axes: Axes) -> None:
    axes.hist(values, bins=20, color=_BLUE, edgecolor="none")
    axes.axvline(float(values.mean()), color=INK, linewidth=1.2)
    axes.set_xlabel("reward")
    axes.set_ylabel(what)


def _dots(choices: Mapping[str, Mapping[str, float]], axes: Axes) -> None:
    for place, one in enumerate(choices.values()):
        colour = _ORANGE if one["forwards"] else _GREEN
        low, high = (100 * (one["gain"] + side * 2 * one["gain_error"]) for side in (-1, 1))
        axes.hlines(place, low, high, color=colour, linewidth=1.6)
        axes.plot(100 * one["gain"], place, "o", color=colour, markersize=5)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(choices)), list(choices), fontsize=9)
    axes.set_xlabel("wider by %")


def _bars(costs: Mapping[str, float], axes: Axes) -> None:
    axes.barh(range(len(costs)), [100 * cost for cost in costs.values()], color=_ORANGE)
    axes.set_yticks(range(len(costs)), list(costs), fontsize=9)
    axes.set_xlabel("% more forwards")


def _stream(stream: Values, axes: Axes) -> None:
    x, (means, mu, sigma) = np.arange(1, len(stream) + 1), stream.T
    axes.fill_between(x, mu - sigma, mu + sigma, color=_BLUE, alpha=0.2, linewidth=0)
    axes.plot(x, means, ".", color=GREY, markersize=4)
    axes.plot(x, mu, color=_BLUE, linewidth=1.6)
    axes.set_xlabel("iteration")
    axes.set_ylabel("reward")


def _cosines(cosines: Sequence[Mapping[str, Any]], axes: Axes) -> None:
    for place, one in enumerate(cosines):
        axes.hlines(place, one["low"], one["high"], color=_BLUE, linewidth=1.6)
        axes.plot(one["value"], place, "o", color=_BLUE, markersize=5)
    axes.axvline(1, color=GREY, linewidth=1)
    axes.set_yticks(range(len(cosines)), [f"{one['first']} – {one['second']}" for one in cosines], fontsize=9)
    axes.set_xlim(-0.5, 1.5)
