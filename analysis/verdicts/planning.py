"""What it takes to decide a claim: pairs, runs and core-hours, planned from the spread of runs at hand."""

from collections.abc import Sequence
from typing import NamedTuple

from analysis.cells.study import Study
from analysis.decisions import LEVEL, LOOKS, pairs_needed, power
from analysis.formats import MISSING, number
from analysis.verdicts.protocol import Judged

POWER = 0.8
HEAD = ("Claim", "Sd of a pair", "Effect sought", "Pairs", "Power", "Runs", "Core-hours", "Pairs with an early look")


class Plan(NamedTuple):
    """Of one claim."""

    judged: Judged
    effect: float
    """That is to be found, units of the reward: the margin, or the paper's relative gain where that is smaller."""
    pairs: int | None
    """Over all strata, for power .8 in the first step of Holm's procedure; None where that is unknown or endless."""
    power: float | None
    """That so many have."""
    runs: int | None
    core_hours: float | None
    pairs_with_look: int | None
    """Where half of the pairs are looked at first, which spends a tenth of the level: ``LOOKS``."""


def plan(study: Study, family: Sequence[Judged]) -> list[Plan]:
    """A plan for each claim that has a spread: its sd from the runs at hand, which are pilot runs for the next study.

    An sd of few pairs is itself known to a factor of 2 or so: see docs/testbed.md.
    """
    finished = study.summary[study.summary["state"] == "finished"]
    hours = float((finished["train_seconds"] + finished["evaluation_seconds"]).mean()) / 3600
    return [_plan(judged, hours) for judged in family if judged.sd > 0]


def _plan(judged: Judged, hours: float) -> Plan:
    effect = judged.margin if judged.paper is None else min(judged.margin, judged.paper)
    strata = len(judged.strata)

    def needed(level: float) -> int | None:
        return pairs_needed(effect, judged.sd, level / judged.family, strata, POWER)

    pairs, with_look = needed(LEVEL), needed(LOOKS[-1])
    if pairs is None:
        return Plan(judged, effect, None, None, None, None, None)
    cells = len({side for comparison in judged.claim.comparisons for side in comparison})
    runs = pairs * strata * cells
    reached = power(effect, judged.sd, pairs, LEVEL / judged.family, strata)
    return Plan(judged, effect, pairs * strata, reached, runs, runs * hours, with_look and with_look * strata)


def plan_rows(plans: Sequence[Plan]) -> list[list[str]]:
    """A row per claim, under ``HEAD``."""
    return [
        [
            one.judged.claim.statement,
            number(one.judged.sd, 3),
            number(one.effect, 3),
            _count(one.pairs),
            MISSING if one.power is None else number(one.power, 2),
            _count(one.runs),
            MISSING if one.core_hours is None else number(one.core_hours, 1),
            _count(one.pairs_with_look),
        ]
        for one in plans
    ]


def _count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"
