"""Statistics of small numbers of seeds: pure functions on arrays; the same arrays give the same numbers.

Runs are compared the way Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(arXiv 2108.13264), propose: interquartile means, stratified bootstrap intervals, probabilities of improvement and
performance profiles. To these come what a design with shared seeds allows: paired intervals and their power.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]

NUM_RESAMPLES = 10_000
RESAMPLING_SEED = 20_260_606
"""Of every bootstrap, so that an interval is a function of the data alone."""

_FEWEST_BEYOND = 10
"""Bootstrap samples that must lie beyond a bound for their quantile to tell it."""


class Interval(NamedTuple):
    """An estimate and the bounds of its confidence interval, in the units of the data."""

    estimate: float
    low: float
    high: float


def mean(values: ArrayLike, axis: int | None = None) -> Values:
    """Arithmetic mean, as a statistic for ``stratified_interval``."""
    return np.asarray(np.asarray(values, dtype=float).mean(axis=axis))


def interquartile_mean(values: ArrayLike, axis: int | None = None) -> Values:
    """Mean of the middle half: floor(n / 4) lowest and as many highest values are left out.

    As robust as a median against single odd runs, and less noisy (Agarwal et al. 2021, section 4.3; a trimmed mean
    with a share of 1/4 at each end).

    Args:
        values: any shape, finite, not empty along ``axis``.
        axis: that is averaged away; None for all values together.

    Raises:
        ValueError: there is no value.
    """
    array = np.asarray(values, dtype=float)
    if axis is None:
        array, axis = array.ravel(), 0
    count = array.shape[axis]
    if count == 0:
        raise ValueError("an interquartile mean needs at least one value")
    cut = count // 4
    return np.asarray(np.sort(array, axis=axis).take(range(cut, count - cut), axis=axis).mean(axis=axis))


def stratified_interval(
    strata: Sequence[ArrayLike],
    statistic: Callable[..., Values] = interquartile_mean,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    expand: bool = True,
) -> Interval:
    """Bootstrap interval of a statistic of all values, runs being resampled within each stratum.

    Args:
        strata: one array of runs for each stratum (a method, a task); every stratum has at least 2 values.
        statistic: of the pooled values along an axis, called as ``statistic(array, axis=-1)``.
        confidence: in (0, 1).
        num_resamples: bootstrap samples.
        expand: widen the percentiles for the few values, see ``_deviate``; False for the plain percentile interval.

    Raises:
        ValueError: no stratum, or one with fewer than 2 values.
    """
    arrays = [_one_dimensional(stratum) for stratum in strata]
    if not arrays or min(map(len, arrays)) < 2:
        raise ValueError("a stratified interval needs strata of at least 2 values each")
    drawn = [a[of_a] for a, of_a in zip(arrays, _draws(tuple(map(len, arrays)), num_resamples), strict=True)]
    resampled = statistic(np.concatenate(drawn, axis=1), axis=-1)
    estimate = float(statistic(np.concatenate(arrays), axis=-1))
    deviate = _deviate(confidence, [len(a) for a in arrays], expand)
    return _interval(estimate, resampled, float(resampled.std()), deviate)


def paired_interval(
    treatment: ArrayLike,
    control: ArrayLike,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    expand: bool = True,
) -> Interval:
    """Bootstrap interval of the mean difference ``treatment - control`` of runs that share seeds.

    Seeds are drawn with replacement, and independently the prompts, one draw for all seeds: every seed is measured
    on the same prompts, so a prompt's effect is common to them (the pigeonhole bootstrap; Owen 2007, "The pigeonhole
    bootstrap", Annals of Applied Statistics 1(2)). It errs towards a larger variance.

    Args:
        treatment: ``[seeds]``, or ``[seeds, prompts]`` to resample prompts as well.
        control: the same shape; row i has the seed of row i of ``treatment``.
        confidence: in (0, 1).
        num_resamples: bootstrap samples.
        expand: widen the percentiles for the few seeds, see ``_deviate``.

    Raises:
        ValueError: different shapes, or fewer than 2 seeds.
    """
    differences = _paired(treatment, control)
    resampled = _resampled_means(differences, num_resamples)
    deviate = _deviate(confidence, [len(differences)], expand)
    return _interval(float(differences.mean()), resampled, _bootstrap_error(differences), deviate)


def paired_p_value(
    treatment: ArrayLike, control: ArrayLike, num_resamples: int = NUM_RESAMPLES, expand: bool = True
) -> float:
    """Two-sided p-value of no difference: 1 - the confidence at which ``paired_interval`` just reaches 0.

    With q the smaller share of bootstrap means on one side of 0, and z the deviate beyond which a normal variable has
    that share, p = 2 q; expanded, p = 2 T_{n-1}(-z sqrt((n - 1) / n)), the inverse of ``_deviate``. Where too few
    bootstrap means lie there to tell q, z = |mean| / bootstrap standard error.

    Args:
        treatment: see ``paired_interval``.
        control: see ``paired_interval``.
        num_resamples: bootstrap samples.
        expand: as in the interval it belongs to.

    Raises:
        ValueError: different shapes, or fewer than 2 seeds.
    """
    differences = _paired(treatment, control)
    resampled = _resampled_means(differences, num_resamples)
    beyond = int(min((resampled <= 0).sum(), (resampled >= 0).sum()))
    if 2 * beyond >= num_resamples:
        return 1.0
    if beyond >= _FEWEST_BEYOND:
        deviate = -NormalDist().inv_cdf(beyond / num_resamples)
    else:
        error = _bootstrap_error(differences)
        deviate = abs(float(differences.mean())) / error if error else math.inf
    if not expand:
        return 2 * NormalDist().cdf(-deviate)
    count = len(differences)
    return 2 * t_distribution(-deviate * math.sqrt((count - 1) / count), count - 1)


def one_sided_bounds(treatment: ArrayLike, control: ArrayLike, confidence: float = 0.95) -> Interval:
    """Lower and upper bound of the mean difference of runs that share seeds, each of which holds with ``confidence``.

    Together they are ``paired_interval`` at 2 confidence - 1. One of them judges a claim that has a direction; both
    within a margin are two one-sided tests of equivalence.

    Args:
        treatment: see ``paired_interval``.
        control: see ``paired_interval``.
        confidence: of either bound, in (.5, 1).

    Raises:
        ValueError: different shapes, or fewer than 2 seeds.
    """
    return paired_interval(treatment, control, 2 * confidence - 1)


def equivalence_p_value(treatment: ArrayLike, control: ArrayLike, margin: float) -> float:
    """p-value of "the mean difference is at least ``margin`` in size": the larger of two one-sided tests.

    p = max(P(no more than -margin), P(no less than margin)) (Schuirmann 1987, "A comparison of the two one-sided tests
    procedure and the power approach", Journal of Pharmacokinetics and Biopharmaceutics 15(6)). Each is half of
    ``paired_p_value`` of the shifted difference. Below 1 - confidence where ``one_sided_bounds`` lie within the margin.

    Args:
        treatment: see ``paired_interval``.
        control: see ``paired_interval``.
        margin: above 0, in the units of the data.

    Raises:
        ValueError: a margin that is not above 0, different shapes, or fewer than 2 seeds.
    """
    if not margin > 0:
        raise ValueError(f"margin {margin}: must be above 0")
    differences = _paired(treatment, control)
    zero = np.zeros_like(differences)
    inside = (margin + differences, margin - differences)
    halves = [(paired_p_value(side, zero) / 2, float(side.mean()) > 0) for side in inside]
    return max(half if is_inside else 1 - half for half, is_inside in halves)


def resampling_weights(counts: Sequence[int], num_resamples: int = NUM_RESAMPLES) -> list[Values]:
    """Weights of independent units, for the bootstrap of any statistic that is a function of them; see ``Resampled``.

    Args:
        counts: n of each stratum, at least 2; strata are resampled independently.
        num_resamples: bootstrap samples. The same counts have the same ones, so that differences are paired.

    Returns:
        For each stratum ``[1 + resamples, n]``; rows sum to 1. The first is of equal weights: the sample itself.

    Raises:
        ValueError: no stratum, or one with fewer than 2 units.
    """
    if not counts or min(counts) < 2:
        raise ValueError(f"{list(counts)} units: a bootstrap needs strata of at least 2 units each")
    drawn = [_weights(count, num_resamples, str(number)) for number, count in enumerate(counts)]
    return [np.vstack([np.full(shares.shape[1], 1 / shares.shape[1]), shares]) for shares in drawn]


class Resampled(NamedTuple):
    """A statistic for each row of ``resampling_weights``, the first being its estimate; NaN where it is not defined."""

    values: Values
    counts: Sequence[int]
    """Units in each stratum that was resampled."""

    def minus(self, other: "Resampled") -> "Resampled":
        """The paired difference of two statistics of the same weights."""
        return Resampled(self.values - other.values, self.counts)

    def interval(self, confidence: float = 0.95) -> Interval:
        """As ``paired_interval`` has it, widened for few units; NaN bounds if it was undefined in any resample."""
        resampled = self.values[1:]
        deviate = _deviate(confidence, self.counts, expand=True)
        return _interval(float(self.values[0]), resampled, float(resampled.std()), deviate)


def intraclass_correlation(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Share of the variance of single values that lies between units, one-way random effects, ICC(1).

    With n units of k values each, unit means m_i and unit variances s_i^2: MSB = k var(m), MSW = mean(s_i^2), and
    (MSB - MSW) / (MSB + (k - 1) MSW) (Shrout and Fleiss 1979, "Intraclass correlations", Psychological Bulletin 86(2)).
    The interval is a bootstrap of units, for the values need not be normal; NaN if all values are equal.

    Args:
        values: ``[units, k]``, at least 2 of each.
        confidence: in (0, 1).

    Raises:
        ValueError: fewer than 2 units, or than 2 values of each.
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 2 or min(array.shape) < 2:
        raise ValueError(f"{array.shape}: an intraclass correlation needs at least 2 units of at least 2 values each")
    units, count = array.shape
    [weights] = resampling_weights([units])
    means = array.mean(axis=1)
    between = count * units / (units - 1) * (weights @ means**2 - (weights @ means) ** 2)
    within = weights @ array.var(axis=1, ddof=1)
    with np.errstate(invalid="ignore"):
        return Resampled((between - within) / (between + (count - 1) * within), [units]).interval(confidence)


def probability_of_improvement(treatment: Sequence[ArrayLike], control: Sequence[ArrayLike]) -> float:
    """Probability that a random run of the treatment beats a random run of the control; .5 is no difference.

    P(X > Y) = mean over strata of mean over pairs (i, j) of [x_i > y_j] + [x_i = y_j] / 2 (Agarwal et al. 2021,
    section 4.4; a stratum's term is the Mann-Whitney U statistic over n m).

    Args:
        treatment: one array of runs for each stratum.
        control: the same number of strata; the runs need not be as many.

    Raises:
        ValueError: no stratum, an empty one, or different numbers of strata.
    """
    if not treatment or len(treatment) != len(control):
        raise ValueError(f"{len(treatment)} and {len(control)} strata: needs equally many, at least one")
    terms = []
    for ours, theirs in zip(map(_one_dimensional, treatment), map(_one_dimensional, control), strict=True):
        if not len(ours) or not len(theirs):
            raise ValueError("a stratum without a run has no probability of improvement")
        difference = ours[:, None] - theirs
        terms.append(float((difference > 0).mean() + (difference == 0).mean() / 2))
    return sum(terms) / len(terms)


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> Values:
    """Share of runs that score above each threshold: F(tau) = mean over all runs of [score > tau].

    The run-score distribution of Agarwal et al. 2021, section 4.2 (after Dolan and More 2002).

    Args:
        scores: any shape, such as ``[runs, tasks]``.
        thresholds: ``[T]``.

    Returns:
        ``[T]`` in [0, 1], falling where thresholds rise.

    Raises:
        ValueError: there is no score.
    """
    flat = np.sort(np.asarray(scores, dtype=float).ravel())
    if not len(flat):
        raise ValueError("a performance profile needs at least one score")
    return 1 - np.searchsorted(flat, np.asarray(thresholds, dtype=float), side="right") / len(flat)


def holm(p_values: ArrayLike) -> Values:
    """p-values of a family adjusted so that the chance of any false rejection is bounded.

    With p_(1) <= ... <= p_(m): adjusted p_(k) = min(1, max over j <= k of (m - j + 1) p_(j)) (Holm 1979, "A simple
    sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6(2)).

    Args:
        p_values: ``[m]`` in [0, 1].

    Returns:
        ``[m]``, in the order given.

    Raises:
        ValueError: a value outside [0, 1].
    """
    values = _one_dimensional(p_values)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("p-values must lie in [0, 1]")
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * values[order]))
    return adjusted


def minimum_detectable_effect(
    sd_of_differences: float, num_pairs: int, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Smallest true mean difference that a two-sided paired test finds with probability ``power``.

    (t_{1 - alpha/2, n-1} + t_{power, n-1}) sd / sqrt(n) (Bloom 1995, "Minimum detectable effects", Evaluation Review
    19(5), for the mean of n paired differences).

    Args:
        sd_of_differences: sample standard deviation of the paired differences, >= 0.
        num_pairs: n, at least 2.
        alpha: level of the test, in (0, 1).
        power: in (0, 1).

    Returns:
        In the units of the differences.

    Raises:
        ValueError: fewer than 2 pairs.
    """
    if num_pairs < 2:
        raise ValueError(f"{num_pairs} pair(s): a detectable effect needs at least 2")
    degrees = num_pairs - 1
    return (t_quantile(1 - alpha / 2, degrees) + t_quantile(power, degrees)) * sd_of_differences / math.sqrt(num_pairs)


def detection_power(effect: float, sd_of_differences: float, num_pairs: int, alpha: float = 0.05) -> float:
    """Probability that a one-sided paired test finds a true mean difference.

    T_{n-1}(effect sqrt(n) / sd - t_{1-alpha, n-1}), as ``minimum_detectable_effect`` has it for two sides.

    Args:
        effect: true mean difference; NaN has no power, which is NaN.
        sd_of_differences: sample standard deviation of the paired differences, above 0.
        num_pairs: n, at least 2.
        alpha: level of the test, in (0, 1).

    Raises:
        ValueError: fewer than 2 pairs, or differences that do not vary.
    """
    if num_pairs < 2 or not sd_of_differences > 0:
        raise ValueError(f"{num_pairs} pair(s), deviation {sd_of_differences}: power needs 2 that vary")
    if math.isnan(effect):
        return math.nan
    degrees = num_pairs - 1
    shift = effect * math.sqrt(num_pairs) / sd_of_differences
    return t_distribution(shift - t_quantile(1 - alpha, degrees), degrees)


def paired_correlation(treatment: ArrayLike, control: ArrayLike) -> float:
    """Pearson's r between runs that share seeds: what pairing gains, since var(X - Y) = var X + var Y - 2 r sd X sd Y.

    Args:
        treatment: ``[seeds]``.
        control: ``[seeds]``, in the order of ``treatment``.

    Returns:
        In [-1, 1]; NaN for fewer than 3 seeds or where a side does not vary.

    Raises:
        ValueError: different lengths.
    """
    ours, theirs = _one_dimensional(treatment), _one_dimensional(control)
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} runs: pairs need as many of both")
    if len(ours) < 3 or not np.ptp(ours) or not np.ptp(theirs):
        return math.nan
    return float(np.corrcoef(ours, theirs)[0, 1])


def t_distribution(t: float, degrees: int) -> float:
    """P(T <= t) of Student's t for whole degrees of freedom >= 1 (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
    for k in range(2 + odd, degrees + 1, 2):
        total += term
        term *= (k - 1) / k * math.cos(angle) ** 2
    within = (angle + math.sin(angle) * total) * 2 / math.pi if odd else math.sin(angle) * total
    return (1 + within) / 2


@lru_cache(maxsize=256)
def t_quantile(probability: float, degrees: int) -> float:
    """The t with ``t_distribution(t, degrees) == probability``, which lies in (0, 1)."""
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    low, high = 0.0, 1.0
    while t_distribution(high, degrees) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_distribution(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _deviate(confidence: float, sizes: Sequence[int], expand: bool) -> float:
    """How many standard errors a bound is from the estimate, were the bootstrap distribution normal.

    Expanded, sqrt(n / (n - 1)) t_{(1 + confidence) / 2, n - 1} (Hesterberg 2015, "What Teachers Should Know About the
    Bootstrap", The American Statistician 69(4)). With normal data and n = 5, plain 95 % percentiles hold the mean 84 %
    of the time, these 92 %. Of several strata: the smallest n, all degrees of freedom.
    """
    if not expand:
        return NormalDist().inv_cdf((1 + confidence) / 2)
    smallest, degrees = min(sizes), sum(sizes) - len(sizes)
    return math.sqrt(smallest / (smallest - 1)) * t_quantile((1 + confidence) / 2, degrees)


def _interval(estimate: float, resampled: Values, error: float, deviate: float) -> Interval:
    """Percentiles of the bootstrap distribution beyond which a normal variable has what lies beyond ``deviate``.

    With few seeds, or at the high confidence of one claim among many, that is beyond every bootstrap sample. Then the
    bounds are estimate -+ deviate * bootstrap standard error: for seeds alone exactly Student's interval.
    """
    tail = NormalDist().cdf(-deviate)
    if tail * len(resampled) < _FEWEST_BEYOND:
        return Interval(estimate, estimate - deviate * error, estimate + deviate * error)
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))


def _bootstrap_error(differences: Values) -> float:
    """Standard deviation of ``_resampled_means`` over all resamples, in closed form.

    Of ``[n]``: sqrt(var / n). Of ``[n, m]``: sqrt(var of seeds' means / n + var of prompts' means / m + mean square of
    what is left / (n m)), all population variances.
    """
    if differences.ndim == 1:
        return math.sqrt(differences.var() / len(differences))
    of_seeds, of_prompts = differences.mean(axis=1), differences.mean(axis=0)
    left = differences - of_seeds[:, None] - of_prompts + differences.mean()
    count, prompts = differences.shape
    return math.sqrt(of_seeds.var() / count + of_prompts.var() / prompts + (left**2).mean() / (count * prompts))


def _resampled_means(differences: Values, num_resamples: int) -> Values:
    """Bootstrap means of ``[seeds]`` or ``[seeds, prompts]``; how often each is drawn is multinomial."""
    means = _weights(len(differences), num_resamples, "seeds") @ differences
    return means if means.ndim == 1 else (means * _weights(means.shape[1], num_resamples, "prompts")).sum(axis=1)


@lru_cache(maxsize=8)
def _draws(counts: Sequence[int], num_resamples: int) -> tuple[NDArray[np.int64], ...]:
    """For each stratum ``[resamples, count]``: positions of the values that are drawn, the costly part."""
    generator = np.random.default_rng(RESAMPLING_SEED)
    return tuple(generator.integers(count, size=(num_resamples, count)) for count in counts)


@lru_cache(maxsize=8)
def _weights(count: int, num_resamples: int, of: str) -> Values:
    """``[resamples, count]``: shares that the drawn ones have in a bootstrap mean; independent for each ``of``."""
    generator = np.random.default_rng([RESAMPLING_SEED, ord(of[0])])
    weights = generator.multinomial(count, np.full(count, 1 / count), size=num_resamples) / count
    weights.flags.writeable = False
    return weights


def _paired(treatment: ArrayLike, control: ArrayLike) -> Values:
    ours, theirs = np.asarray(treatment, dtype=float), np.asarray(control, dtype=float)
    if ours.shape != theirs.shape or ours.ndim not in (1, 2) or 0 in ours.shape:
        raise ValueError(f"shapes {ours.shape} and {theirs.shape}: pairs need equal [seeds] or [seeds, prompts]")
    if len(ours) < 2:
        raise ValueError("one seed has no interval: at least 2 are needed")
    return ours - theirs


def _one_dimensional(values: ArrayLike) -> Values:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1:
        raise ValueError(f"shape {array.shape}: must have one dimension")
    return array
