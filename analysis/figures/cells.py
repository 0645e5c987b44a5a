"""Figure of all cells: every seed, mean and interval, with neighbouring rows for fusion off and on."""

import textwrap
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from analysis.cells.labels import METHOD_NAMES, Cell, selection_order
from analysis.cells.logs import TRAINING_REWARD
from analysis.cells.study import MIN_SEEDS_FOR_INTERVAL, Study
from analysis.figures.drawing import GREY, INK, Panel
from analysis.statistics import Interval

_LABEL_WIDTH, _MAX_LINES = 28, 2
"""Characters per line, and lines, of a variant's settings beside the axis."""


class Seeds(NamedTuple):
    """A cell's final rewards by seed, and the interval of their mean."""

    values: np.ndarray
    interval: Interval | None

    @classmethod
    def of(cls, study: Study, cell: Cell) -> "Seeds":
        """Final rewards of a cell, by the reward that was trained on."""
        return cls(study.values(cell, TRAINING_REWARD).to_numpy(), study.interval(cell, TRAINING_REWARD))


def interval_note(among: Iterable[Seeds], words: str) -> str:
    """Note on a figure's intervals: ``words``, or the reason why there are none."""
    return words if any(one.interval for one in among) else f"no interval below {MIN_SEEDS_FOR_INTERVAL} seeds"


_Rows = Sequence[tuple[Cell, Seeds]]


def cell_panels(study: Study) -> list[Panel]:
    """Make one panel per method with a row per cell of the grid, in the order of selections; all on one scale."""
    return _panels(study, [cell for cell, _ in study.grid_cells], "all-cells")


def variant_panels(study: Study) -> list[Panel]:
    """Make the same panels for methods that have variants: each variant beside the cells of the grid that it varies."""
    grid = [cell for cell, _ in study.grid_cells]
    variants = [cell for cell, _ in study.cells if cell not in grid]
    varied = {cell[:3] for cell in variants}
    return _panels(study, [*(cell for cell in grid if cell[:3] in varied), *variants], "variants")


def _panels(study: Study, cells: Sequence[Cell], name: str) -> list[Panel]:
    rows = [(cell, Seeds.of(study, cell)) for cell in sorted(cells, key=selection_order)]
    rows = [(cell, seeds) for cell, seeds in rows if len(seeds.values)]
    if not rows:
        return []
    everything = np.concatenate([seeds.values for _, seeds in rows])
    margin = 0.06 * np.ptp(everything) or 0.05
    limits = everything.min() - margin, everything.max() + margin
    note = "Dots: every seed (hollow: with fusion); bar: mean; "
    note += interval_note([seeds for _, seeds in rows], "line: 95 % interval of the mean")
    label = f"{study.endpoint.capitalize()} reward after training ({study.reward})"
    panels = []
    for method in dict.fromkeys(cell.method for cell, _ in study.cells):
        if own := [row for row in rows if row[0].method == method]:
            draw = partial(_draw, rows=own, limits=limits, label=label)
            height = 1.6 + sum(_row_height(cell) for cell, _ in own)
            title = METHOD_NAMES.get(method, method)
            panels.append(Panel(f"{study.prefix}{name}-{method}", title, draw, height, note))
    return panels


def _label(cell: Cell) -> str:
    if cell.is_adagrpo and not cell.variant:
        return f"{cell.short}\n= AdaGRPO"
    name, _, rest = cell.short.partition(", ")
    # The table of cells has the text that is cut here.
    return "\n".join([name, *textwrap.wrap(rest, _LABEL_WIDTH, max_lines=_MAX_LINES, placeholder=" …")])


def _row_height(cell: Cell) -> float:
    """Height in inches: a row has room for two lines of its label."""
    return 0.29 + 0.16 * max(0, _label(cell).count("\n") - 1)


def _draw(axes: Axes, rows: _Rows, limits: tuple[float, float], label: str) -> None:
    for position, (cell, (values, interval)) in enumerate(rows):
        mean, colour = float(values.mean()), cell.colour
        if position and rows[position - 1][0].selection != cell.selection:
            axes.axhline(position - 0.5, color=GREY, alpha=0.35, linewidth=0.7)
        if cell.is_base and not cell.variant:
            axes.axvline(mean, color=colour, linewidth=1, linestyle=":")
        if interval is not None:
            axes.hlines(position, interval.low, interval.high, color=colour, linewidth=5, alpha=0.4)
        face = "none" if cell.fusion else colour
        axes.scatter(values, np.full(len(values), position), s=20, facecolor=face, edgecolor=colour, zorder=3)
        if len(values) > 1:
            axes.vlines(mean, position - 0.32, position + 0.32, color=INK, linewidth=2, zorder=4)
    labels = [_label(cell) for cell, _ in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=9.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(*limits)
    is_narrow = limits[1] - limits[0] < 0.01 * max(map(abs, limits))
    if is_narrow or any(text.count("\n") > 1 for text in labels):
        axes.locator_params(axis="x", nbins=3)  # numbers of many digits, and long labels, leave little room
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="y")
