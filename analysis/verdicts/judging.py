"""Judgement of claims together, each with its own number of pairs."""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace

from analysis.cells.study import Study
from analysis.decisions import LEVEL, decide
from analysis.verdicts.protocol import Claim, Judged, judge_grid

NEVER = sys.maxsize
"""Planned pairs with which no claim is decided."""


def judge_together(study: Study, claims: Sequence[tuple[Claim, int]], level: float = LEVEL) -> list[Judged]:
    """Judge claims together, each with its planned pairs.

    A claim with an unknown gain of the base, from which its margin follows, counts in its family and is undecided.
    """
    alone = []
    for claim, pairs in claims:
        [unjudged] = judge_grid(study, [claim], NEVER, level)
        is_known = math.isfinite(unjudged.gain)
        alone += judge_grid(study, [claim], pairs, level) if is_known else [replace(unjudged, planned=pairs)]
    together = decide([one.question for one in alone], level)
    return [replace(one, decision=decision, family=len(alone)) for one, decision in zip(alone, together, strict=True)]
