"""How methods, cells and metrics are called and coloured: the same words and colours in every figure and table."""

from collections.abc import Iterable
from typing import NamedTuple, cast

import pandas as pd

from harness.foundation import names
from harness.foundation.names import METHODS, REWARDS

METHOD_NAMES = METHODS
"""By kernel."""
SELECTIONS = names.PAPER_SELECTIONS
"""In the paper's order. A hue is a selection; + AdaGRPO has one of its own."""
_PAPERS_JUDGES = {
    "ur_v2_alignment": "UR-v2 alignment",
    "ur_v2_coherence": "UR-v2 coherence",
    "ur_v2_style": "UR-v2 style",
    "image_reward": "ImageReward",
    "ur_v1": "UR-v1",
}
"""Columns of the paper's main table that are no judge of this project."""
_ADAGRPO_COLOUR = "#0072B2"
_OTHER_COLOUR = "#888888"


def is_base(selection: str, fusion: bool) -> bool:
    """Whether a cell is a base method: random prompts, no fusion."""
    return selection == "random" and not fusion


def is_adagrpo(selection: str, fusion: bool) -> bool:
    """Whether a cell has both parts of AdaGRPO."""
    return selection == "curriculum" and fusion


def cell_label(method: str, selection: str, fusion: bool) -> str:
    """Name of a cell of the grid: "Flow-GRPO", "Flow-GRPO + AdaGRPO", "Flow-GRPO + curriculum", "Flow-GRPO hardest".

    An unknown method is shown as it is called in the configuration.
    """
    name = METHOD_NAMES.get(method, method)
    if is_adagrpo(selection, fusion):
        return f"{name} + AdaGRPO"
    if selection == "curriculum":
        name += " + curriculum"
    elif selection != "random":
        name += f" {selection}"
    return f"{name} + fusion" if fusion else name


def cell_colour(selection: str, fusion: bool) -> str:
    """Colour of a cell, hexadecimal: the same in every figure, whichever other cells are drawn."""
    if is_adagrpo(selection, fusion):
        return _ADAGRPO_COLOUR
    return names.SELECTIONS[selection].colour if selection in names.SELECTIONS else _OTHER_COLOUR


def cell_dash(selection: str, fusion: bool) -> str:
    """Line style of a cell, as matplotlib names it: fusion is dashed, but for AdaGRPO, whose colour says it."""
    return "--" if fusion and not is_adagrpo(selection, fusion) else "-"


def judge_name(judge: str) -> str:
    """A judge as tables call it, as in "HPS-v2"; UR is UnifiedReward."""
    if judge in REWARDS:
        return REWARDS[judge].label
    return _PAPERS_JUDGES.get(judge, judge[:1].upper() + judge[1:])


class Cell(NamedTuple):
    """A cell of the grid: what the runs pooled over seeds have in common."""

    method: str
    selection: str
    fusion: bool
    fusion_weight: float
    variant: str = ""
    """What else its runs have of their own, see ``analysis.cells.variants``."""

    @property
    def label(self) -> str:
        """``cell_label``, with the fusion weight where it is not 1, the release's, and the variant."""
        return cell_label(self.method, self.selection, self.fusion) + self._rest

    @property
    def short(self) -> str:
        """The cell among those of its method, as in "random" or "curriculum + fusion"."""
        return self.selection + (" + fusion" if self.fusion else "") + self._rest

    @property
    def colour(self) -> str:
        """See ``cell_colour``."""
        return cell_colour(self.selection, self.fusion)

    @property
    def _rest(self) -> str:
        weight = f", weight {self.fusion_weight:g}" if self.fusion and self.fusion_weight != 1 else ""
        return weight + (f", {self.variant}" if self.variant else "")


PAPER_GRID = tuple(
    Cell(method, selection, fusion, float(fusion))
    for method in METHOD_NAMES
    for selection in SELECTIONS
    for fusion in (False, True)
)
"""Five selections, fusion off and on, three methods."""


def _position(selection: str) -> int:
    return SELECTIONS.index(selection) if selection in SELECTIONS else len(SELECTIONS)


def selection_order(cell: Cell) -> tuple[int, str, bool, float, str]:
    """Sort key of a method's cells: by selection in the paper's order, without fusion before with it."""
    return _position(cell.selection), *cell[1:]


def in_papers_order(selections: Iterable[str]) -> list[str]:
    """Selections, those of the paper first and in its order, others by name."""
    return sorted(selections, key=lambda name: (_position(name), name))


def split_cells(rows: pd.DataFrame) -> list[tuple[Cell, pd.DataFrame]]:
    """Rows of each cell of a frame that has ``Cell``'s fields as columns.

    Ordered by method; without a variant first; then the base, + AdaGRPO, and the other selections without and with
    fusion.
    """
    cells = [
        (Cell(str(method), str(selection), bool(fusion), cast(float, weight), str(variant)), of_cell)
        for (method, selection, fusion, weight, variant), of_cell in rows.groupby(list(Cell._fields))
    ]
    methods = list(METHOD_NAMES)

    def order(item: tuple[Cell, pd.DataFrame]) -> tuple[int, str, bool, int, int, bool, float, str]:
        method, selection, fusion, weight, variant = item[0]
        position = methods.index(method) if method in methods else len(methods)
        rank = 0 if is_base(selection, fusion) else 1 if is_adagrpo(selection, fusion) else 2
        return position, method, bool(variant), rank, _position(selection), fusion, weight, variant

    return sorted(cells, key=order)
