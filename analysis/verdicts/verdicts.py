"""The study's runs against the protocol: each claim with its difference, interval and verdict, and its runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.cells.equal_cost import equal_cost_pair
from analysis.cells.labels import METHOD_NAMES, Cell
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
from analysis.statistics import Paired, paired_summary
from analysis.verdicts.exploratory import questions
from analysis.verdicts.stability import roughness_pair

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
    paired: Paired
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


class _Pairs(NamedTuple):
    """Pairs of finished runs that count for a claim."""

    seeds: Sequence[int]
    pair: Pair
    runs: pd.DataFrame
    """Rows of ``summary``."""

    @property
    def judged(self) -> Pair | None:
        """None below two seeds."""
        return self.pair if len(self.seeds) > 1 else None


_PairOf = Callable[..., tuple[list[int], Pair]]
"""Of a study and two cells, among some seeds."""


def judge_claims(studies: Sequence[Study]) -> list[Compared]:
    """All claims on a report's studies, primary ones first; those of other experiments' runs have no runs."""
    of_reward = {study.reward: study for study in studies if study.experiment == EXPERIMENT}

    def found(claim: Claim, metric: str, split: str) -> _Pairs:
        return _find(of_reward, claim, lambda study, *cells, among: study.pair(*cells, metric, split, among))

    on_test, on_validation = ([found(claim, METRIC, split) for claim in PRIMARY] for split in ("test", "validation"))
    families = [judge_family([one.judged for one in of_split]) for of_split in (on_test, on_validation)]
    compared = [
        _compared(PRIMARY_FAMILY, claim, METRIC, pairs, *judgements)
        for claim, pairs, *judgements in zip(PRIMARY, on_test, *families, strict=True)
    ]
    for group, claim, metric in questions():
        test, is_own = found(claim, metric, "test"), metric == METRIC
        validation = judge_alone(found(claim, metric, "validation").judged) if is_own else None
        judgement = judge_alone(test.judged, MARGIN if is_own else None)
        compared.append(_compared(group, claim, metric, test, judgement, validation))
    return [*compared, *_of_curves(of_reward)]


def _of_curves(of_reward: Mapping[str, Study]) -> Iterator[Compared]:
    """What is read off the curves of base and + AdaGRPO: values at equal cost, and which is smoother."""

    def asked(family: str, claim: Claim, measure: str, pair_of: _PairOf, margin: float | None) -> Compared:
        pairs = _find(of_reward, claim, pair_of)
        return _compared(family, claim, measure, pairs, judge_alone(pairs.judged, margin), None)

    for claim in (claim for claim in PRIMARY if claim.name in METHOD_NAMES):
        for axis in AXES:
            statement = claim.statement.replace(" beats ", " at equal cost beats ")
            at_cost = claim._replace(name=f"{claim.name} by {axis.name}", statement=statement)
            pair_of = partial(equal_cost_pair, axis=axis.name)
            yield asked("equal compute", at_cost, f"validation reward at equal {axis.words}", pair_of, MARGIN)
        statement = claim.statement.replace(" beats ", " has smoother curves than ")
        smoother = claim._replace(name=f"smooth-{claim.name}", statement=statement)
        yield asked("stability", smoother, "roughness of the base less its own", _less_rough, None)


def _less_rough(study: Study, treatment: Cell, control: Cell, among: Sequence[int]) -> tuple[list[int], Pair]:
    return roughness_pair(study, control, treatment, among)


def _find(of_reward: Mapping[str, Study], claim: Claim, pair_of: _PairOf) -> _Pairs:
    study = of_reward.get(claim.control.reward)
    cells = dict(study.cells) if study else {}
    arms = cell_of(claim.treatment), cell_of(claim.control)
    if study is None or not set(arms) <= set(cells):
        return _Pairs([], Pair(np.empty(0), np.empty(0)), pd.DataFrame(columns=["run_id", "seed", "processor"]))
    seeds, pair = pair_of(study, *arms, among=STUDY_SEEDS[: claim.seeds])
    rows = pd.concat([cells[arm] for arm in arms])
    return _Pairs(seeds, pair, rows[rows["seed"].isin(seeds) & rows["run_id"].isin(study.finished)])


def _compared(
    family: str, claim: Claim, metric: str, pairs: _Pairs, test: Judgement, validation: Judgement | None
) -> Compared:
    """A claim as it is judged with so many pairs."""
    seeds, pair, runs = pairs
    counts = len(seeds), claim.seeds
    return Compared(
        family,
        claim,
        metric,
        seeds=len(seeds),
        paired=paired_summary(*pair),
        judgement=settle(test, *counts),
        validation=validation and settle(validation, *counts),
        mixed=int((runs.groupby("seed")["processor"].nunique() > 1).sum()),
        run_ids=tuple(sorted(set(runs["run_id"]))),
    )
