"""Checks of the decision rule on a study's own runs: nothing is found where nothing is, and a planted gain is found.

Both sides of a pair are drawn with replacement from runs of one cell, which differ by seed alone, so that there is
nothing to find (A/A). A gain added to one side should be found as often as ``analysis.decisions.power`` promises. Such
pairs do not share seeds, so that they are noisier than a study's own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from analysis.cells.logs import TRAINING_REWARD
from analysis.cells.study import Study
from analysis.decisions import LEVEL, OUTCOMES, Outcome, Question, contrast, decide, equivalence_power, power
from analysis.statistics import RESAMPLING_SEED, Values
from analysis.verdicts.protocol import BASE, MARGIN_SHARE

PAIRS, TRIALS = 40, 2000
FEWEST_RUNS = 20
HEAD = ("Planted", "Verdict", "Expected", "Found")


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


def checks_of(study: Study, gain: float) -> list[Check]:
    """Apply ``check_rule`` to the base cell of Flow-GRPO; [] if fewer than ``FEWEST_RUNS`` seeds have finished."""
    values = study.values(BASE.cell("flow_grpo"), TRAINING_REWARD).to_numpy(dtype=float)
    return check_rule(values, gain) if len(values) >= FEWEST_RUNS and np.isfinite(gain) else []


def _shares(differences: Values, margin: float) -> dict[Outcome, float]:
    """How often one claim comes out as each kind of verdict, of differences ``[trials, pairs]``."""
    decisions = [decide([Question(contrast([of_trial]), margin, None)])[0] for of_trial in differences]
    return {kind: float(np.mean([one.p_values[kind] <= LEVEL for one in decisions])) for kind in OUTCOMES}


def check_rows(checks: Sequence[Check]) -> list[list[str]]:
    """Rows of a table with headings ``HEAD``, one per check."""
    return [
        [
            f"{one.planted:+.3f}",
            one.verdict,
            f"{'at most ' * (one.planted == 0 and one.expected == LEVEL)}{one.expected:.2f}",
            f"{one.found:.3f}",
        ]
        for one in checks
    ]
