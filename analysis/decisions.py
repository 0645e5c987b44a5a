"""How claims are decided: a verdict with a direction from differences of paired runs. Pure functions.

A claim says that a treatment beats a control: that the mean of their differences, one a seed, is above 0. Differences
may come in strata (one a method), each of which counts alike. Every verdict is the rejection of a hypothesis by a
one-sided t-test:

    supported                 rejects  difference <= 0
    opposite                  rejects  difference >= 0
    equivalent                rejects  difference <= -margin  and  difference >= margin   (Schuirmann's two tests, TOST)
    smaller than the paper's  rejects  difference >= the paper's relative gain, in the units of the reward here
    undecided                 rejects none of them

Claims that are judged together form four families, one a kind of verdict. In each, Holm's procedure keeps the chance of
any false verdict of that kind at most at the level. An early look spends a part of the level, see ``LOOKS``.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from analysis.statistics import holm

LEVEL = 0.05
LOOKS = (0.005, 0.045)
"""What the look at half of the pairs and that at all of them may spend of ``LEVEL``; their sum bounds the chance of a
false verdict over both looks, whatever the dependence between them (Bonferroni)."""

Outcome = Literal["supported", "opposite", "equivalent", "smaller than the paper's", "undecided"]
OUTCOMES: tuple[Outcome, ...] = ("supported", "opposite", "equivalent", "smaller than the paper's")
"""That can be rejected into, the strongest first: a difference that is both found and small is a found one."""


class Contrast(NamedTuple):
    """A mean difference, its standard error and its degrees of freedom."""

    mean: float
    error: float
    degrees: float

    def bounds(self, level: float = LEVEL) -> tuple[float, float]:
        """One-sided lower and upper bound of the true difference, each wrong with probability ``level``."""
        reach = float(stats.t.ppf(1 - level, self.degrees)) * self.error
        return self.mean - reach, self.mean + reach

    def p_above(self, value: float) -> float:
        """One-sided p-value of the hypothesis that the true difference is at most ``value``."""
        if self.error == 0:
            return 0.0 if self.mean > value else 1.0
        return float(stats.t.sf((self.mean - value) / self.error, self.degrees))

    def p_below(self, value: float) -> float:
        """One-sided p-value of the hypothesis that the true difference is at least ``value``."""
        return self._replace(mean=-self.mean).p_above(-value)


def contrast(strata: Sequence[ArrayLike]) -> Contrast:
    """Mean over strata of each one's mean difference.

    error^2 = sum_k s_k^2 / n_k / K^2, degrees of freedom by Welch and Satterthwaite: (sum_k v_k)^2 / sum_k
    v_k^2 / (n_k - 1) with v_k = s_k^2 / n_k (Satterthwaite 1946, "An approximate distribution of estimates of variance
    components", Biometrics Bulletin 2(6)). For one stratum: Student's paired t.

    Args:
        strata: K arrays ``[n_k]`` of treatment - control, one value a seed.

    Raises:
        ValueError: no stratum, or one with fewer than 2 differences.
    """
    arrays = [np.asarray(stratum, dtype=float) for stratum in strata]
    if not arrays or min(map(len, arrays)) < 2:
        raise ValueError("a contrast needs strata of at least 2 paired differences each")
    counts = np.array([len(a) for a in arrays])
    variances = np.array([a.var(ddof=1) for a in arrays]) / counts
    total = float(variances.sum())
    degrees = total**2 / float((variances**2 / (counts - 1)).sum()) if total else float((counts - 1).sum())
    return Contrast(float(np.mean([a.mean() for a in arrays])), math.sqrt(total) / len(arrays), degrees)


class Question(NamedTuple):
    """What is to be decided."""

    contrast: Contrast | None
    """None while a stratum has fewer than 2 pairs: such a claim counts in its family and is undecided."""
    margin: float
    """> 0, units of the reward: a difference within it is none worth having."""
    paper: float | None
    """> 0, the same units: the paper's relative gain times the base's gain here; None where it reports no gain."""


class Decision(NamedTuple):
    """A verdict, and the p-values that it rests on."""

    verdict: Outcome
    p_values: dict[Outcome, float]
    """By kind of verdict, adjusted for the family; a verdict's is at most the level."""


def decide(questions: Sequence[Question], level: float = LEVEL) -> list[Decision]:
    """Decide claims together.

    Args:
        questions: of one family of claims.
        level: chance of any false verdict of a kind, in (0, 1).
    """
    adjusted = {kind: holm([_p_value(kind, question) for question in questions]) for kind in OUTCOMES}
    decisions = []
    for i in range(len(questions)):
        p_values = {kind: float(adjusted[kind][i]) for kind in OUTCOMES}
        verdict: Outcome = next((kind for kind in OUTCOMES if p_values[kind] <= level), "undecided")
        decisions.append(Decision(verdict, p_values))
    return decisions


def _p_value(kind: Outcome, question: Question) -> float:
    found, margin, paper = question
    if found is None:
        return 1.0
    if kind == "supported":
        return found.p_above(0)
    if kind == "opposite":
        return found.p_below(0)
    if kind == "equivalent":
        return max(found.p_above(-margin), found.p_below(margin))
    return 1.0 if paper is None else found.p_below(paper)


# --- planning ---------------------------------------------------------------------------------------------------------


def power(effect: float, sd: float, pairs: int, level: float = LEVEL, strata: int = 1) -> float:
    """Probability that a true difference is found by the one-sided test.

    1 - F(t_{1 - level}; noncentrality effect / error), error = sd / sqrt(strata pairs), on strata (pairs - 1) degrees
    of freedom (noncentral t).

    Args:
        effect: true difference, in the claim's direction.
        sd: standard deviation of paired differences, > 0.
        pairs: in each stratum, at least 2.
        level: of the test, such as ``LEVEL`` over the number of claims for the first step of Holm's procedure.
        strata: how many.
    """
    degrees = strata * (pairs - 1)
    shift = effect / sd * math.sqrt(strata * pairs)
    return float(stats.nct.sf(stats.t.ppf(1 - level, degrees), degrees, shift))


def equivalence_power(margin: float, sd: float, pairs: int, level: float = LEVEL, strata: int = 1) -> float:
    """Probability that equivalence is shown where the true difference is 0: 2 F_t(margin / error - t_{1 - level}) - 1.

    Args:
        margin: of equivalence.
        sd: as in ``power``, like the rest.
        pairs: in each stratum.
        level: of each of the two tests.
        strata: how many.
    """
    degrees = strata * (pairs - 1)
    room = margin / sd * math.sqrt(strata * pairs) - float(stats.t.ppf(1 - level, degrees))
    return max(0.0, 2 * float(stats.t.cdf(room, degrees)) - 1)


def pairs_needed(
    effect: float, sd: float, level: float = LEVEL, strata: int = 1, wanted: float = 0.8, most: int = 100_000
) -> int | None:
    """Fewest pairs in each stratum with which a true difference ``effect`` is found with probability ``wanted``.

    None beyond ``most``, as for an effect of 0 or less.
    """
    low, high = 2, 2
    while power(effect, sd, high, level, strata) < wanted:
        low, high = high, high * 2
        if high > most:
            return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, sd, middle, level, strata) >= wanted else (middle + 1, high)
    return high
