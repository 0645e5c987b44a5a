"""Curves over training, drawn from the tidy frame; the same numbers give the same bytes."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.labels import METHOD_NAMES, Cell, cell_colour, cell_dash, is_adagrpo, is_base, split_cells
from analysis.logs import TRAINING_REWARD

_INK = "#1b1f24"
_PAPER = "#ffffff"
_STYLE = {
    # Real text: small, searchable, and in the page's own font. The salt fixes the ids that are otherwise random.
    "svg.fonttype": "none",
    "svg.hashsalt": "adagrpo",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": _PAPER,
    "axes.facecolor": "none",
    "legend.frameon": False,
}
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}

ITERATION, COMPUTE = "iteration", "compute"
_AXIS_LABELS = {
    ITERATION: "Training iteration",
    COMPUTE: "Network forwards spent on training\n(a trained sample counts 3)",
}


@dataclass(frozen=True)
class Curve:
    """A figure as files need it."""

    name: str
    """File name without ending."""
    title: str
    svg: str
    png: bytes

    def save(self, folder: Path) -> None:
        """Write NAME.svg and its twin NAME.png."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.svg").write_text(self.svg, encoding="utf-8")
        (folder / f"{self.name}.png").write_bytes(self.png)

    def inline(self) -> str:
        """The SVG as an element of an HTML page: the page's ink and paper, and ids of its own."""
        svg = re.sub(r"<metadata>.*?</metadata>", "", self.svg[self.svg.index("<svg") :], flags=re.DOTALL)
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{self.name}-", svg)
        svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
        svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
        svg = svg.replace("<svg", f'<svg role="img" aria-label="{self.title}"', 1)
        return svg.replace(_INK, "currentColor").replace(f"fill: {_PAPER}", "fill: none")


def draw_curves(
    runs: pd.DataFrame, reward: str, unseen_judge: str | None, finished: Collection[str], prefix: str
) -> list[Curve]:
    """The curves of one experiment and reward: for each method, its cells in one figure.

    Args:
        runs: rows of ``load_runs``, of one experiment and reward.
        reward: the trained reward as the axis shall call it.
        unseen_judge: a judge with the metric ``<judge>/word_accuracy``; None for no figure of it.
        finished: run ids; a cell's mean and band are over these, or over all its runs when none is finished.
        prefix: of the figures' names.

    Returns:
        Validation reward by iteration and by compute, and the unseen judge's word accuracy; without what was not
        logged. A method that has further cells also gets its base and + AdaGRPO cells on their own.
    """
    validation = runs[runs["split"] == "validation"].merge(_compute(runs), on=["run_id", ITERATION], how="left")
    # Nothing is spent before the first iteration, which writes the first line.
    validation.loc[validation[ITERATION] == 0, COMPUTE] = 0.0
    wanted = [
        ("reward-by-iteration", TRAINING_REWARD, ITERATION, f"Validation reward ({reward})"),
        ("reward-by-compute", TRAINING_REWARD, COMPUTE, f"Validation reward ({reward})"),
    ]
    if unseen_judge:
        label = f"Validation word accuracy\n(unseen judge {unseen_judge})"
        wanted.append(("unseen-accuracy", f"{unseen_judge}/word_accuracy", ITERATION, label))
    curves: list[Curve] = []
    for method in dict.fromkeys(cell.method for cell, _ in split_cells(validation)):
        cells = [(cell, rows) for cell, rows in split_cells(validation) if cell.method == method]
        pair = [(cell, rows) for cell, rows in cells if _is_pair(cell)]
        title = METHOD_NAMES.get(method, method)
        # The paper's comparison first; among all ten cells it would be hard to see.
        if len(pair) == 2 < len(cells):
            for name, metric, axis, label in wanted:
                file = f"{prefix}{name}-{method}-adagrpo"
                curves += _draw(pair, metric, axis, label, f"{title}: base and + AdaGRPO", file, finished)
        for name, metric, axis, label in wanted:
            curves += _draw(cells, metric, axis, label, title, f"{prefix}{name}-{method}", finished)
    return curves


