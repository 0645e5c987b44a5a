"""The protocol of the study: what is claimed, how it is measured, on which seeds, and when it counts as supported.

It was fixed before the study's runs, each of which records the sha256 of this file; a page says where they differ. A
claim says that one cell is better than another. The claims of ``PRIMARY`` are judged together; whatever else is
compared is exploratory: the same rule without adjustment, and no conclusion.

Primary metric: the reward that was trained on, of the trained model, on all test words x ``TEST_NOISES`` noises. It
gives the verdict. Beside it stands, as a family of its own, the mean of the last ``VALIDATION_POINTS`` validations,
which does not hang on the last iteration alone; where the two disagree, the test words' verdict counts. Differences are
paired by seed. Intervals resample seeds and words.

A verdict needs all planned pairs. Until they are finished the claim is inconclusive, so that no early look decides; if
a run diverged for good it stays so, since to drop its pair would favour the setting that diverges.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from analysis.statistics import Interval, Values, holm, paired_interval, paired_p_value

EXPERIMENT = "miniature-study"
METRIC = "training_reward"
TEST_NOISES = 3
VALIDATION_POINTS = 3
CONFIDENCE = 0.95
MARGIN = 0.02
"""In units of the trained reward: an interval that holds 0 and lies within this of it says that there is no difference
worth having. One that lies above 0 is a difference, however small. Other metrics have no margin: their units differ."""

PILOT_SEEDS = (1100, 1101)
"""Of tuning, which reads validation words only."""
STUDY_SEEDS = tuple(range(500, 520))
"""Used from the first on, by every cell alike. How many a claim has is fixed in advance and not extended. With the
pilot's paired standard deviation of .03, a difference is found with probability .8 if it is as large as this (second
row: in the first step of Holm's procedure over nine primary claims; chance in the words is not counted):

    pairs             10     12     16     20
    at level .05     .030   .027   .022   .020
    at level .0056   .043   .037   .031   .027

So "not supported" by the margin needs a smaller deviation, such as the .008 between cells with and without fusion. Ten
core-hours pay for 16 pairs of the main cells, not for 20."""

CLAIMED_OVERHEAD, OVERHEAD_TOLERANCE = 0.20, 0.05
"""Of AdaGRPO an iteration, as the paper reports it; judged by network forwards counted at the paper's setting."""

Verdict = Literal["supported", "not supported", "inconclusive", "no runs yet"]


class Arm(NamedTuple):
    """A cell of the grid, see ``analysis.labels.Cell``, and the reward that it is trained on."""

    method: str = "flow_grpo"
    selection: str = "random"
    fusion_weight: float = 0.0
    """0 without fusion."""
    variant: str = ""
    """Settings that differ from those of most runs, as ``analysis.variants`` writes them."""
    reward: str = "ocr"


class Claim(NamedTuple):
    """One cell is better than another."""

    name: str
    statement: str
    treatment: Arm
    control: Arm
    seeds: int
    """Planned pairs."""


def _adagrpo(method: str = "flow_grpo") -> Arm:
    return Arm(method, "curriculum", 1.0)


PRIMARY = (
    Claim("curriculum", "Capability-matched prompts beat random prompts", Arm(selection="curriculum"), Arm(), 16),
    Claim("medium", "Prompts of median difficulty beat random prompts", Arm(selection="medium"), Arm(), 12),
    Claim(
        "curriculum-medium",
        "Capability-matched prompts beat those of median difficulty",
        Arm(selection="curriculum"),
        Arm(selection="medium"),
        12,
    ),
    Claim("easiest", "Random prompts beat the easiest", Arm(), Arm(selection="easiest"), 12),
    Claim("fusion", "Fusion adds to capability-matched prompts", _adagrpo(), Arm(selection="curriculum"), 16),
    Claim("flow_grpo", "Flow-GRPO + AdaGRPO beats Flow-GRPO", _adagrpo(), Arm(), 16),
    Claim("dance_grpo", "DanceGRPO + AdaGRPO beats DanceGRPO", _adagrpo("dance_grpo"), Arm("dance_grpo"), 10),
    Claim("flow_cps", "Flow-CPS + AdaGRPO beats Flow-CPS", _adagrpo("flow_cps"), Arm("flow_cps"), 10),
    Claim(
        "equal-compute",
        "Flow-GRPO + AdaGRPO beats Flow-GRPO with the larger group that costs the same",
        _adagrpo(),
        Arm(variant="G 15"),
        12,
    ),
)
"""All trained on ``ocr``."""


class Pair(NamedTuple):
    """Final values of two cells; row i of both has the same seed."""

    treatment: Values
    """``[seeds, words]``, or ``[seeds]``; at least 2 seeds."""
    control: Values
    """The same shape."""


