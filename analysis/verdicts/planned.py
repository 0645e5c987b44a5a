"""What the study claims, of which cells and on how many pairs: its protocol, fixed before its first run.

Endpoint, pairs and margin are those of ``analysis.verdicts.protocol``: the reward on all test words, differences by
seed, 10 % of what Flow-GRPO's (a method's own) base gains. Verdicts are those of ``analysis.decisions``. Each claim
compares two cells, one difference a seed: fusion was seen to change little (its pairs differ by a standard deviation of
.012 on the default grid), so that a second comparison with it would cost a run and add none.

The primary claims are one family, in which each kind of verdict is wrong for any claim with probability .05 at most
(Holm). A claim is decided once, when all of its pairs have finished; there is no early look. The shoot-out, rules of
ours against random prompts and against random prompts with the larger group of equal cost, is two more families, and
the map, the paper's rules at two lower shares of the variance that the prompt explains, one each. Bounds that are not
adjusted are one-sided, of 95 %.

How many pairs: on the default grid (9 pairs) differences from random prompts had standard deviations of .04
(capability-matched, hardest) to .06 (median, easiest), the base gains .38. With 32 pairs a difference of the margin is
found with probability .76 to 1, and where there is none equivalence is shown with .5 to 1, at the first and strictest
step of Holm's procedure; with 12 pairs, one-sided and alone, .038 +- .026 is seen where the deviation is .05.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis import paper
from analysis.cells.study import Study
from analysis.decisions import decide
from analysis.verdicts.protocol import ADAGRPO, BASE, Claim, Judged, Side, judge_grid

FLOW_GRPO, DANCE_GRPO, FLOW_CPS = "flow_grpo", "dance_grpo", "flow_cps"
LARGER_GROUP = replace(BASE, variant="G 12")
LONGER = replace(BASE, variant="66 iterations")
"""Random prompts at the compute of + AdaGRPO, in network forwards, a trained sample counting three."""
PAIRS, PAIRS_OF_METHODS, PAIRS_OF_RULES = 32, 24, 12
RULES = (
    Side("preview", False),
    Side("predicted", False),
    Side("predicted_hardest", False),
    Side("predicted_spread", False),
    Side("thompson", False),
    Side("bandit", False),
    Side("quantile", False, variant="choice.level 0.25"),
    Side("anchored", False, variant="choice.level -1.0"),
    Side("anchored", False, variant="choice.level 1.0"),
    Side("fixed", False, variant="choice.level 0.5"),
    Side("replay", False, variant="choice.level 0.5"),
    Side("screened", False, variant="B 4"),
    Side("random", False, variant="choice.floor 0.2"),
)
"""Of the shoot-out, beside the paper's four."""


@dataclass(frozen=True)
class Family:
    """Claims that are judged together, on the runs of one experiment."""

    name: str
    experiment: str
    claims: Sequence[tuple[Claim, int]]
    """With the pairs that each is decided on."""


def _claim(name: str, statement: str, treatment: Side, control: Side, method: str = FLOW_GRPO) -> Claim:
    share = paper.share_of_base_gain(name)
    return Claim(name, statement, ((treatment, control),), (method,), None if math.isnan(share) else share)


CURRICULUM, MEDIUM = Side("curriculum", fusion=False), Side("medium", fusion=False)
SELECTION_CLAIMS = (
    _claim("curriculum", "Capability-matched prompts beat random prompts", CURRICULUM, BASE),
    _claim("medium", "Prompts of median difficulty beat random prompts", MEDIUM, BASE),
    _claim("hardest", "The hardest prompts beat random prompts", Side("hardest", fusion=False), BASE),
    _claim("easiest", "Random prompts beat the easiest", BASE, Side("easiest", fusion=False)),
    _claim("curriculum-medium", "Capability-matched prompts beat those of median difficulty", CURRICULUM, MEDIUM),
)
PRIMARY = (
    *((claim, PAIRS) for claim in SELECTION_CLAIMS),
    (_claim("fusion", "Fusion adds to capability-matched prompts", ADAGRPO, CURRICULUM), PAIRS),
    (_claim(FLOW_GRPO, "Flow-GRPO + AdaGRPO beats Flow-GRPO", ADAGRPO, BASE), PAIRS),
    (_claim(DANCE_GRPO, "DanceGRPO + AdaGRPO beats DanceGRPO", ADAGRPO, BASE, DANCE_GRPO), PAIRS_OF_METHODS),
    (_claim(FLOW_CPS, "Flow-CPS + AdaGRPO beats Flow-CPS", ADAGRPO, BASE, FLOW_CPS), PAIRS_OF_METHODS),
    (_claim("larger-group", "Flow-GRPO + AdaGRPO beats the larger group of equal cost", ADAGRPO, LARGER_GROUP), PAIRS),
    (_claim("longer", "Flow-GRPO + AdaGRPO beats longer training of equal cost", ADAGRPO, LONGER), PAIRS),
)


def _shoot_out(control: Side, words: str) -> list[tuple[Claim, int]]:
    """Every rule against one control; a rule's name is that of its cell."""
    names = {side: " ".join(filter(None, (side.selection, side.variant))) for side in RULES}
    paper_s = [Side(name, fusion=False) for name in ("curriculum", "medium", "hardest", "easiest")]
    ours = [(_claim(name, f"{name} beats {words}", side, control), PAIRS_OF_RULES) for side, name in names.items()]
    return ours + [(_claim(f"{s.selection}-", f"{s.selection} beats {words}", s, control), PAIRS) for s in paper_s]


FAMILIES = (
    Family("primary", "study", PRIMARY),
    Family("rules against random prompts", "study", _shoot_out(BASE, "random prompts")),
    Family("rules at equal cost", "study", _shoot_out(LARGER_GROUP, "the larger group of random prompts")),
    Family("map: letters-luck", "study-letters-luck", [(claim, PAIRS_OF_RULES) for claim in SELECTION_CLAIMS]),
    Family("map: luck", "study-luck", [(claim, PAIRS_OF_RULES) for claim in SELECTION_CLAIMS]),
)


def judge_family(study: Study, family: Family) -> list[Judged]:
    """Judge a family's claims together, each once its own number of pairs has finished.

    Args:
        study: the runs of ``family.experiment``.
        family: one of ``FAMILIES``.
    """
    alone = [judge_grid(study, [claim], pairs)[0] for claim, pairs in family.claims]
    together = decide([one.question for one in alone])
    return [replace(one, decision=decision, family=len(alone)) for one, decision in zip(alone, together, strict=True)]
