"""The figures of a study, as narrow panels for a page and as wide pictures."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from analysis.cells.parallel import side_by_side
from analysis.cells.study import Study
from analysis.figures import cells, chosen, curves, selection
from analysis.figures.drawing import Drawing, Panel, draw_panel, draw_together


class Group(NamedTuple):
    """Panels that answer one question."""

    panels: Sequence[Drawing]
    """One a method, and the paper's; narrow."""
    picture: Drawing | None = None
    """All of them side by side."""

    @property
    def drawings(self) -> list[Drawing]:
        """Everything that is to become a file."""
        return [*self.panels, *([self.picture] if self.picture else [])]


class StudyFigures(NamedTuple):
    """What a report shows of a study; a group without data is empty."""

    main: Group
    """The paper's figure: base against + AdaGRPO for each method, and the published curve."""
    selection: Group
    """Gain by prompt selection, and the paper's."""
    cells: Group
    """Every cell of the grid with every seed."""
    variants: Group
    """The same of cells with other settings, beside those that they vary."""
    costs: Group
    """Base against + AdaGRPO by what was spent, with bases that cost as much."""
    stability: Group
    """Signs of hacking and collapse over training, base against + AdaGRPO."""
    curves: Group
    """Further curves: by an unseen judge, and of all selections."""
    published: Group
    """The paper's other training curves."""
    chosen: Group
    """How hard the prompts are that each selection trains on, over training."""

    @property
    def drawings(self) -> list[Drawing]:
        """Everything that is to become a file."""
        return [drawing for group in self for drawing in group.drawings]


def draw_study(study: Study) -> StudyFigures:
    """Draw all figures of a study."""
    reward, *further = curves.quantities(study)
    pairs, selections = curves.pair_panels(study, reward), curves.cell_panels(study, reward)
    published = {panel.name: panel for panel in curves.paper_panels()}
    beside = published.pop("curves-paper-hpsv3")
    # Without a pair to compare, the cells that are there are the main picture.
    main = [*pairs, beside] if pairs else selections
    more, of_all = [], list(selections) if pairs else []
    by_cost = curves.cost_quantities(study)
    for quantity in further:
        compared = curves.pair_panels(study, quantity)
        more += compared
        # Of a judge the main comparison is enough.
        if not compared:
            of_all += curves.cell_panels(study, quantity)
    of_all += curves.cell_panels(study, by_cost[0])
    costs = [panel for quantity in by_cost for panel in curves.cost_panels(study, quantity)]
    strategies = selection.selection_panels(study)
    beside_paper = [*strategies, selection.paper_panel()] if strategies else []
    sketches = {
        "main": _with_picture(study, "main", "Validation reward during training", main, num_columns=2),
        "selection": _with_picture(study, "selection", "Test reward by prompt selection", beside_paper, num_columns=2),
        "cells": _with_picture(study, "all-cells", "All cells, every seed", cells.cell_panels(study), num_columns=3),
        "variants": _with_picture(
            study, "variants", "Other settings, every seed", cells.variant_panels(study), num_columns=3
        ),
        "costs": _Sketch(costs),
        "stability": _Sketch([panel for q in curves.signs(study) for panel in curves.pair_panels(study, q)]),
        "curves": _Sketch([*more, *of_all]),
        "published": _Sketch(list(published.values()) if pairs else []),
        "chosen": _Sketch(chosen.chosen_panels(study)),
    }
    return StudyFigures(**_drawn(sketches))


class _Sketch(NamedTuple):
    """A group to be drawn."""

    panels: Sequence[Panel]
    picture: Callable[[], Drawing] | None = None


def _with_picture(study: Study, name: str, title: str, panels: Sequence[Panel], num_columns: int) -> _Sketch:
    picture = partial(draw_together, f"{study.prefix}{name}", title, panels, num_columns)
    return _Sketch(panels, picture if panels else None)


def _drawn(sketches: Mapping[str, _Sketch]) -> dict[str, Group]:
    jobs: list[Callable[[], Drawing]] = []
    for sketch in sketches.values():
        jobs += [partial(draw_panel, panel) for panel in sketch.panels]
        jobs += [sketch.picture] if sketch.picture else []
    drawn = iter(side_by_side(lambda number: jobs[number](), range(len(jobs))))
    return {
        name: Group([next(drawn) for _ in sketch.panels], next(drawn) if sketch.picture else None)
        for name, sketch in sketches.items()
    }
