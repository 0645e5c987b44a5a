"""How figures look and become files: the same numbers give the same bytes."""

import hashlib
import html
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from harness.foundation.files import write_atomically

INK = "#1b1f24"
GREY = "#888888"
_PAPER = "#ffffff"
_STYLE = {
    # Real text: small, searchable, and in the page's own font. The salt fixes the ids that are otherwise random.
    "svg.fonttype": "none",
    "svg.hashsalt": "adagrpo",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    # Names of cells and metrics may be anyone's: a pair of dollars in them is no formula.
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.formatter.useoffset": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": _PAPER,
    "axes.facecolor": "none",
    "legend.frameon": False,
}
# Okabe and Ito's palette, told apart with any colour vision.
_COLOURS = ("#56B4E9", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_NOTE_WIDTH = 56  # Letters in a line.
_PANEL_WIDTH = 4.6  # Inches: so narrow that letters stay legible when a phone shrinks it.


def series_colour(number: int) -> str:
    """Colour of a series by its position, hexadecimal; repeated after the sixth."""
    return _COLOURS[number % len(_COLOURS)]


_COMPACT: dict[str, Any] = {"fontsize": 8.5, "handlelength": 1.2, "columnspacing": 1.0}
"""Legend of a panel among others."""


@dataclass(frozen=True)
class Drawing:
    """A figure as files need it."""

    name: str
    """File name without ending."""
    title: str
    svg: str
    png: bytes | None = None
    """Its twin, of wide pictures only: drawing it takes as long as the SVG, and pages have the SVG."""

    def save(self, folder: Path) -> None:
        """Write NAME.svg and, if there is one, its twin NAME.png."""
        folder.mkdir(parents=True, exist_ok=True)
        # A part of the name may be anyone's, such as an experiment's.
        name = re.sub(r"[^\w .,:()=+@-]", "-", self.name)[:100]
        if name != self.name:
            name += f"-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"
        write_atomically(folder / f"{name}.svg", self.svg)
        if self.png is not None:
            write_atomically(folder / f"{name}.png", self.png)

    def inline(self, scope: str) -> str:
        """The SVG as an element of an HTML page: the page's ink and paper, and ids of its own, within ``scope``."""
        svg = re.sub(r"<metadata>.*?</metadata>", "", self.svg[self.svg.index("<svg") :], flags=re.DOTALL)
        own = html.escape(f"{scope}-{self.name}-")
        svg = re.sub(r'(\bid="|href="#|url\(#)', lambda found: found[1] + own, svg)
        svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
        svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
        title = html.escape(self.title, quote=False).replace('"', "&quot;")
        svg = svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
        return svg.replace(INK, "currentColor").replace(f"fill: {_PAPER}", "fill: none")


@dataclass(frozen=True)
class Panel:
    """A pair of axes to be drawn, alone for a narrow page or among others for a wide picture."""

    name: str
    title: str
    draw: Callable[[Axes], None]
    height: float = 3.4
    """Inches of the axes, without the legend."""
    note: str = ""
    """Above the legend: what lines and bands are."""


def draw_panel(panel: Panel) -> Drawing:
    """A figure of one panel, its legend below."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_PANEL_WIDTH, panel.height), layout="constrained")
        axes = figure.subplots()
        _fill(axes, panel)
        _add_legend(figure, axes, panel.note)
        return Drawing(panel.name, panel.title, _as_svg(figure))


def draw_together(name: str, title: str, panels: Sequence[Panel], num_columns: int) -> Drawing:
    """One wide picture of several panels; each keeps its own legend, below its axes."""
    num_columns = min(num_columns, len(panels))
    num_rows = -(-len(panels) // num_columns)
    with matplotlib.rc_context(_STYLE):
        size = _PANEL_WIDTH * num_columns, num_rows * max(panel.height for panel in panels)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(hspace=0.05, wspace=0.03))
        grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
        for axes, panel in zip(grid, panels, strict=False):
            _fill(axes, panel)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, **_COMPACT)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        width = _NOTE_WIDTH * num_columns
        notes = [textwrap.fill(note, width) for note in dict.fromkeys(panel.note for panel in panels) if note]
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        figure.supxlabel("\n".join(notes), x=0.01, ha="left", fontsize=9.5)
        return Drawing(name, title, _as_svg(figure), _as_png(figure))


def capture(name: str, title: str, plot: Callable[[], object]) -> Drawing:
    """A figure that another library draws with pyplot; its style changes nothing else."""
    from matplotlib import pyplot

    with matplotlib.rc_context(_STYLE | {"text.parse_math": True}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plot()
        svg = BytesIO()
        pyplot.savefig(svg, format="svg", metadata=_NO_METADATA, bbox_inches="tight")
        pyplot.close("all")
        return Drawing(name, title, svg.getvalue().decode())


def _fill(axes: Axes, panel: Panel) -> None:
    axes.grid(color=GREY, alpha=0.25, linewidth=0.7)
    axes.set_axisbelow(True)
    panel.draw(axes)
    # A title without a place looks for one in each pass of the layout, for which all labels are measured once more.
    # Only a power of ten above the vertical axis makes it necessary.
    axes.set_title(panel.title, loc="left", fontweight="bold", y=None if _has_power_of_ten(axes) else 1.0)


def _has_power_of_ten(axes: Axes) -> bool:
    formatter = axes.yaxis.get_major_formatter()
    formatter.set_locs(list(axes.get_yticks()))
    return bool(formatter.get_offset())


def _add_legend(figure: Figure, axes: Axes, note: str) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if not handles and not note:
        return
    legend = figure.legend(
        handles,
        labels,
        loc="outside lower left",
        title=textwrap.fill(note, _NOTE_WIDTH) or None,
        fontsize=10,
        title_fontsize=9.5,
    )
    legend.set_alignment("left")


def _as_svg(figure: Figure) -> str:
    svg = BytesIO()
    # Laid out once: drawing would do so again, for the SVG and for its twin.
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine(None)
    figure.savefig(svg, format="svg", metadata=_NO_METADATA)
    return svg.getvalue().decode()


def _as_png(figure: Figure) -> bytes:
    png = BytesIO()
    figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    return png.getvalue()
