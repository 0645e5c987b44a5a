"""How methods, cells and metrics are called and coloured: the same words and colours in every figure and table."""

from collections.abc import Iterable
from typing import Any, NamedTuple, cast
from zlib import crc32

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
_OTHERS = ("#AA3377", "#117733", "#882255", "#332288", "#999933", "#44AA99")
"""Of selections that are plug-ins: by name, so that one has the same in every figure."""


def selection_colour(selection: str) -> str:
    """Colour of a choice of prompts, hexadecimal."""
    return names.SELECTIONS.get(selection) or _OTHERS[crc32(selection.encode()) % len(_OTHERS)]


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
    def is_base(self) -> bool:
        """Whether it is a base method's: random prompts, no fusion; a variant of one counts, too."""
        return self.selection == "random" and not self.fusion

    @property
    def is_adagrpo(self) -> bool:
        """Whether it has both parts of AdaGRPO."""
        return self.selection == "curriculum" and self.fusion

    @property
    def label(self) -> str:
        """As in "Flow-GRPO", "Flow-GRPO + AdaGRPO", "Flow-GRPO + curriculum", "Flow-GRPO hardest"; an unknown method
        as the configuration calls it; the fusion weight where it is not 1, the release's, and the variant."""
        name = METHOD_NAMES.get(self.method, self.method)
        if self.is_adagrpo:
            return f"{name} + AdaGRPO{self._rest}"
        part = {"random": "", "curriculum": " + curriculum"}.get(self.selection, f" {self.selection}")
        return name + part + (" + fusion" if self.fusion else "") + self._rest

    @property
    def short(self) -> str:
        """The cell among those of its method, as in "random" or "curriculum + fusion"."""
        return self.selection + (" + fusion" if self.fusion else "") + self._rest

    @property
    def colour(self) -> str:
        """Hexadecimal: the same in every figure, whichever other cells are drawn."""
        return _ADAGRPO_COLOUR if self.is_adagrpo else selection_colour(self.selection)

    @property
    def dash(self) -> str:
        """Line style as matplotlib names it: fusion is dashed, but for AdaGRPO, whose colour says it."""
        return "--" if self.fusion and not self.is_adagrpo else "-"

    @property
    def _rest(self) -> str:
        weight = f", weight {self.fusion_weight:g}" if self.fusion and self.fusion_weight != 1 else ""
        return weight + (f", {self.variant}" if self.variant else "")


BASE, ADAGRPO = Cell("flow_grpo", "random", False, 0.0), Cell("flow_grpo", "curriculum", True, 1.0)
"""Flow-GRPO and Flow-GRPO + AdaGRPO, with the release's settings."""
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

    def order(item: tuple[Cell, pd.DataFrame]) -> tuple[Any, ...]:
        cell = item[0]
        position = methods.index(cell.method) if cell.method in methods else len(methods)
        rank = 0 if cell.is_base else 1 if cell.is_adagrpo else 2
        return position, cell.method, bool(cell.variant), rank, _position(cell.selection), *cell[2:]

    return sorted(cells, key=order)
