"""The primary claims in one picture: each difference with its interval, coloured by its verdict."""

import math
import textwrap
from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes

from analysis.claims import MARGIN
from analysis.figures.drawing import GREY, INK, Panel
from analysis.verdicts.claims_table import Row

_LABEL_WIDTH = 30  # Letters in a line beside the axis.
_COLOURS = {"supported": "#009E73", "not supported": "#D55E00", "inconclusive": GREY}


def claims_panel(rows: Sequence[Row]) -> Panel:
    """A row per primary claim; one without runs has its name alone."""
    note = f"Line: interval, at the level that Holm's procedure gives; shaded: ±{MARGIN:g}"
    return Panel("claims", "Primary claims", partial(_draw, rows=rows), 1.0 + 0.52 * len(rows), note)


def _draw(axes: Axes, rows: Sequence[Row]) -> None:
    axes.axvspan(-MARGIN, MARGIN, color=GREY, alpha=0.18, linewidth=0)
    axes.axvline(0, color=INK, linewidth=0.8)
    named: set[str] = set()
    for place, row in enumerate(rows):
        value, low, high = (float(row.numbers.get(name, math.nan)) for name in ("difference", "low", "high"))
        verdict = row.verdict or ""
        if not math.isfinite(value):
            axes.annotate(verdict, (0, place), (6, 0), textcoords="offset points", va="center", fontsize=9, color=INK)
            continue
        if math.isfinite(low):
            axes.hlines(place, low, high, color=_COLOURS[verdict], linewidth=3)
        label = verdict if verdict not in named else None
        named.add(verdict)
        axes.plot(value, place, "o", color=_COLOURS[verdict], markersize=7, label=label)
    axes.set_yticks(range(len(rows)), [_wrapped(row.statement) for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("Difference of reward\non test words")
    axes.grid(visible=False, axis="y")


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _LABEL_WIDTH, break_on_hyphens=False)
