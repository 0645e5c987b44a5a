"""Figure of a family of claims: each difference with its bounds, coloured by verdict."""

import math
import textwrap
from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes

from analysis.decisions import Outcome
from analysis.figures.drawing import GREY, INK, Panel
from analysis.verdicts.protocol import MARGIN_SHARE, Judged

_LABEL_WIDTH = 30  # Characters in a line beside the axis.
_TITLE_WIDTH = 24  # Characters in a line of the title; the labels leave it little room.
_COLOURS: dict[Outcome, str] = {
    "supported": "#009E73",
    "opposite": "#D55E00",
    "equivalent": "#0072B2",
    "smaller than the paper's": "#56B4E9",
    "undecided": GREY,
}


def claims_panel(name: str, title: str, family: Sequence[Judged], words: str) -> Panel:
    """Make a panel with a row per claim; a claim without a contrast only shows how many pairs are finished.

    Args:
        name: file name without suffix.
        title: title of the panel.
        family: at least one claim.
        words: split of the words whose rewards are compared, as text.
    """
    note = f"Line: one-sided 95 % bounds; shaded: ±{MARGIN_SHARE:.0%} of the base's gain; tick: the paper's share of it"
    labels, rival = _labels(family)
    height = 1.9 + (0.52 if any("\n" in label for label in labels) else 0.3) * len(family)
    of = f"Difference of reward\non {words} words"
    of += f",\n{textwrap.fill(f'beside {rival}', _TITLE_WIDTH)}" if rival else ""
    draw = partial(_draw, family=family, labels=labels, of=of)
    return Panel(name, textwrap.fill(title, _TITLE_WIDTH), draw, height, note)


def _draw(axes: Axes, family: Sequence[Judged], labels: Sequence[str], of: str) -> None:
    axes.axvline(0, color=INK, linewidth=0.8)
    named: set[str] = set()
    for place, one in enumerate(family):
        if math.isfinite(one.margin):
            axes.fill_betweenx([place - 0.5, place + 0.5], -one.margin, one.margin, color=GREY, alpha=0.18, linewidth=0)
        if one.contrast is None:
            said = f"{one.pairs} of {one.planned * len(one.strata)} pairs"
            axes.annotate(said, (0, place), (6, 0), textcoords="offset points", va="center", fontsize=9, color=INK)
            continue
        colour = _COLOURS[one.verdict]
        axes.hlines(place, *one.contrast.bounds(), color=colour, linewidth=3)
        label = one.verdict if one.verdict not in named else None
        named.add(one.verdict)
        axes.plot(one.contrast.mean, place, "o", color=colour, markersize=7, label=label)
        if one.paper is not None:
            axes.plot(one.paper, place, "|", color=INK, markersize=12, markeredgewidth=1.6)
    axes.set_yticks(range(len(family)), labels, fontsize=9)
    axes.set_ylim(len(family) - 0.5, -0.5)
    axes.set_xlabel(of)
    axes.locator_params(axis="x", nbins=4)  # numbers of many digits, and long labels, leave little room
    axes.grid(visible=False, axis="y")


def _labels(family: Sequence[Judged]) -> tuple[list[str], str]:
    """Labels of the claims, and the rival that all of them name, which labels leave out; "" if rivals differ."""
    texts, rival = [one.claim.statement for one in family], ""
    if len({text.partition(" beats ")[2] for text in texts}) == 1 < len(texts):
        rival = texts[0].partition(" beats ")[2]
        texts = [text.partition(" beats ")[0] for text in texts]
    return [textwrap.fill(text, _LABEL_WIDTH, break_on_hyphens=False) for text in texts], rival
