"""The study's runs against the protocol: each claim with its difference, interval and verdict, and its runs."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.cells.equal_cost import equal_cost_pair
from analysis.cells.labels import Cell
from analysis.cells.spending import AXES
from analysis.cells.study import Study
from analysis.claims import (
    EXPERIMENT,
    MARGIN,
    METRIC,
    PRIMARY,
    STUDY_SEEDS,
    Arm,
    Claim,
    Judgement,
    Pair,
    Verdict,
    judge_alone,
    judge_family,
    settle,
)
from analysis.verdicts.exploratory import questions
from analysis.verdicts.stability import roughness_pair
from harness.names import METHODS

PRIMARY_FAMILY = "primary"


@dataclass(frozen=True)
class Compared:
    """A claim, and what the runs say of it."""

    family: str
    """``PRIMARY_FAMILY``, or what it belongs to among the exploratory ones."""
    claim: Claim
    metric: str
    seeds: int
    """Pairs that are finished, of ``claim.seeds``."""
    difference: float
    """Mean over seeds; NaN without a pair."""
    sd: float
    """Of the paired differences; NaN below two pairs, like the next two."""
    correlation: float
    detectable: float
    """Smallest true difference that so many pairs find with probability .8, at level .05."""
    judgement: Judgement
    """Of the test words."""
    validation: Judgement | None
    """Of the validation words; None for what is not measured by the reward that was trained on."""
    mixed: int
    """Pairs of runs that two models of processor made, between which rewards differ as well."""
    run_ids: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """Of the test words."""
        return self.judgement.verdict


def cell_of(arm: Arm) -> Cell:
    """The cell that a protocol's arm means."""
    return Cell(arm.method, arm.selection, arm.fusion_weight > 0, arm.fusion_weight, arm.variant)


def judge_claims(studies: Sequence[Study]) -> list[Compared]:
    """All claims, primary ones first; those of other experiments' runs have no runs.

    Args:
        studies: of a report.
    """
    of_reward = {study.reward: study for study in studies if study.experiment == EXPERIMENT}
    primary = [_compare(of_reward.get(c.control.reward), PRIMARY_FAMILY, c, METRIC) for c in PRIMARY]
    families = [judge_family([pairs[i] for _, pairs in primary]) for i in (0, 1)]
    compared = [_judged(one, test, validation) for (one, _), test, validation in zip(primary, *families, strict=True)]
    for question in questions():
        study = of_reward.get(question.claim.control.reward)
        one, (test, validation) = _compare(study, question.group, question.claim, question.metric)
        if question.metric == METRIC:
            compared.append(_judged(one, judge_alone(test), judge_alone(validation)))
        else:
            compared.append(_judged(one, judge_alone(test, margin=None), None))
    return [*compared, *_of_curves(of_reward)]


_OF_METHODS = tuple(METHODS)
"""Primary claims that say of a method that + AdaGRPO beats it."""


def _of_curves(of_reward: dict[str, Study]) -> Iterator[Compared]:
    """What is read off the curves of base and + AdaGRPO: values at equal cost, and which is smoother."""
    for claim in (claim for claim in PRIMARY if claim.name in _OF_METHODS):
        study = of_reward.get(claim.control.reward)
        for axis in AXES:
            statement = claim.statement.replace(" beats ", " at equal cost beats ")
            at_cost = claim._replace(name=f"{claim.name} by {axis.name}", statement=statement)
            measure = f"validation reward at equal {axis.words}"
            yield _curve_claim(
                study, "equal compute", at_cost, measure, partial(equal_cost_pair, axis=axis.name), MARGIN
            )
        statement = claim.statement.replace(" beats ", " has smoother curves than ")
        smoother = claim._replace(name=f"smooth-{claim.name}", statement=statement)
        yield _curve_claim(study, "stability", smoother, "roughness of the base less its own", _less_rough, None)


def _less_rough(study: Study, treatment: Cell, control: Cell, among: Collection[int]) -> tuple[list[int], Pair]:
    return roughness_pair(study, control, treatment, among)


def _curve_claim(
    study: Study | None,
    family: str,
    claim: Claim,
    measure: str,
    pair_of: Callable[..., tuple[list[int], Pair]],
    margin: float | None,
) -> Compared:
    cells = cell_of(claim.treatment), cell_of(claim.control)
    if study is None or not set(cells) <= {cell for cell, _ in study.cells}:
        return _judged(_without_runs(family, claim, measure), judge_alone(None), None)
    seeds, pair = pair_of(study, *cells, among=_planned(claim))
    one = _described(family, claim, measure, seeds, pair, _runs(study, cells, seeds))
    return _judged(one, judge_alone(pair if len(seeds) > 1 else None, margin), None)


def _planned(claim: Claim) -> tuple[int, ...]:
    return STUDY_SEEDS[: claim.seeds]


def _compare(
    study: Study | None, family: str, claim: Claim, metric: str
) -> tuple[Compared, tuple[Pair | None, Pair | None]]:
    """A claim's numbers, still to be judged, and its pairs on test and on validation words; None below two seeds."""
    treatment, control = cell_of(claim.treatment), cell_of(claim.control)
    if study is None or not {treatment, control} <= {cell for cell, _ in study.cells}:
        return _without_runs(family, claim, metric), (None, None)
    seeds, test = study.pair(treatment, control, metric, "test", _planned(claim))
    also, validation = study.pair(treatment, control, metric, "validation", _planned(claim))
    one = _described(family, claim, metric, seeds, test, _runs(study, (treatment, control), seeds))
    return one, (test if len(seeds) > 1 else None, validation if len(also) > 1 else None)


def _without_runs(family: str, claim: Claim, metric: str) -> Compared:
    empty = np.empty(0)
    return _described(family, claim, metric, [], Pair(empty, empty), None)


def _described(
    family: str, claim: Claim, metric: str, seeds: Sequence[int], pair: Pair, runs: pd.DataFrame | None
) -> Compared:
    ours, theirs = (side if side.ndim == 1 else side.mean(axis=1) for side in pair)
    several = len(seeds) > 1
    sd = float((ours - theirs).std(ddof=1)) if several else math.nan
    return Compared(
        family,
        claim,
        metric,
        seeds=len(seeds),
        difference=float((ours - theirs).mean()) if seeds else math.nan,
        sd=sd,
        correlation=statistics.paired_correlation(ours, theirs),
        detectable=statistics.minimum_detectable_effect(sd, len(seeds)) if several else math.nan,
        judgement=Judgement("no runs yet", None, math.nan, math.nan),
        validation=None,
        mixed=0 if runs is None else int((runs.groupby("seed")["processor"].nunique() > 1).sum()),
        run_ids=() if runs is None else tuple(sorted(set(runs["run_id"]))),
    )


def _judged(one: Compared, test: Judgement, validation: Judgement | None) -> Compared:
    pairs = one.seeds, one.claim.seeds
    return replace(one, judgement=settle(test, *pairs), validation=validation and settle(validation, *pairs))


def _runs(study: Study, cells: Sequence[Cell], seeds: Sequence[int]) -> pd.DataFrame:
    """Rows of ``summary``: finished runs of cells and seeds."""
    rows = pd.concat([dict(study.cells)[cell] for cell in cells])
    return rows[rows["seed"].isin(seeds) & rows["run_id"].isin(study.finished)]
