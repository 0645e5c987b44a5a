"""What is claimed of the paper's grid, and how its runs are judged: the protocol, fixed before the runs.

A claim compares cells of the grid. A seed's difference is the mean over the claim's comparisons on the same prompts and
noise; each method is a stratum, and methods have seeds of their own, so that strata are independent. (Where methods
share seeds there is one stratum: a seed's mean over methods.) The rule of verdicts is ``analysis.decisions``.

Endpoint: the reward that was trained on, of the trained model, mean over all test words and noises. The words are the
same in every run, so that a verdict is about them; what words and noises add to a run's own noise is in every pair's
difference already. Margins are relative to what the base gains here: the mean over the methods' base cells of endpoint
less the untrained model's value on the same words.

A pair counts if one model of processor made all its runs: a seed is a block that stays on one machine. A claim is
decided once all planned pairs of all its strata are finished. A run that diverged for good leaves its claims
undecided: to drop a pair would favour the setting that diverges. Nothing else is excluded.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import paper
from analysis.cells.labels import METHOD_NAMES, SELECTIONS, Cell
from analysis.cells.logs import TRAINING_REWARD
from analysis.cells.study import Study
from analysis.decisions import (
    LEVEL,
    Contrast,
    Decision,
    Outcome,
    Question,
    contrast,
    decide,
    equivalence_power,
    pairs_needed,
    power,
)
from analysis.statistics import Values

MARGIN_SHARE = 0.10
"""Of the base's gain: a smaller difference is none worth having."""
MIN_PAIRS = 2
"""Of a stratum, below which there is no standard deviation."""


@dataclass(frozen=True)
class Side:
    """A cell of a method's grid."""

    selection: str
    fusion: bool
    fusion_weight: float = 1.0
    variant: str = ""

    def cell(self, method: str) -> Cell:
        """Of a method."""
        return Cell(method, self.selection, self.fusion, self.fusion_weight if self.fusion else 0.0, self.variant)


BASE = Side("random", fusion=False)
ADAGRPO = Side("curriculum", fusion=True)


@dataclass(frozen=True)
class Claim:
    """A treatment beats a control: the mean difference over ``comparisons`` is above 0."""

    name: str
    statement: str
    comparisons: tuple[tuple[Side, Side], ...]
    """Treatment and control; a seed's difference is the mean over them."""
    methods: tuple[str, ...]
    """Strata."""
    paper_share: float | None
    """What the paper reports, as a share of the base's gain; None where it reports no gain."""


def pooled_claims(methods: Sequence[str] = tuple(METHOD_NAMES)) -> list[Claim]:
    """The paper's claims, each over all methods: the family that the default grid decides.

    A choice of prompts is compared with and without fusion, fusion with every choice of prompts: the main effects of a
    factorial design, whose differences are less noisy than those of single cells.
    """
    of_selection = (
        ("curriculum", "curriculum", "random", "Capability-matched prompts beat random prompts"),
        ("medium", "medium", "random", "Prompts of median difficulty beat random prompts"),
        ("hardest", "hardest", "random", "The hardest prompts beat random prompts"),
        ("easiest", "random", "easiest", "Random prompts beat the easiest"),
        ("curriculum-medium", "curriculum", "medium", "Capability-matched prompts beat those of median difficulty"),
    )
    claims = [_selection_claim(methods, *one) for one in of_selection]
    fused = tuple((Side(selection, fusion=True), Side(selection, fusion=False)) for selection in SELECTIONS)
    claims.append(Claim("fusion", "Fused advantages beat local ones", fused, tuple(methods), _share(["fusion"])))
    claims.append(_adagrpo_claim("adagrpo", "+ AdaGRPO beats its base method", methods))
    return claims


def method_claims(methods: Sequence[str] = tuple(METHOD_NAMES)) -> list[Claim]:
    """+ AdaGRPO against its base, method by method: a family of its own beside the pooled one."""
    names = {method: METHOD_NAMES.get(method, method) for method in methods}
    return [_adagrpo_claim(f"adagrpo-{m}", f"{name} + AdaGRPO beats {name}", [m]) for m, name in names.items()]


def _selection_claim(methods: Sequence[str], name: str, better: str, worse: str, statement: str) -> Claim:
    comparisons = tuple((Side(better, fusion), Side(worse, fusion)) for fusion in (False, True))
    return Claim(name, statement, comparisons, tuple(methods), _share([name]))


def _adagrpo_claim(name: str, statement: str, methods: Sequence[str]) -> Claim:
    return Claim(name, statement, ((ADAGRPO, BASE),), tuple(methods), _share(methods))


def _share(claims: Sequence[str]) -> float | None:
    """Mean of the paper's shares of the base's gain; None where it has none."""
    shares = [paper.share_of_base_gain(claim) for claim in claims]
    return None if np.isnan(shares).any() else float(np.mean(shares))


