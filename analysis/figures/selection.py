"""Figure of prompt selection: gain of each rule over the untrained model, beside the paper's numbers."""

from collections.abc import Mapping
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from analysis import paper
from analysis.cells.labels import METHOD_NAMES, in_papers_order, selection_colour
from analysis.cells.logs import TRAINING_REWARD
from analysis.cells.study import Study
from analysis.figures.cells import Seeds, interval_note
from analysis.figures.drawing import GREY, INK, Panel


def selection_panels(study: Study) -> list[Panel]:
    """Make a panel per method with several rules: its cells without fusion, as bars from the untrained model up."""
    starts: dict[str, float] = {}
    bars_of: dict[str, dict[str, Seeds]] = {}
    splits: set[str] = set()
    for cell, _ in study.grid_cells:
        if not cell.fusion and len(study.values(cell, TRAINING_REWARD)):
            bars_of.setdefault(cell.method, {})[cell.selection] = Seeds.of(study, cell)
            before, split = study.untrained(cell)
            splits.add(split)
            starts.setdefault(cell.method, float(before.get(TRAINING_REWARD, np.nan)))
    bars_of = {method: bars for method, bars in bars_of.items() if len(bars) > 1}
    everything = [bar for bars in bars_of.values() for bar in bars.values()]
    highest = max((float(bar.values.max()) for bar in everything), default=0.0)
    note = "Bar: mean, from the untrained model up; dots: every seed; "
    note += interval_note(everything, "line: 95 % interval")
    if "validation" in splits:
        note += "; the untrained model on validation prompts"
    return [
        Panel(
            f"{study.prefix}selection-{method}",
            f"{METHOD_NAMES.get(method, method)}, this study",
            partial(_draw, bars, starts[method], highest, f"{study.endpoint.capitalize()} reward ({study.reward})"),
            note=note,
        )
        for method, bars in bars_of.items()
    ]


def paper_panel() -> Panel:
    """Make the panel of the paper's comparison of selection rules, drawn in the same way."""
    table = paper.selection_table()
    finals = zip(table["strategy"], table["final_hpsv3"], strict=True)
    bars = {str(strategy): Seeds(np.array([final]), None) for strategy, final in finals}
    highest = float(table["final_hpsv3"].max())
    draw = partial(_draw, bars, paper.untrained_hpsv3(), highest, "HPS-v3", digits=2, dots=False)
    note = "The paper: from the untrained FLUX.1-dev up, one run each"
    return Panel("selection-paper", "Flow-GRPO, the paper", draw, note=note)


def _draw(
    bars: Mapping[str, Seeds], start: float, highest: float, label: str, axes: Axes, digits: int = 3, dots: bool = True
) -> None:
    shown = in_papers_order(bars)
    for position, selection in enumerate(shown):
        bar, colour = bars[selection], selection_colour(selection)
        mean, bottom = float(bar.values.mean()), start if np.isfinite(start) else float(bar.values.mean())
        axes.bar(position, mean - bottom, bottom=bottom, width=0.7, color=colour, alpha=0.45, edgecolor=colour)
        if dots:
            spread = np.linspace(-0.18, 0.18, len(bar.values)) if len(bar.values) > 1 else 0.0
            axes.scatter(position + spread, bar.values, s=14, color=colour, edgecolor=INK, linewidth=0.4, zorder=3)
        if bar.interval is not None:
            axes.vlines(position, bar.interval.low, bar.interval.high, color=INK, linewidth=2, zorder=4)
        top = max(mean, float(bar.values.max()))
        axes.annotate(
            f"{mean:.{digits}f}", (position, top), (0, 5), textcoords="offset points", ha="center", fontsize=9.5
        )
    lowest = min(start if np.isfinite(start) else np.inf, *(float(bar.values.min()) for bar in bars.values()))
    span = (highest - lowest) or 0.1
    axes.set_ylim(lowest - 0.03 * span, highest + 0.13 * span)
    if np.isfinite(start):
        axes.axhline(start, color=GREY, linewidth=1)
    axes.set_xticks(range(len(shown)), shown, fontsize=9.5)
    axes.set_ylabel(label)
    axes.grid(visible=False, axis="x")
