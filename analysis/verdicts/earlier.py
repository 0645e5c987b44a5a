"""Claims of the first study, on the miniature where difficulty is luck, judged again by the present rule.

The study had another rule (two-sided intervals at the level of Holm's procedure, a margin of .02), by which all nine
claims ended "inconclusive": results/miniature-study/tables/first-verdicts.md. The new verdicts are post hoc; the
claims, cells and pairs are the planned ones.
"""

from dataclasses import replace

from analysis.verdicts.planned import PRIMARY, Family
from analysis.verdicts.protocol import ADAGRPO, BASE

_PAIRS = {"curriculum": 16, "fusion": 16, "flow_grpo": 16, "dance_grpo": 10, "flow_cps": 10}
_CLAIMS = ("curriculum", "medium", "curriculum-medium", "easiest", "fusion", "flow_grpo", "dance_grpo", "flow_cps")
_BY_NAME = {claim.name: claim for claim, _ in PRIMARY}
_LARGER_GROUP = replace(
    _BY_NAME["larger-group"], comparisons=((ADAGRPO, replace(BASE, variant="G 15")),), name="larger-group"
)
EARLIER = (
    Family(
        "The first study, read again",
        "miniature-study",
        [(claim, _PAIRS.get(claim.name, 12)) for claim in (*(_BY_NAME[name] for name in _CLAIMS), _LARGER_GROUP)],
    ),
)
EARLIER_NOTE = (
    "Each claim compares two cells. These runs were planned for another rule, by which all nine claims ended "
    "inconclusive (tables/first-verdicts.md); by the present one they are read after the fact."
)