@dataclass(frozen=True)
class Judged:
    """A claim, and what the runs say of it."""

    claim: Claim
    strata: Sequence[Values]
    """Differences, one value a seed."""
    planned: int
    """Pairs of each stratum."""
    gain: float
    """Of the base cells over the untrained model, mean over the claim's methods; NaN where it is not known."""
    question: Question
    decision: Decision
    level: float
    """Of the family's verdicts."""
    family: int
    """Claims in the family."""

    @property
    def verdict(self) -> Outcome:
        """See ``analysis.decisions``."""
        return self.decision.verdict

    @property
    def pairs(self) -> int:
        """Finished, over all strata."""
        return sum(map(len, self.strata))

    @property
    def contrast(self) -> Contrast | None:
        """See ``Question``, like the next two."""
        return self.question.contrast

    @property
    def margin(self) -> float:
        """In units of the reward."""
        return self.question.margin

    @property
    def paper(self) -> float | None:
        """The paper's relative gain in the units of the reward here."""
        return self.question.paper

    @property
    def sd(self) -> float:
        """Of paired differences within strata; NaN where a stratum has fewer than 2."""
        if min(map(len, self.strata)) < MIN_PAIRS:
            return math.nan
        return math.sqrt(float(np.mean([values.var(ddof=1) for values in self.strata])))

    @property
    def power(self) -> float:
        """To find a true difference as large as the margin with all planned pairs; NaN while there is no spread."""
        return power(self.margin, self.sd, self.planned, *self._first_step) if self.sd > 0 else math.nan

    @property
    def equivalence_power(self) -> float:
        """To show equivalence with all planned pairs where there is no difference; NaN while there is no spread."""
        return equivalence_power(self.margin, self.sd, self.planned, *self._first_step) if self.sd > 0 else math.nan

    @property
    def pairs_needed(self) -> int | None:
        """Of each stratum, to find a difference as large as the margin with probability .8; None if that is unknown."""
        return pairs_needed(self.margin, self.sd, *self._first_step) if self.sd > 0 else None

    @property
    def _first_step(self) -> tuple[float, int]:
        """Level of the first step of Holm's procedure, and the number of strata."""
        return self.level / self.family, len(self.strata)


def judge_grid(study: Study, claims: Sequence[Claim], planned: int, level: float = LEVEL) -> list[Judged]:
    """Judge a family of claims on one study's runs.

    Args:
        study: finished runs count.
        claims: those whose cells the study does not have count in the family and are undecided.
        planned: pairs of each stratum; a claim with fewer is undecided.
        level: chance of any false verdict of a kind, such as one of ``analysis.decisions.LOOKS``.
    """
    found = [_strata(study, claim) for claim in claims]
    gains = [_gain(study, claim.methods) for claim in claims]
    asked = [_question(*one, planned) for one in zip(claims, found, gains, strict=True)]
    return [
        Judged(claim, strata, planned, gain, question, decision, level, len(claims))
        for claim, strata, gain, question, decision in zip(
            claims, found, gains, asked, decide(asked, level), strict=True
        )
    ]


def _question(claim: Claim, strata: Sequence[Values], gain: float, planned: int) -> Question:
    is_whole = min(map(len, strata)) >= max(planned, MIN_PAIRS)
    of_paper = None if claim.paper_share is None else claim.paper_share * gain
    return Question(contrast(strata) if is_whole else None, MARGIN_SHARE * gain, of_paper)


def _strata(study: Study, claim: Claim) -> list[Values]:
    """A method's differences by seed, for each method; where methods share seeds, one stratum of means over methods."""
    of_method = [_differences(study, claim, method) for method in claim.methods]
    if len({seed for one in of_method for seed in one}) == sum(map(len, of_method)):
        return [np.array(list(one.values())) for one in of_method]
    seeds = sorted(set.intersection(*map(set, of_method)))
    return [np.array([np.mean([one[seed] for one in of_method]) for seed in seeds])]


def _differences(study: Study, claim: Claim, method: str) -> dict[int, float]:
    """By seed that all cells of the claim have finished on one processor: another one's rounding is no treatment."""
    sides = [(treatment.cell(method), control.cell(method)) for treatment, control in claim.comparisons]
    values = {cell: study.values(cell, TRAINING_REWARD) for pair in sides for cell in pair}
    members = [runs for cell, runs in study.cells if cell in values]
    if len(members) < len(values):
        return {}
    made_on = pd.concat(members).groupby("seed")["processor"].nunique()
    finished = set.intersection(*(set(of_cell.index) for of_cell in values.values()))
    seeds = sorted(seed for seed in finished if made_on[seed] == 1)
    return {seed: float(np.mean([values[a][seed] - values[b][seed] for a, b in sides])) for seed in seeds}


def _gain(study: Study, methods: Sequence[str]) -> float:
    """What the base cells gain over the untrained model, mean over methods; NaN where that is not known."""
    gains = []
    for method in methods:
        cell = BASE.cell(method)
        if cell not in dict(study.cells):
            return math.nan
        start, split = study.untrained(cell)
        final = study.values(cell, TRAINING_REWARD, split if split in ("test", "validation") else "test")
        gains.append(float(final.mean()) - float(start.get(TRAINING_REWARD, math.nan)))
    return float(np.mean(gains))