def _is_pair(cell: Cell) -> bool:
    return is_base(cell.selection, cell.fusion) or is_adagrpo(cell.selection, cell.fusion)


def _compute(runs: pd.DataFrame) -> pd.DataFrame:
    train = runs[runs["split"] == "train"].pivot_table(index=["run_id", ITERATION], columns="metric", values="value")
    for name in ("total_sample_forwards", "total_train_forwards"):
        if name not in train:
            train[name] = float("nan")
    spent = train["total_sample_forwards"] + 3 * train["total_train_forwards"]
    return spent.rename(COMPUTE).reset_index()


def over_seeds(rows: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Mean, lowest and highest value over the runs of a cell.

    Args:
        rows: one metric of one cell.
        axis: "iteration" or "compute"; the latter is averaged over runs, too.

    Returns:
        One row an iteration that all runs have reached: a mean over fewer of them would jump where one ends.
    """
    grouped = rows.groupby(ITERATION)
    table = grouped["value"].agg(["mean", "min", "max", "count"]).assign(x=grouped[axis].mean())
    return table[table["count"] == rows["run_id"].nunique()]


def _draw(
    cells: list[tuple[Cell, pd.DataFrame]],
    metric: str,
    axis: str,
    label: str,
    title: str,
    name: str,
    finished: Collection[str],
) -> list[Curve]:
    """One figure, or none where nothing was logged."""
    wanted = [(cell, rows[(rows["metric"] == metric) & rows[axis].notna()]) for cell, rows in cells]
    wanted = [(cell, rows) for cell, rows in wanted if len(rows)]
    if not wanted:
        return []
    with matplotlib.rc_context(_STYLE):
        # Narrow, so that letters stay legible when a phone shrinks it.
        figure = Figure(figsize=(4.6, 3.3 + 0.2 * len(wanted)), layout="constrained")
        axes = figure.subplots()
        bands = [_draw_cell(axes, cell, rows, axis, finished) for cell, rows in wanted]
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set_xlabel(_AXIS_LABELS[axis])
        axes.set_ylabel(label)
        axes.grid(color="#888888", alpha=0.25, linewidth=0.7)
        axes.locator_params(axis="x", nbins=6, integer=True)
        axes.margins(x=0.02)
        note = "Mean over seeds; band from lowest to highest seed" if any(bands) else "One seed a line: no spread"
        legend = figure.legend(loc="outside lower left", title=note, fontsize=10, title_fontsize=9.5)
        legend.set_alignment("left")
        svg, png = BytesIO(), BytesIO()
        figure.savefig(svg, format="svg", metadata=_NO_METADATA)
        figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    return [Curve(name, f"{title}: {' '.join(label.split())}", svg.getvalue().decode(), png.getvalue())]


def _draw_cell(axes: Axes, cell: Cell, rows: pd.DataFrame, axis: str, finished: Collection[str]) -> bool:
    """Draw a cell; whether it has a band."""
    colour = cell_colour(cell.selection, cell.fusion)
    complete = rows[rows["run_id"].isin(list(finished))]
    averaged = complete if len(complete) else rows
    mean = over_seeds(averaged, axis)
    num_seeds = averaged["seed"].nunique()
    if rows["run_id"].nunique() > 1:
        for _, run in rows.sort_values(ITERATION).groupby("run_id"):
            axes.plot(run[axis], run["value"], color=colour, linewidth=0.6, alpha=0.5)
    if num_seeds > 1:
        axes.fill_between(mean["x"], mean["min"], mean["max"], color=colour, alpha=0.16, linewidth=0)
    text = f"{cell.label} ({num_seeds} {'seed' if num_seeds == 1 else 'seeds'})"
    marker = "o" if len(mean) <= 12 else None
    style = cell_dash(cell.selection, cell.fusion)
    axes.plot(mean["x"], mean["mean"], style, color=colour, linewidth=2, marker=marker, markersize=3.5, label=text)
    return num_seeds > 1
