"""Training curves: base against + AdaGRPO, all cells of a method, and the paper's."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from analysis import paper, statistics
from analysis.cells.equal_cost import matched_baselines
from analysis.cells.labels import METHOD_NAMES, Cell
from analysis.cells.logs import TRAINING_REWARD
from analysis.cells.spending import AXES, SECONDS, with_spending
from analysis.cells.study import MIN_SEEDS_FOR_INTERVAL, Study, adagrpo_pairs
from analysis.figures.drawing import Panel
from analysis.verdicts.stability import GROUP_SPREADS

ITERATION = "iteration"
_AXIS_LABELS = {ITERATION: "Training iteration"} | AXES
_MEAN_NOTE = "Mean over seeds (spread: figure of all cells)"
_BAND_RESAMPLES = 2_000
_VARIANT_DASHES = (":", "-.", (0, (5, 1, 1, 1, 1, 1)))


class Quantity(NamedTuple):
    """A quantity that curves show: a metric against an axis."""

    name: str
    """Part of the file names."""
    metric: str
    axis: str
    label: str
    split: str = "validation"


def quantities(study: Study) -> list[Quantity]:
    """Validation reward by iteration, and the word accuracy of the unseen reader if there is one."""
    wanted = [Quantity("reward", TRAINING_REWARD, ITERATION, _reward_label(study))]
    if study.reader is not None:
        label = f"Validation word accuracy\n(unseen judge {study.reader})"
        wanted.append(Quantity("unseen-accuracy", f"{study.reader}/word_accuracy", ITERATION, label))
    return wanted


def signs(study: Study) -> list[Quantity]:
    """Logged signs of hacking and collapse, on validation prompts and in the groups that were trained on."""
    validated = {
        "background-error": ("colour/background_error", "Background error"),
        "texture": ("pictures/texture", "Background texture"),
        "mono-font": ("pictures/font_mono", "Share of mono font"),
    }
    of_groups = {re.sub("[/_]", "-", metric): (metric, label) for metric, label in GROUP_SPREADS.items()}
    return [
        Quantity(name, metric, ITERATION, f"{label}\n({where})", split)
        for names, where, split in (
            (validated, "validation prompts", "validation"),
            (of_groups, "groups trained on", "train"),
        )
        for name, (metric, label) in names.items()
        if len(study.rows(split, metric))
    ]


def cost_quantities(study: Study) -> list[Quantity]:
    """Validation reward against each cost: network forwards, reward calls, seconds."""
    label = _reward_label(study)
    return [Quantity(f"reward-by-{axis.replace('_', '-')}", TRAINING_REWARD, axis, label) for axis in AXES]


def _reward_label(study: Study) -> str:
    # The name of a sum of rewards would not fit beside a small panel.
    gap = "\n" if "+" in study.reward else " "
    return f"Validation reward{gap}({study.reward})"


def pair_panels(study: Study, quantity: Quantity) -> list[Panel]:
    """The paper's figure: a panel per method with its base cell and its + AdaGRPO cells, all on one scale.

    Against a cost they are joined by the variants of the base that cost as much.
    """
    groups = {base.method: [base, *ours] for base, ours in adagrpo_pairs(study)}
    if quantity.axis != ITERATION:
        for base, ours, *_ in groups.values():
            groups[base.method] += matched_baselines(study, base, ours)
    return _panels(study, quantity, groups, "adagrpo")


def cell_panels(study: Study, quantity: Quantity) -> list[Panel]:
    """Panels of all selections per method, without fusion and with it (beside the base); all on one scale.

    A method with only base and + AdaGRPO cells is left out, since ``pair_panels`` shows it.
    """
    sizes = Counter(cell.method for cell, _ in study.grid_cells)
    complete = {base.method for base, ours in adagrpo_pairs(study) if sizes[base.method] == 1 + len(ours)}
    groups: dict[str, list[Cell]] = {}
    for cell in (cell for cell, _ in study.grid_cells if cell.method not in complete):
        if cell.fusion:
            base = study.base_of(cell)
            groups.setdefault(f"{cell.method}-fusion", [base] if base else []).append(cell)
        else:
            groups.setdefault(cell.method, []).append(cell)
    return _panels(study, quantity, groups, "cells")


def compared_panels(study: Study, quantity: Quantity) -> list[Panel]:
    """Panel of all cells, whatever their methods and settings, for ``adagrpo compare``."""
    return _panels(study, quantity, {"all": [cell for cell, _ in study.cells]}, "compared")


def paper_panels() -> list[Panel]:
    """Panels of Flow-GRPO's published training curves, one for each training reward."""
    curves = paper.reward_curves()
    panels = []
    for reward, name in paper.REWARD_NAMES.items():
        rows = curves[curves["training_reward"] == reward]
        file = f"curves-paper-{reward.replace('+', '-')}"
        note = "The paper: one run each, on prompts that were trained on"
        panels.append(Panel(file, f"The paper: FLUX.1-dev, {name}", partial(_draw_published, rows), note=note))
    return panels


def _by_run(rows: pd.DataFrame) -> pd.DataFrame:
    """One metric of one cell, with a column per run and a row per iteration that all runs have reached: a mean would
    jump at the end of a shorter run."""
    return rows.pivot(index=ITERATION, columns="run_id", values="value").dropna()


