"""Statistics for small numbers of seeds: pure functions on arrays; the same arrays give the same numbers.

Runs are compared with bootstrap intervals and probabilities of improvement, as proposed by Agarwal et al. 2021, "Deep
Reinforcement Learning at the Edge of the Statistical Precipice" (arXiv 2108.13264). A design with shared seeds also
allows paired intervals and their power.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, stdtrit

Values = NDArray[np.float64]

NUM_RESAMPLES = 10_000
RESAMPLING_SEED = 20_260_606
"""Seed of every bootstrap, so that an interval is a function of the data alone."""
_OF_SEEDS, _OF_PROMPTS = (ord("s"),), (ord("p"),)
"""Keys of the weights of seeds and of prompts; strata have the characters of their number."""

_FEWEST_BEYOND = 10
"""Bootstrap samples that must lie beyond a bound for their quantile to estimate it."""


class Interval(NamedTuple):
    """An estimate and the bounds of its confidence interval, in the units of the data."""

    estimate: float
    low: float
    high: float


class Pair(NamedTuple):
    """Final values of two cells; row i of both has the same seed."""

    treatment: Values
    """``[seeds, prompts]`` or ``[seeds]``."""
    control: Values
    """Same shape as ``treatment``."""


def mean_interval(values: ArrayLike, num_resamples: int = NUM_RESAMPLES) -> Interval:
    """95 % bootstrap interval of the mean of runs, widened for small samples, see ``_deviate``.

    Args:
        values: ``[runs]``, at least 2.
        num_resamples: bootstrap samples.

    Raises:
        ValueError: fewer than 2 values.
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"shape {array.shape}: an interval needs at least 2 values")
    resampled = array[_draws(len(array), num_resamples)].mean(axis=-1)
    deviate = _deviate(0.95, [len(array)])
    return _interval(float(array.mean()), resampled, float(resampled.std()), deviate)


def paired_interval(treatment: ArrayLike, control: ArrayLike, confidence: float = 0.95) -> Interval:
    """Bootstrap interval of the mean difference ``treatment - control`` of runs that share seeds.

    Seeds are drawn with replacement and, independently, prompts, with one draw for all seeds: every seed is measured
    on the same prompts, so a prompt's effect is common to them (the pigeonhole bootstrap; Owen 2007, "The pigeonhole
    bootstrap", Annals of Applied Statistics 1(2)). It overestimates the variance, if anything. For few seeds it is
    widened, see ``_deviate``.

    Args:
        treatment: ``[seeds]``, or ``[seeds, prompts]`` to resample prompts as well.
        control: the same shape; row i has the seed of row i of ``treatment``.
        confidence: in (0, 1).

    Raises:
        ValueError: different shapes, or fewer than 2 seeds.
    """
    ours, theirs = np.asarray(treatment, dtype=float), np.asarray(control, dtype=float)
    if ours.shape != theirs.shape or ours.ndim not in (1, 2) or 0 in ours.shape:
        raise ValueError(f"shapes {ours.shape} and {theirs.shape}: pairs need equal [seeds] or [seeds, prompts]")
    if len(ours) < 2:
        raise ValueError("one seed has no interval: at least 2 are needed")
    differences = ours - theirs
    deviate = _deviate(confidence, [len(differences)])
    return _interval(float(differences.mean()), _resampled_means(differences), _bootstrap_error(differences), deviate)


def resampling_weights(counts: Sequence[int]) -> list[Values]:
    """Bootstrap weights of independent units, for any statistic that is a function of them; see ``Resampled``.

    Args:
        counts: size n of each stratum, at least 2; strata are resampled independently. Equal counts give equal
            weights, so that differences are paired.

    Returns:
        ``[1 + NUM_RESAMPLES, n]`` for each stratum; rows sum to 1. The first has equal weights: the sample itself.

    Raises:
        ValueError: no stratum, or one with fewer than 2 units.
    """
    if not counts or min(counts) < 2:
        raise ValueError(f"{list(counts)} units: a bootstrap needs strata of at least 2 units each")
    keys = [tuple(map(ord, str(number))) for number in range(len(counts))]
    return [np.vstack([np.full(n, 1 / n), _weights(n, key)]) for n, key in zip(counts, keys, strict=True)]


class Resampled(NamedTuple):
    """A statistic for each row of ``resampling_weights``, of which the first is its estimate; NaN where undefined."""

    values: Values
    counts: Sequence[int]
    """Units in each resampled stratum."""

    def interval(self, confidence: float = 0.95) -> Interval:
        """Interval like that of ``paired_interval``; its bounds are NaN if the statistic is undefined in a resample."""
        resampled = self.values[1:]
        return _interval(float(self.values[0]), resampled, float(resampled.std()), _deviate(confidence, self.counts))