class Judgement(NamedTuple):
    """What the rule says of a claim."""

    verdict: Verdict
    interval: Interval | None
    """Of the mean of treatment - control, at ``confidence``."""
    confidence: float
    p_value: float
    """Two-sided, adjusted for the family; NaN without an interval."""


def judge(interval: Interval | None, margin: float | None = MARGIN) -> Verdict:
    """Above 0: supported. Else below 0, or holding 0 and within ``margin`` of it: not supported. Else inconclusive.

    Args:
        interval: of the difference that the claim says is positive; None while there are too few seeds for one.
        margin: None where no difference is too small to count.
    """
    if interval is None:
        return "inconclusive"
    if interval.low > 0:
        return "supported"
    is_negligible = margin is not None and -margin < interval.low and interval.high < margin
    return "not supported" if interval.high < 0 or is_negligible else "inconclusive"


def judge_family(pairs: Sequence[Pair | None], margin: float | None = MARGIN) -> list[Judgement]:
    """Judge claims together, so that the chance of any false "supported" among them is at most 1 - ``CONFIDENCE``.

    Holm's procedure on intervals: in the order of their p-values, the k-th of m claims has an interval of confidence
    1 - (1 - .95) / (m - k + 1), until the first interval that holds 0; the confidence of that one serves all that are
    left. A claim without runs counts among the m, so that no verdict becomes easier while runs are missing.

    Args:
        pairs: of each claim; None for one without two seeds that both cells have finished.
        margin: see ``judge``.
    """
    p_values = [1.0 if pair is None else paired_p_value(*pair) for pair in pairs]
    adjusted = holm(p_values)
    judged: dict[int, Judgement] = {}
    left, holds = len(pairs), True
    for i in sorted(range(len(pairs)), key=p_values.__getitem__):
        pair, confidence = pairs[i], 1 - (1 - CONFIDENCE) / left
        if pair is None:
            judged[i] = Judgement("no runs yet", None, confidence, math.nan)
            continue
        interval = paired_interval(*pair, confidence)
        judged[i] = Judgement(judge(interval, margin), interval, confidence, float(adjusted[i]))
        holds = holds and not interval.low <= 0 <= interval.high
        left -= holds
    return [judged[i] for i in range(len(pairs))]


def judge_alone(pair: Pair | None, margin: float | None = MARGIN) -> Judgement:
    """Judge an exploratory claim: by its own interval, as if it were the only one."""
    return judge_family([pair], margin)[0]


def settle(judgement: Judgement, pairs: int, planned: int) -> Judgement:
    """The judgement of a claim with so many finished pairs: inconclusive while planned ones are missing.

    A single pair has no interval, and is inconclusive even where no more are planned.
    """
    is_open = pairs > 0 and (pairs < planned or judgement.interval is None)
    return judgement._replace(verdict="inconclusive") if is_open else judgement


def judge_overhead(share: float) -> Verdict:
    """Whether a counted overhead is the claimed one: within ``OVERHEAD_TOLERANCE`` of it."""
    return "supported" if abs(share - CLAIMED_OVERHEAD) <= OVERHEAD_TOLERANCE else "not supported"


def judge_consistency(verdicts: Sequence[Verdict]) -> Verdict:
    """Whether a gain is consistent over judges: supported by all of them, or not supported by at least one.

    Args:
        verdicts: of methods and unseen judges, without a margin, so that "not supported" is an interval below 0; of
            runs that were trained on ``ocr``, since those on other rewards have too few seeds for a verdict.
    """
    there = [verdict for verdict in verdicts if verdict != "no runs yet"]
    if not there:
        return "no runs yet"
    if "not supported" in there:
        return "not supported"
    return "supported" if set(verdicts) == {"supported"} else "inconclusive"


def validation_mean(values: ArrayLike) -> Values:
    """Mean of the last ``VALIDATION_POINTS`` validations after the first iteration.

    Args:
        values: ``[points]`` or ``[points, words]``, in order of iterations; all of them where there are fewer.
    """
    return np.asarray(np.asarray(values, dtype=float)[-VALIDATION_POINTS:].mean(axis=0))


Setting = TypeVar("Setting")


def choose_setting(values: Mapping[Setting, Mapping[int, float]]) -> Setting | None:
    """The setting that tuning chooses: the highest mean over ``PILOT_SEEDS``; of equal ones the first.

    Args:
        values: by setting and seed, ``validation_mean`` of the base cell's trained reward. A setting without a value of
            every pilot seed, such as one that diverged, cannot be chosen.

    Returns:
        None if no setting can be chosen.
    """
    means = {
        setting: sum(of_seed[seed] for seed in PILOT_SEEDS) / len(PILOT_SEEDS)
        for setting, of_seed in values.items()
        if set(PILOT_SEEDS) <= set(of_seed)
    }
    return max(means, key=means.__getitem__) if means else None
