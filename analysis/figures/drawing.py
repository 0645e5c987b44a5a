"""Style and rendering of figures: the same numbers give the same bytes."""

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
from matplotlib.transforms import offset_copy

from harness.foundation.files import write_atomically

INK = "#1b1f24"
GREY = "#888888"
_PAPER = "#ffffff"
_STYLE = {
    # Text stays text: small, searchable, and in the page's font. The salt fixes ids, which would be random.
    "svg.fonttype": "none",
    "svg.hashsalt": "adagrpo",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    # Users choose names of cells and metrics: a pair of dollars in them is not a formula.
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
# Okabe and Ito's palette, distinguishable with any colour vision.
_COLOURS = ("#56B4E9", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_NOTE_WIDTH = 56  # Characters in a line.
_LONG_LABEL = 40  # Characters, of which two labels do not fit beside each other.
_PANEL_WIDTH = 4.6  # Inches, narrow enough that text stays legible when a phone shrinks it.


def series_colour(number: int) -> str:
    """Hexadecimal colour of a series by its position; colours repeat after the sixth."""
    return _COLOURS[number % len(_COLOURS)]


_COMPACT: dict[str, Any] = {"fontsize": 8.5, "handlelength": 1.2, "columnspacing": 1.0}
"""Options of the legend of a panel in a wide picture."""
_BELOW = -36.0
"""Place of that legend below the axes in points, which leaves room for ticks and the axis' label."""


@dataclass(frozen=True)
class Drawing:
    """A rendered figure."""

    name: str
    """File name without suffix."""
    title: str
    svg: str
    png: bytes | None = None
    """PNG version, for wide pictures only: it takes as long to draw as the SVG, which is what pages use."""

    def save(self, folder: Path) -> None:
        """Write NAME.svg and, if there is a PNG version, NAME.png."""
        folder.mkdir(parents=True, exist_ok=True)
        # Users choose parts of the name, such as the experiment.
        name = re.sub(r"[^\w .,:()=+@-]", "-", self.name)[:100]
        if name != self.name:
            name += f"-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"
        write_atomically(folder / f"{name}.svg", self.svg)
        if self.png is not None:
            write_atomically(folder / f"{name}.png", self.png)

    def inline(self, scope: str) -> str:
        """SVG as an HTML element in the page's text colour, without a background; ids are prefixed with ``scope``."""
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
    """Axes to be drawn, alone for a narrow page or beside others in a wide picture."""

    name: str
    title: str
    draw: Callable[[Axes], None]
    height: float = 3.4
    """Height of the figure in inches; in a wide picture, of its row."""
    note: str = ""
    """Explanation of lines and bands, shown above the legend."""


def draw_panel(panel: Panel) -> Drawing:
    """Draw a figure of one panel with its legend below."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_PANEL_WIDTH, panel.height), layout="constrained")
        axes = figure.subplots()
        _fill(axes, panel)
        _add_legend(figure, axes, panel.note)
        return Drawing(panel.name, panel.title, _as_svg(figure))


def draw_together(name: str, title: str, panels: Sequence[Panel], num_columns: int) -> Drawing:
    """Draw several panels in one wide picture; each has its own legend, below its axes."""
    num_columns = min(num_columns, len(panels))
    num_rows = -(-len(panels) // num_columns)
    with matplotlib.rc_context(_STYLE):
        size = _PANEL_WIDTH * num_columns, num_rows * max(panel.height for panel in panels)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(hspace=0.05, wspace=0.03))
        grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
        for axes, panel in zip(grid, panels, strict=False):
            _fill(axes, panel)
            handles, labels = axes.get_legend_handles_labels()
            if handles:
                columns = 1 if max(map(len, labels)) > _LONG_LABEL else 2
                axes.legend(
                    handles,
                    _wrapped(labels),
                    loc="upper center",
                    bbox_to_anchor=(0.5, 0.0),
                    bbox_transform=offset_copy(axes.transAxes, figure, y=_BELOW, units="points"),
                    ncols=columns,
                    **_COMPACT,
                )
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        width = _NOTE_WIDTH * num_columns
        notes = [textwrap.fill(note, width) for note in dict.fromkeys(panel.note for panel in panels) if note]
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        figure.supxlabel("\n".join(notes), x=0.01, ha="left", fontsize=9.5)
        return Drawing(name, title, _as_svg(figure), _as_png(figure))


def capture(name: str, title: str, plot: Callable[[], object]) -> Drawing:
    """Capture a figure that another library draws with pyplot, without changing the global style."""
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
    # Without a fixed height, matplotlib places the title anew in each pass of the layout, measuring all labels again.
    # Only a power of ten above the vertical axis makes that necessary.
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
        _wrapped(labels),
        loc="outside lower left",
        title=textwrap.fill(note, _NOTE_WIDTH) or None,
        fontsize=10,
        title_fontsize=9.5,
    )
    legend.set_alignment("left")


def _wrapped(labels: Sequence[str]) -> list[str]:
    return [textwrap.fill(label, _NOTE_WIDTH) for label in labels]


def _as_svg(figure: Figure) -> str:
    svg = BytesIO()
    # Lay out once; otherwise saving would do so again, for the SVG and for the PNG.
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