def probability_of_improvement(treatment: ArrayLike, control: ArrayLike) -> float:
    """Probability that a random run of the treatment beats a random run of the control; .5 means no difference.

    It is the mean over pairs (i, j) of [x_i > y_j] + [x_i = y_j] / 2 (Agarwal et al. 2021, section 4.4; the
    Mann-Whitney U statistic divided by n m).

    Args:
        treatment: ``[n]``, n > 0.
        control: ``[m]``, m > 0.
    """
    difference = np.subtract.outer(np.asarray(treatment, dtype=float), np.asarray(control, dtype=float))
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def holm(p_values: ArrayLike) -> Values:
    """Adjust the p-values of a family of tests so that the chance of any false rejection is bounded.

    With p_(1) <= ... <= p_(m), adjusted p_(k) = min(1, max over j <= k of (m - j + 1) p_(j)) (Holm 1979, "A simple
    sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6(2)).

    Args:
        p_values: ``[m]`` in [0, 1].

    Returns:
        ``[m]``, in the order given.

    Raises:
        ValueError: a value outside [0, 1].
    """
    values = np.asarray(p_values, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("p-values must lie in [0, 1]")
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * values[order]))
    return adjusted


def minimum_detectable_effect(sd_of_differences: float, num_pairs: int) -> float:
    """Smallest true mean difference that a two-sided paired test at level .05 finds with probability .8.

    It is (t_{.975, n-1} + t_{.8, n-1}) sd / sqrt(n) (Bloom 1995, "Minimum detectable effects", Evaluation Review
    19(5), for the mean of n paired differences).

    Args:
        sd_of_differences: sample standard deviation of the paired differences, >= 0.
        num_pairs: n.

    Returns:
        The effect in the units of the differences; NaN for fewer than 2 pairs.
    """
    if num_pairs < 2:
        return math.nan
    degrees = num_pairs - 1
    reach = float(stdtrit(degrees, 0.975) + stdtrit(degrees, 0.8))
    return reach * sd_of_differences / math.sqrt(num_pairs)


def correlation(ours: Values, theirs: Values) -> float:
    """Pearson's r of pairs: var(X - Y) = var X + var Y - 2 r sd X sd Y.

    Args:
        ours: ``[pairs]``.
        theirs: the same shape.

    Returns:
        NaN below 3 pairs, or if a side does not vary.
    """
    varies = len(ours) > 2 and np.ptp(ours) > 0 and np.ptp(theirs) > 0
    return float(np.corrcoef(ours, theirs)[0, 1]) if varies else math.nan


def of_seeds(values: Values) -> Values:
    """Average ``[seeds, prompts]`` over prompts; ``[seeds]`` stays as it is."""
    return values if values.ndim == 1 else values.mean(axis=1)


def _deviate(confidence: float, sizes: Sequence[int]) -> float:
    """Distance of a bound from the estimate, in bootstrap standard errors, if the bootstrap distribution were normal.

    It is sqrt(n / (n - 1)) t_{(1 + confidence) / 2, n - 1} (Hesterberg 2015, "What Teachers Should Know About the
    Bootstrap", The American Statistician 69(4)). For normal data and n = 5, plain 95 % percentiles contain the mean
    84 % of the time, these 92 %. With several strata, n is the smallest and degrees of freedom are summed.
    """
    smallest, degrees = min(sizes), sum(sizes) - len(sizes)
    return math.sqrt(smallest / (smallest - 1)) * float(stdtrit(degrees, (1 + confidence) / 2))


def _interval(estimate: float, resampled: Values, error: float, deviate: float) -> Interval:
    """Bootstrap percentiles whose tail probability is that of a standard normal variable beyond ``deviate``.

    With few seeds, or at the high confidence of one claim among many, hardly any bootstrap sample lies beyond them.
    Then the bounds are estimate -+ deviate * bootstrap standard error: for seeds alone exactly Student's interval.
    """
    tail = float(ndtr(-deviate))
    if tail * len(resampled) < _FEWEST_BEYOND:
        return Interval(estimate, estimate - deviate * error, estimate + deviate * error)
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))


def _bootstrap_error(differences: Values) -> float:
    """Standard deviation of ``_resampled_means`` over all resamples, in closed form.

    For ``[n]`` it is sqrt(var / n), for ``[n, m]`` sqrt(var of seeds' means / n + var of prompts' means / m + mean
    square of the residuals / (n m)), with population variances.
    """
    if differences.ndim == 1:
        return math.sqrt(differences.var() / len(differences))
    of_seeds, of_prompts = differences.mean(axis=1), differences.mean(axis=0)
    left = differences - of_seeds[:, None] - of_prompts + differences.mean()
    count, prompts = differences.shape
    return math.sqrt(of_seeds.var() / count + of_prompts.var() / prompts + (left**2).mean() / (count * prompts))


def _resampled_means(differences: Values) -> Values:
    """Bootstrap means of ``[seeds]`` or ``[seeds, prompts]``, with multinomial counts of how often each is drawn."""
    means = _weights(len(differences), _OF_SEEDS) @ differences
    return means if means.ndim == 1 else (means * _weights(means.shape[1], _OF_PROMPTS)).sum(axis=1)


@lru_cache(maxsize=8)
def _draws(count: int, num_resamples: int) -> NDArray[np.int64]:
    """``[resamples, count]`` positions of the values that are drawn; cached, since drawing them is costly."""
    return np.random.default_rng(RESAMPLING_SEED).integers(count, size=(num_resamples, count))


@lru_cache(maxsize=8)
def _weights(count: int, key: tuple[int, ...]) -> Values:
    """``[resamples, count]`` weights of values in a bootstrap mean; independent for different keys."""
    generator = np.random.default_rng([RESAMPLING_SEED, *key])
    weights = generator.multinomial(count, np.full(count, 1 / count), size=NUM_RESAMPLES) / count
    weights.flags.writeable = False
    return weights
