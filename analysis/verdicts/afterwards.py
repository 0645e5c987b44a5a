"""The primary claims read once more, one-sided and after the fact: beside the protocol's verdicts, which stay.

The protocol asks a two-sided interval, at the level of Holm's procedure, of claims that have a direction. Here stands
what one claim by itself says at 95 %: bounds, equivalence, and whether a gain as large as the paper's can be seen.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from analysis import paper
from analysis.claims import CONFIDENCE, MARGIN, METRIC, Claim, Pair
from analysis.formats import Entry, WideTable, number
from analysis.statistics import Interval, detection_power, equivalence_p_value, paired_interval, paired_summary

SHARE = 0.1
"""Share of the control's gain that is the second margin of equivalence."""


class Reading(NamedTuple):
    """A claim read one-sided."""

    statement: str
    bounds: Interval
    """Each bound holds with 95 %."""
    gain: float
    """The control's gain over the untrained model, on test words; NaN where that was not measured."""
    published: float
    """The paper's difference as a share of its control's gain, times ``gain``; NaN where the paper has none."""
    equivalence: tuple[float, float]
    """p-values of no difference beyond ``MARGIN``, and beyond ``SHARE`` of the gain."""
    shortfall: Interval | None
    """Bounds of the difference less the paper's share of the control's gain, which varies with the seeds as well."""
    power: float
    """Power of a one-sided test at level .05 against a true difference of ``published``."""

    @property
    def is_smaller(self) -> bool:
        """Whether a difference as large as the paper's is excluded."""
        return self.shortfall is not None and self.shortfall.high < 0

    @property
    def outcome(self) -> str:
        """What the bounds say, the strongest first."""
        if self.bounds.low > 0:
            return "above 0"
        if self.bounds.high < 0:
            return "below 0"
        if self.equivalence[0] <= 1 - CONFIDENCE:
            return f"equivalent within ±{MARGIN:g}"
        return "smaller than the paper's" if self.is_smaller else "undecided"


def read_afterwards(claim: Claim, pair: Pair, before: pd.Series, split: str) -> Reading:
    """Read a claim again.

    Args:
        claim: of the protocol.
        pair: of at least two seeds, on test words.
        before: what the control started from, by metric.
        split: that it was measured on.
    """
    start = float(before.get(METRIC, math.nan)) if split == "test" else math.nan
    gain, share = float(pair.control.mean()) - start, paper.relative_gain(claim.name)
    as_published, both = pair.control + share * (pair.control - start), 2 * CONFIDENCE - 1
    sd = paired_summary(*pair).sd
    return Reading(
        claim.statement,
        paired_interval(*pair, both),
        gain,
        share * gain,
        (equivalence_p_value(*pair, MARGIN), equivalence_p_value(*pair, SHARE * gain) if gain > 0 else math.nan),
        paired_interval(pair.treatment, as_published, both) if gain > 0 and math.isfinite(share) else None,
        detection_power(share * gain, sd, len(pair.control)) if sd > 0 else math.nan,
    )


def readings_table(readings: Sequence[Reading]) -> WideTable:
    """All readings, as people read them."""
    title = (
        f"Read after the fact, each claim for itself: bounds that hold with {100 * CONFIDENCE:g} % each, and the "
        "paper's difference at the same share of the control's gain"
    )
    head = ["Claim", "Difference", "The paper's, here", "Power to see that"]
    head += [f"p of equivalence within ±{MARGIN:g}", f"within {100 * SHARE:g} % of the gain", "Gain of the control"]
    rows = [
        (
            f"{one.statement}: {one.outcome}",
            [
                Entry(one.bounds.estimate, interval=one.bounds, signed=True),
                Entry(one.published, signed=True),
                Entry(one.power, digits=0, percent=True),
                *(Entry(p) for p in one.equivalence),
                Entry(one.gain),
            ],
        )
        for one in readings
    ]
    return WideTable(title, head, rows)


def sentences(readings: Sequence[Reading]) -> list[str]:
    """What the readings say, and what they are not."""
    said = [
        f"Read after the fact, which changes no verdict: the protocol asks of each claim, which has a direction, a "
        f"two-sided interval at the level of Holm's procedure, and of the same interval that it lie within ±{MARGIN:g} "
        f"where there is nothing. With bounds of {100 * CONFIDENCE:g} % each, unadjusted:"
    ]
    smaller = [
        f"{one.statement} (at most {number(one.bounds.high, signed=True)}, the paper's would be "
        f"{number(one.published, signed=True)})"
        for one in readings
        if one.is_smaller
    ]
    if smaller:
        said.append(f"A gain as large as the paper's, as a share of the control's, is excluded: {'; '.join(smaller)}.")
    for outcome in dict.fromkeys(one.outcome for one in readings):
        those = [one.statement for one in readings if one.outcome == outcome]
        said.append(f"{outcome[0].upper()}{outcome[1:]}, {len(those)} of {len(readings)}: {'; '.join(those)}.")
    powers = [one.power for one in readings if math.isfinite(one.power)]
    if powers:
        said.append(
            f"The power to see a gain as large as the paper's was {100 * min(powers):.0f} to {100 * max(powers):.0f} % "
            "(one-sided, level .05, chance in the words not counted)."
        )
    return said
