"""Figures of a study, as narrow panels for a page and as wide pictures."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

from analysis.cells.parallel import side_by_side
from analysis.cells.study import Study
from analysis.figures import cells, chosen, curves, selection
from analysis.figures.drawing import Drawing, Panel, draw_panel, draw_together

_PICTURES = {
    "main": ("main", "Validation reward during training", 2),
    "selection": ("selection", "{} reward by prompt selection", 2),
    "cells": ("all-cells", "All cells, every seed", 3),
    "variants": ("variants", "Other settings, every seed", 3),
}
"""File, title and columns of the wide pictures, by group; {} in a title stands for the split of the final results."""


class Group(NamedTuple):
    """Panels that answer one question."""

    panels: Sequence[Drawing] = ()
    """Narrow panels, one per method, and the paper's."""
    picture: Drawing | None = None
    """All panels side by side."""

    @property
    def drawings(self) -> list[Drawing]:
        """All drawings that are saved as files."""
        return [*self.panels, *([self.picture] if self.picture else [])]


StudyFigures = Mapping[str, Group]
"""The figures in a report on a study, by group name; a group without data is empty or missing."""


def draw_study(study: Study, are_compared: bool = False) -> StudyFigures:
    """Draw all figures of a study.

    Args:
        study: the study, with its runs.
        are_compared: whether its cells come from ``adagrpo compare``; main then shows them all in one panel.

    Returns:
        main: the paper's figure, base against + AdaGRPO for each method, and the published curve; selection: gain by
        selection rule, and the paper's; cells: every cell of the grid with every seed; variants: the same for cells
        with other settings, beside those that they vary; costs: base against + AdaGRPO by cost, with bases that cost
        as much; stability: signs of hacking and collapse during training; curves: an unseen judge, and all selections;
        published: the paper's other training curves; chosen: difficulty of the prompts that each selection trains on.
    """
    reward, *further = curves.quantities(study)
    pairs, selections = curves.pair_panels(study, reward), curves.cell_panels(study, reward)
    published = {panel.name: panel for panel in curves.paper_panels()}
    beside = published.pop("curves-paper-hpsv3")
    by_cost = curves.cost_quantities(study)
    more = [curves.pair_panels(study, quantity) for quantity in further]
    # For a judge the main comparison is enough.
    of_judges = [curves.cell_panels(study, quantity) for quantity, own in zip(further, more, strict=True) if not own]
    of_all = [selections if pairs else [], *of_judges, curves.cell_panels(study, by_cost[0])]
    strategies = selection.selection_panels(study)
    # Without a pair to compare, the main picture shows all cells.
    main = curves.compared_panels(study, reward) if are_compared else [*pairs, beside] if pairs else selections
    panels: dict[str, Sequence[Panel]] = {
        "main": main,
        "selection": [*strategies, selection.paper_panel()] if strategies else [],
        "cells": cells.cell_panels(study),
        "variants": cells.variant_panels(study),
        "costs": [panel for quantity in by_cost for panel in curves.pair_panels(study, quantity)],
        "stability": [panel for q in curves.signs(study) for panel in curves.pair_panels(study, q)],
        "curves": list(chain(*more, *of_all)),
        "published": list(published.values()) if pairs else [],
        "chosen": chosen.chosen_panels(study),
    }
    jobs = [partial(draw_panel, panel) for of_group in panels.values() for panel in of_group]
    wide = {name: _PICTURES[name] for name in _PICTURES if panels[name]}
    pictures = [
        partial(draw_together, f"{study.prefix}{file}", title.format(study.endpoint.capitalize()), panels[name], n)
        for name, (file, title, n) in wide.items()
    ]
    drawn = iter(side_by_side(lambda number: [*jobs, *pictures][number](), range(len(jobs) + len(pictures))))
    found = {name: [next(drawn) for _ in of_group] for name, of_group in panels.items()}
    beside_each_other = {name: next(drawn) for name in wide}
    return {name: Group(of_group, beside_each_other.get(name)) for name, of_group in found.items()}