def _panels(study: Study, quantity: Quantity, groups: dict[str, list[Cell]], kind: str) -> list[Panel]:
    rows = _rows_by_cell(study, quantity)
    of_group = {group: [(cell, rows[cell]) for cell in cells if cell in rows] for group, cells in groups.items()}
    of_group = {group: curves for group, curves in of_group.items() if curves}
    if not of_group:
        return []
    limits = _padded(pd.concat([of_cell for curves in of_group.values() for _, of_cell in curves])["value"])
    panels = []
    for group, curves in of_group.items():
        method = curves[0][0].method
        title = METHOD_NAMES.get(method, method)
        if kind == "compared":
            title = "The cells compared"
        elif kind == "cells":
            title += ", with fusion" if curves[-1][0].fusion else ", without fusion"
        panels.append(
            Panel(
                f"{study.prefix}curves-{quantity.name}-{group}-{kind}",
                title,
                partial(_draw, curves=curves, quantity=quantity, limits=limits, kind=kind),
                height=3.3 + 0.2 * len(curves),
                note=_spread_note([rows for _, rows in curves]) if kind != "cells" else _MEAN_NOTE,
            )
        )
    return panels


def _spread_note(cells: Sequence[pd.DataFrame]) -> str:
    has_band = [rows["seed"].nunique() >= MIN_SEEDS_FOR_INTERVAL for rows in cells]
    if not any(has_band):
        return f"Mean and every seed; no interval below {MIN_SEEDS_FOR_INTERVAL} seeds"
    note = "Mean over seeds; band: 95 % interval of the mean"
    return note if all(has_band) else f"{note}, or every seed below {MIN_SEEDS_FOR_INTERVAL} seeds"


def _rows_by_cell(study: Study, quantity: Quantity) -> dict[Cell, pd.DataFrame]:
    """Rows to draw for each cell, with the axis and ``unfinished`` as columns: its finished runs, else all."""
    rows = study.rows(quantity.split, quantity.metric)
    if quantity.axis != ITERATION:
        rows = with_spending(rows, study.spent)
    if quantity.axis == SECONDS:
        rows = rows[rows["run_id"].isin(study.timed(study.summary)["run_id"])]
    measured = set(rows["run_id"].unique())
    of_cells = {}
    for cell, members in study.cells:
        ids = measured & set(members["run_id"])
        finished = ids & study.finished
        if ids:
            of_cells[cell] = rows[rows["run_id"].isin(finished or ids)].assign(unfinished=not finished)
    return of_cells


def _draw(
    axes: Axes,
    curves: Sequence[tuple[Cell, pd.DataFrame]],
    quantity: Quantity,
    limits: tuple[float, float],
    kind: str,
) -> None:
    dashes = itertools.cycle(_VARIANT_DASHES)
    names = {"adagrpo": _pair_label, "compared": lambda cell: cell.label, "cells": lambda cell: cell.short}
    drawn: set[str] = set()
    for cell, rows in curves:
        looks_alike = kind == "compared" and cell.colour in drawn
        drawn.add(cell.colour)
        dash = next(dashes) if cell.variant or looks_alike else cell.dash
        name = names[kind](cell)
        # Bands of many cells would hide each other, and those of variants the cells that they vary.
        with_spread = kind != "cells" and not cell.variant
        _draw_cell(axes, cell, rows, quantity.axis, name, dash, with_spread)
    axes.set_ylim(*limits)
    _decorate(axes, _AXIS_LABELS[quantity.axis], quantity.label)


def _draw_cell(axes: Axes, cell: Cell, rows: pd.DataFrame, axis: str, name: str, dash: Any, with_spread: bool) -> None:
    by_run, num_seeds = _by_run(rows), rows["seed"].nunique()
    state = ", unfinished" if rows["unfinished"].all() else ""
    # A cost is averaged over runs, too.
    x = rows[rows[ITERATION].isin(by_run.index)].groupby(ITERATION)[axis].mean()
    if with_spread and num_seeds >= MIN_SEEDS_FOR_INTERVAL:
        bands = [statistics.mean_interval(at, num_resamples=_BAND_RESAMPLES) for at in by_run.to_numpy()]
        low, high = [band.low for band in bands], [band.high for band in bands]
        axes.fill_between(x, low, high, color=cell.colour, alpha=0.18, linewidth=0)
    elif with_spread and num_seeds > 1:
        for _, run in rows.groupby("run_id", observed=True):
            axes.plot(run[axis], run["value"], color=cell.colour, linewidth=0.7, alpha=0.55)
    axes.plot(
        x,
        by_run.mean(axis=1),
        linestyle=dash,
        color=cell.colour,
        linewidth=2,
        marker="o" if len(x) <= 12 else None,
        markersize=3.5,
        label=f"{name} ({num_seeds} {'seed' if num_seeds == 1 else 'seeds'}{state})",
    )


def _draw_published(rows: pd.DataFrame, axes: Axes) -> None:
    # Own colours, since model, reward and scale differ from those of the neighbouring panels.
    for method, name, colour in (("Flow-GRPO", "Flow-GRPO", "#8C8C8C"), ("AdaGRPO", "Flow-GRPO + AdaGRPO", "#6A3D9A")):
        curve = rows[rows["method"] == method]
        axes.plot(curve["iteration"], curve["reward"], color=colour, linewidth=2, label=name)
    _decorate(axes, _AXIS_LABELS[ITERATION], "Training reward")


def _decorate(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.margins(x=0.02)


def _pair_label(cell: Cell) -> str:
    if cell.is_base:
        return f"base, {cell.variant or 'random prompts'}"
    return cell.label.partition(" ")[2]


def _padded(values: pd.Series) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.05
    return low - margin, high + margin
