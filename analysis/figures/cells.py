"""All cells at once: every seed, mean and interval, without fusion and with it in neighbouring rows."""

import textwrap
from collections.abc import Sequence
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
"""Letters in a line of a variant's settings beside the axis, and lines of them."""


class Row(NamedTuple):
    """A cell's results."""

    cell: Cell
    seeds: np.ndarray
    interval: Interval | None


def cell_panels(study: Study) -> list[Panel]:
    """For each method one panel, a row a cell of the grid, in the order of selections; all on one scale."""
    return _panels(study, [cell for cell, _ in study.grid_cells], "all-cells")


def variant_panels(study: Study) -> list[Panel]:
    """The same of the methods that have variants: each beside the cells of the grid that it varies."""
    grid = [cell for cell, _ in study.grid_cells]
    variants = [cell for cell, _ in study.cells if cell not in grid]
    varied = {cell[:3] for cell in variants}
    return _panels(study, [*(cell for cell in grid if cell[:3] in varied), *variants], "variants")


def _panels(study: Study, cells: Sequence[Cell], name: str) -> list[Panel]:
    rows_of: dict[str, list[Row]] = {}
    for cell in sorted(cells, key=selection_order):
        values = study.values(cell, TRAINING_REWARD)
        if len(values):
            interval = study.interval(cell, TRAINING_REWARD)
            rows_of.setdefault(cell.method, []).append(Row(cell, values.to_numpy(), interval))
    everything = [value for rows in rows_of.values() for row in rows for value in row.seeds]
    if not everything:
        return []
    margin = 0.06 * (max(everything) - min(everything)) or 0.05
    limits = min(everything) - margin, max(everything) + margin
    has_interval = any(row.interval for rows in rows_of.values() for row in rows)
    note = "Dots: every seed (hollow: with fusion); bar: mean; "
    note += "line: 95 % interval of the mean" if has_interval else f"no interval below {MIN_SEEDS_FOR_INTERVAL} seeds"
    label = f"Test reward after training ({study.reward})"
    methods = [method for method in dict.fromkeys(cell.method for cell, _ in study.cells) if method in rows_of]
    return [
        Panel(
            f"{study.prefix}{name}-{method}",
            METHOD_NAMES.get(method, method),
            partial(_draw, rows=rows_of[method], limits=limits, label=label),
            height=1.6 + sum(_row_height(row.cell) for row in rows_of[method]),
            note=note,
        )
        for method in methods
    ]


def _label(cell: Cell) -> str:
    if cell.is_adagrpo and not cell.variant:
        return f"{cell.short}\n= AdaGRPO"
    name, _, rest = cell.short.partition(", ")
    # What is cut is whole in the table of cells.
    return "\n".join([name, *textwrap.wrap(rest, _LABEL_WIDTH, max_lines=_MAX_LINES, placeholder=" …")])


def _row_height(cell: Cell) -> float:
    """Inches: two lines of a label fit where one does."""
    return 0.29 + 0.16 * max(0, _label(cell).count("\n") - 1)


def _draw(axes: Axes, rows: Sequence[Row], limits: tuple[float, float], label: str) -> None:
    for position, row in enumerate(rows):
        cell, mean = row.cell, float(row.seeds.mean())
        if position and rows[position - 1].cell.selection != cell.selection:
            axes.axhline(position - 0.5, color=GREY, alpha=0.35, linewidth=0.7)
        if cell.is_base and not cell.variant:
            axes.axvline(mean, color=cell.colour, linewidth=1, linestyle=":")
        if row.interval is not None:
            axes.hlines(position, row.interval.low, row.interval.high, color=cell.colour, linewidth=5, alpha=0.4)
        face = "none" if cell.fusion else cell.colour
        axes.scatter(
            row.seeds, np.full(len(row.seeds), position), s=20, facecolor=face, edgecolor=cell.colour, zorder=3
        )
        if len(row.seeds) > 1:
            axes.vlines(mean, position - 0.32, position + 0.32, color=INK, linewidth=2, zorder=4)
    axes.set_yticks(range(len(rows)), [_label(row.cell) for row in rows], fontsize=9.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(*limits)
    is_narrow = limits[1] - limits[0] < 0.01 * max(map(abs, limits))
    if is_narrow or any(_label(row.cell).count("\n") > 1 for row in rows):
        axes.locator_params(axis="x", nbins=3)  # numbers of many digits, and long labels, leave little room
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="y")
