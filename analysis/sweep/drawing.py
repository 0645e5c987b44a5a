"""How a sweep's figures become files: in the style of the report's."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import _INK, _NO_METADATA, _STYLE, Curve

INK, GREY = _INK, "#888888"
Drawing = Curve


@dataclass(frozen=True)
class Panel:
    """A pair of axes to be drawn."""

    name: str
    title: str
    draw: Callable[[Axes], None]
    height: float = 3.4
    """Inches."""
    note: str = ""
    """Above the legend: what marks and lines are."""


def draw_panel(panel: Panel) -> Drawing:
    """A figure of one panel, its legend below; the same numbers give the same bytes."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, panel.height), layout="constrained")
        axes = figure.subplots()
        axes.set_title(panel.title, loc="left", fontweight="bold")
        axes.grid(color=GREY, alpha=0.25, linewidth=0.7)
        axes.set_axisbelow(True)
        panel.draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        if handles or panel.note:
            note = textwrap.fill(panel.note, 56) or None
            legend = figure.legend(
                handles, labels, loc="outside lower left", title=note, fontsize=10, title_fontsize=9.5
            )
            legend.set_alignment("left")
        svg, png = BytesIO(), BytesIO()
        figure.savefig(svg, format="svg", metadata=_NO_METADATA)
        figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    return Drawing(panel.name, panel.title, svg.getvalue().decode(), png.getvalue())
