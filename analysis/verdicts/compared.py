"""Comparison of any cells with one of them by the rule of a grid: at the end of training, and at equal compute.

Endpoint, pairs, margin and verdicts are those of ``analysis.verdicts.protocol`` and ``analysis.decisions``; margins are
a share of the control's gain. At equal compute the reward on validation words is compared at the point where the more
expensive cell has spent the other's total of network forwards, a trained sample counting three.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from analysis.cells.equal_cost import at_equal_compute, mean_compute
from analysis.cells.labels import Cell
from analysis.cells.logs import TRAINING_REWARD
from analysis.cells.settings import flatten
from analysis.cells.study import Study
from analysis.cells.variants import SHORT
from analysis.decisions import LEVEL, Question, contrast, decide
from analysis.runs.sources import was_under_other_rules
from analysis.statistics import Values
from analysis.verdicts.conclusions import Conclusions, plan_rows
from analysis.verdicts.protocol import MARGIN_SHARE, MIN_PAIRS, Claim, Judged, Side
from harness.foundation.errors import ConfigError
from harness.foundation.files import read_text

AT_END, EQUAL_COMPUTE = "At the end of training", "At equal compute"
DEFINITION = "comparison.json"
"""File beside the shards of a comparison: each cell's run ids, the first cell's being those of the control."""


def read_definition(runs: Path) -> list[list[str]] | None:
    """Each compared cell's run ids; None if a folder of runs is not that of a comparison.

    Raises:
        ConfigError: its file is damaged.
    """
    path = runs / DEFINITION
    if not path.is_file():
        return None
    try:
        return [[str(run) for run in cell] for cell in json.loads(read_text(path))]
    except (ValueError, TypeError):
        raise ConfigError(f"{path}: is no list of cells' run ids; repeat adagrpo compare, which writes it") from None


def compare_runs(study: Study, runs: Sequence[Sequence[str]]) -> Conclusions:
    """Compare the cells of these run ids with the first of them; see ``compare``.

    Raises:
        ConfigError: there are no runs of two cells.
    """
    # Later comparisons may have left runs of the same cells in the folder.
    study = replace(study, summary=study.summary[study.summary["run_id"].isin({run for ids in runs for run in ids})])
    cells = [_cell(study, set(ids)) for ids in runs]
    there = [cell for cell in cells[1:] if cell is not None]
    if not cells or cells[0] is None or not there:
        raise ConfigError("there are no runs of two cells to compare")
    return compare(study, cells[0], there, len(runs[0]))


def _cell(study: Study, ids: set[str]) -> Cell | None:
    own = study.summary[study.summary["run_id"].isin(ids)]
    return None if own.empty else Cell(*own.iloc[0][list(Cell._fields)])


def compare(study: Study, control: Cell, treatments: Sequence[Cell], planned: int) -> Conclusions:
    """Judge whether each treatment beats the control, in two families of claims.

    Args:
        study: study with the runs of these cells.
        control: cell that all others are compared with.
        treatments: at least one cell.
        planned: planned pairs of each claim.
    """
    split = study.endpoint
    final = [_differences(study, treatment, control, split) for treatment in treatments]
    spent = [_at_equal_compute(study, treatment, control) for treatment in treatments]
    families = {
        AT_END: _judge(control, treatments, final, _gain(study, control, split), planned),
        EQUAL_COMPUTE: _judge(control, treatments, spent, _gain_on_validation(study, control), planned),
    }
    environments = study.environments
    others = sum(map(was_under_other_rules, environments))
    opening = (
        f"Each claim compares two cells; “the base” is {control.label}. At equal compute the reward is that on "
        "validation words where the dearer cell has spent as many network forwards as the other in all."
        f"{_unnamed(study, control, treatments)}"
    )
    plans = plan_rows(study, families[AT_END])
    words = {AT_END: split, EQUAL_COMPUTE: "validation"}
    return Conclusions(families, len(environments), others, plans, (), opening, words)


def _unnamed(study: Study, control: Cell, treatments: Sequence[Cell]) -> str:
    """Sentences on what treatments of other methods differ in: a variant's name compares runs of one method alone."""
    members, said = dict(study.cells), []
    settings = {cell: dict(flatten(members[cell].iloc[0]["config"])) for cell in (control, *treatments)}
    for cell in (one for one in treatments if one.method != control.method):
        own, other = settings[cell], settings[control]
        keys = [key for key in (*SHORT, "iterations") if key != "method.eta"]  # each method has its own
        differing = [
            f"{SHORT.get(k, k)} {own.get(k)} instead of {other.get(k)}" for k in keys if own.get(k) != other.get(k)
        ]
        said += [f" {cell.label} has {', '.join(differing)}."] if differing else []
    return "".join(said)


def _judge(
    control: Cell, treatments: Sequence[Cell], differences: Sequence[Values], gain: float, planned: int
) -> list[Judged]:
    margin = MARGIN_SHARE * gain if gain > 0 else 0.0  # if nothing was learned, no difference is too small
    asked = [
        Question(contrast([values]) if len(values) >= max(planned, MIN_PAIRS) else None, margin, None)
        for values in differences
    ]
    return [
        Judged(_claim(treatment, control), [values], planned, gain, question, decision, LEVEL, len(asked))
        for treatment, values, question, decision in zip(treatments, differences, asked, decide(asked), strict=True)
    ]


def _claim(treatment: Cell, control: Cell) -> Claim:
    sides = tuple(Side(cell.selection, cell.fusion, cell.fusion_weight, cell.variant) for cell in (treatment, control))
    statement = f"{treatment.label} beats {control.label}"
    return Claim(treatment.label, statement, ((sides[0], sides[1]),), (control.method,), None)


def _differences(study: Study, treatment: Cell, control: Cell, split: str) -> Values:
    """Differences by seed, for seeds that both have finished on one model of processor."""
    ours, theirs = (study.values(cell, TRAINING_REWARD, split) for cell in (treatment, control))
    seeds = study.comparable(treatment, control).intersection(ours.index, theirs.index)
    return np.array([ours[seed] - theirs[seed] for seed in sorted(seeds)])


def _at_equal_compute(study: Study, treatment: Cell, control: Cell) -> Values:
    cost = {cell: one for cell, one in mean_compute(study).items() if cell in (treatment, control)}
    if len(cost) < 2:
        return np.empty(0)
    is_dearer = cost[treatment] >= cost[control]
    dearer, cheaper = (treatment, control) if is_dearer else (control, treatment)
    found = at_equal_compute(study, dearer, cheaper, study.comparable(treatment, control))
    return np.array(found) * (1 if is_dearer else -1)


def _gain(study: Study, cell: Cell, split: str) -> float:
    """Gain of a cell over the untrained model; NaN if that was not measured."""
    return float(study.values(cell, TRAINING_REWARD, split).mean()) - study.start(cell, split)


def _gain_on_validation(study: Study, cell: Cell) -> float:
    """Gain from the first validation to the last, since values at equal compute are single validations."""
    means = study.validations(cell).groupby("iteration")["value"].mean()
    return float(means.iloc[-1] - means.iloc[0]) if len(means) else math.nan
