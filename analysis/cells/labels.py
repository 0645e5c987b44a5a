"""Names and colours of methods, cells and metrics, the same in every figure and table."""

from collections.abc import Iterable
from typing import Any, NamedTuple, cast
from zlib import crc32

import pandas as pd

from harness.foundation import names
from harness.foundation.names import METHODS, REWARDS

METHOD_NAMES = METHODS
"""Display names of methods by kernel."""
SELECTIONS = names.PAPER_SELECTIONS
"""The paper's selection rules in its order. Each has a hue of its own; so has + AdaGRPO."""
_PAPERS_JUDGES = {
    "ur_v2_alignment": "UR-v2 alignment",
    "ur_v2_coherence": "UR-v2 coherence",
    "ur_v2_style": "UR-v2 style",
    "image_reward": "ImageReward",
    "ur_v1": "UR-v1",
}
"""Display names of columns of the paper's main table that are not judges of this project."""
_ADAGRPO_COLOUR = "#0072B2"
_OTHERS = ("#AA3377", "#117733", "#882255", "#332288", "#999933", "#44AA99")
"""Colours of selections that are plug-ins, assigned by name so that each keeps its colour in every figure."""


def selection_colour(selection: str) -> str:
    """Hexadecimal colour of a selection rule."""
    return names.SELECTIONS.get(selection) or _OTHERS[crc32(selection.encode()) % len(_OTHERS)]


def judge_name(judge: str) -> str:
    """Name of a judge in tables, such as "HPS-v2"; UR stands for UnifiedReward."""
    if judge in REWARDS:
        return REWARDS[judge].label
    return _PAPERS_JUDGES.get(judge, judge[:1].upper() + judge[1:])


class Cell(NamedTuple):
    """A cell of the grid: the settings that runs pooled over seeds have in common."""

    method: str
    selection: str
    fusion: bool
    fusion_weight: float
    variant: str = ""
    """Further settings in which its runs differ from others, see ``analysis.cells.variants``."""

    @property
    def is_base(self) -> bool:
        """Whether it is a base method: random prompts, no fusion. A variant of a base counts, too."""
        return self.selection == "random" and not self.fusion

    @property
    def is_adagrpo(self) -> bool:
        """Whether it has both parts of AdaGRPO."""
        return self.selection == "curriculum" and self.fusion

    @property
    def label(self) -> str:
        """Full name, such as "Flow-GRPO", "Flow-GRPO + AdaGRPO", "Flow-GRPO + curriculum" or "Flow-GRPO hardest", with
        the variant, and the fusion weight unless it is 1, the release's. An unknown method goes by its kernel."""
        name = METHOD_NAMES.get(self.method, self.method)
        if self.is_adagrpo:
            return f"{name} + AdaGRPO{self._rest}"
        part = {"random": "", "curriculum": " + curriculum"}.get(self.selection, f" {self.selection}")
        return name + part + (" + fusion" if self.fusion else "") + self._rest

    @property
    def short(self) -> str:
        """Name without the method, such as "random" or "curriculum + fusion"."""
        return self.selection + (" + fusion" if self.fusion else "") + self._rest

    @property
    def colour(self) -> str:
        """Hexadecimal colour, the same in every figure, whichever other cells are drawn."""
        return _ADAGRPO_COLOUR if self.is_adagrpo else selection_colour(self.selection)

    @property
    def dash(self) -> str:
        """Line style in matplotlib's notation: dashed with fusion, except for AdaGRPO, which has its own colour."""
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
    """Sort key of a method's cells: by selection in the paper's order, cells without fusion before those with it."""
    return _position(cell.selection), *cell[1:]


def in_papers_order(selections: Iterable[str]) -> list[str]:
    """Sort selections: the paper's first and in its order, then others by name."""
    return sorted(selections, key=lambda name: (_position(name), name))


def split_cells(rows: pd.DataFrame) -> list[tuple[Cell, pd.DataFrame]]:
    """Split a frame that has ``Cell``'s fields as columns into the rows of each cell.

    Cells are ordered by method; those without a variant come first; then the base, + AdaGRPO, and the other selections
    without and with fusion.
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
