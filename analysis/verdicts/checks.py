"""Checks of the decision rule on a study's own runs: nothing is found where nothing is, a planted gain is found, and
each processor's runs by themselves say much the same.

Both sides of a pair are drawn with replacement from runs of one cell, which differ by seed alone, so that there is
nothing to find (A/A). A gain added to one side should be found as often as ``analysis.decisions.power`` promises. Such
pairs do not share seeds, so that they are noisier than a study's own.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from analysis.cells.logs import TRAINING_REWARD
from analysis.cells.study import Study
from analysis.decisions import LEVEL, OUTCOMES, Outcome, Question, contrast, decide, equivalence_power, power
from analysis.formats import MISSING, interval_text
from analysis.statistics import RESAMPLING_SEED, Interval, Values
from analysis.verdicts.judging import NEVER, judge_together
from analysis.verdicts.protocol import BASE, MARGIN_SHARE, MIN_PAIRS, Claim, judge_grid

PAIRS, TRIALS = 40, 2000
FEWEST_RUNS = 20
_RULE_NAME = "The rule checked on these runs: A/A, planted differences"
_RULE = (
    f"Runs of the base cell that differ by seed (and processor, if several made them), {PAIRS} pairs drawn with "
    f"replacement, {TRIALS:,} times: "
    "there is nothing to be found, or a planted difference. Expected: the level, or the power."
)
_PROCESSORS = (
    "The claims by the pairs that one model of processor made, judged together. Fewer pairs decide less, and "
    "seeds differ, too: what counts is whether a verdict is turned round."
)


class Checked(NamedTuple):
    """A check as a table for readers."""

    name: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def checks_of(study: Study, gain: float, claims: Sequence[Claim]) -> list[Checked]:
    """Check the rule on the base cell's runs, and the claims on each processor's, as far as there are enough runs.

    Args:
        study: runs that the claims are decided on.
        gain: gain of the base.
        claims: claims that are judged together.
    """
    values = study.values(BASE.cell("flow_grpo"), TRAINING_REWARD).to_numpy(dtype=float)
    found = []
    if len(values) >= FEWEST_RUNS and np.isfinite(gain):
        planted = Checked(
            _RULE_NAME, _RULE, ("Planted", "Verdict", "Expected", "Found"), _rows(check_rule(values, gain))
        )
        found.append(planted)
    head, rows = by_processor(study, claims)
    if len(head) > 2:
        found.append(Checked("The claims on each model of processor", _PROCESSORS, head, rows))
    return found


def by_processor(study: Study, claims: Sequence[Claim]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table: each claim's verdict, difference and pairs on each processor with a pair of it."""
    columns: dict[str, list[str]] = {}
    for processor, runs in study.summary.groupby("processor"):
        own = replace(study, summary=runs)
        unjudged = judge_grid(own, claims, NEVER)
        pairs = {one.claim: min(map(len, one.strata)) for one in unjudged if math.isfinite(one.gain)}
        known = [(claim, count) for claim, count in pairs.items() if count >= MIN_PAIRS]
        if not known:
            continue
        verdicts = {
            one.claim: f"{one.verdict}: {interval_text(Interval(one.contrast.mean, *one.contrast.bounds()))}, "
            f"{one.pairs} pairs"
            for one in judge_together(own, known)
            if one.contrast
        }
        columns[str(processor)] = [verdicts.get(claim, MISSING) for claim in claims]
    rows = [[claim.statement, *texts] for claim, *texts in zip(claims, *columns.values(), strict=True)]
    return ["Claim", *columns], rows


class Check(NamedTuple):
    """Frequency of a verdict among ``TRIALS`` claims of ``PAIRS`` pairs each."""

    planted: float
    """True difference in units of the reward."""
    verdict: Outcome
    expected: float
    """Expected share: the level, as an upper limit, if the verdict would be false; else the power."""
    found: float


def check_rule(values: Values, gain: float) -> list[Check]:
    """Check the rule with no effect (A/A) and with planted effects, on values that differ by seed alone.

    Args:
        values: ``[runs]`` endpoints of one cell.
        gain: gain of the base, from which the margin follows; the planted effects are the margin and half of it.
    """
    generator, margin = np.random.default_rng(RESAMPLING_SEED), MARGIN_SHARE * gain
    drawn = generator.choice(values, (2, TRIALS, PAIRS))
    differences, sd = drawn[0] - drawn[1], float(np.sqrt(2) * values.std())
    found = _shares(differences, margin)
    checks = [Check(0.0, kind, LEVEL, found[kind]) for kind in ("supported", "opposite")]
    checks.append(Check(0.0, "equivalent", equivalence_power(margin, sd, PAIRS), found["equivalent"]))
    for effect in (margin / 2, margin):
        found = _shares(differences + effect, margin)
        checks.append(Check(effect, "supported", power(effect, sd, PAIRS), found["supported"]))
    return checks


def _shares(differences: Values, margin: float) -> dict[Outcome, float]:
    """How often one claim comes out as each kind of verdict, of differences ``[trials, pairs]``."""
    decisions = [decide([Question(contrast([of_trial]), margin, None)])[0] for of_trial in differences]
    return {kind: float(np.mean([one.p_values[kind] <= LEVEL for one in decisions])) for kind in OUTCOMES}


def _rows(checks: Sequence[Check]) -> list[list[str]]:
    return [
        [
            f"{one.planted:+.3f}",
            one.verdict,
            f"{'at most ' * (one.planted == 0 and one.expected == LEVEL)}{one.expected:.2f}",
            f"{one.found:.3f}",
        ]
        for one in checks
    ]
