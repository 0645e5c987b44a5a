"""Statistics equal what is computed by hand, by enumeration, or by tables."""

import math
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest

from analysis import statistics
from analysis.statistics import (
    detection_power,
    equivalence_p_value,
    holm,
    interquartile_mean,
    minimum_detectable_effect,
    one_sided_bounds,
    paired_correlation,
    paired_interval,
    paired_p_value,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
    t_distribution,
    t_quantile,
)


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end() -> None:
    assert interquartile_mean([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -50.0]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    # 7 // 4 = 1 value at each end.
    assert interquartile_mean([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 60.0]) == pytest.approx(3.0)
    assert interquartile_mean([7.0]) == 7.0
    by_row = interquartile_mean([[1.0, 2.0, 3.0, 100.0], [0.0, 10.0, 20.0, 30.0]], axis=1)
    assert by_row.tolist() == [2.5, 15.0]
    with pytest.raises(ValueError, match="at least one value"):
        interquartile_mean([])


def test_a_plain_interval_has_the_quantiles_of_all_possible_resamples() -> None:
    values = [0.0, 1.0, 5.0, 6.0]
    every_mean = [sum(drawn) / 4 for drawn in product(values, repeat=4)]
    interval = stratified_interval([values], statistics.mean, confidence=0.8, num_resamples=200_000, expand=False)
    assert interval.estimate == 3.0
    assert interval.low == np.quantile(every_mean, 0.1)
    assert interval.high == np.quantile(every_mean, 0.9)


def test_strata_are_resampled_each_on_its_own() -> None:
    # Without strata a resample might hold only values of one of them.
    interval = stratified_interval([[0.0, 0.0], [10.0, 10.0]], statistics.mean)
    assert interval == (5.0, 5.0, 5.0)
    with pytest.raises(ValueError, match="at least 2 values each"):
        stratified_interval([[0.0, 1.0], [2.0]])
    with pytest.raises(ValueError, match="at least 2 values each"):
        stratified_interval([])


def test_an_interval_is_the_same_each_time_and_scales_with_the_data() -> None:
    values = np.array([0.1, 0.4, 0.35, 0.8, 0.2, 0.5])
    first, second = stratified_interval([values]), stratified_interval([values])
    assert first == second
    assert stratified_interval([2 * values + 1]) == pytest.approx([2 * bound + 1 for bound in first])


def test_a_paired_interval_sees_only_differences() -> None:
    treatment, control = [0.9, 0.5, 0.7, 0.2, 0.6], [0.8, 0.4, 0.6, 0.1, 0.5]
    assert paired_interval(treatment, control) == pytest.approx((0.1, 0.1, 0.1))
    shifted = paired_interval([1.0, 2.0, 4.0], [0.0, 0.0, 0.0])
    assert shifted == paired_interval([11.0, 22.0, 34.0], [10.0, 20.0, 30.0])
    assert shifted.estimate == pytest.approx(7 / 3)
    assert shifted.low < 2 < 3 < shifted.high
    with pytest.raises(ValueError, match="at least 2"):
        paired_interval([1.0], [0.0])
    with pytest.raises(ValueError, match="pairs need equal"):
        paired_interval([1.0, 2.0], [0.0, 1.0, 2.0])


def test_the_expanded_interval_has_the_tails_of_students_t() -> None:
    values = np.random.default_rng(0).normal(size=40)
    zero = np.zeros(40)
    tail = NormalDist().cdf(-math.sqrt(40 / 39) * 2.0226909200367604)  # t of 39 degrees, .975
    expanded = paired_interval(values, zero)
    assert expanded == paired_interval(values, zero, confidence=1 - 2 * tail, expand=False)
    # By normal theory, mean +- t sd / sqrt(n).
    half = 2.0227 * values.std(ddof=1) / math.sqrt(40)
    assert (expanded.high - expanded.low) / 2 == pytest.approx(half, rel=0.04)


@pytest.mark.parametrize(("count", "confidence", "t"), [(2, 0.95, 12.7062), (3, 0.95, 4.3027), (10, 0.995, 3.6897)])
def test_where_no_resample_reaches_the_bounds_are_students(count: int, confidence: float, t: float) -> None:
    # Two values that agree must not make an interval without width around 0.
    values = np.random.default_rng(1).normal(size=count)
    half = t * values.std(ddof=1) / math.sqrt(count)
    interval = paired_interval(values, np.zeros(count), confidence)
    assert interval == pytest.approx((values.mean(), values.mean() - half, values.mean() + half), rel=1e-4)


def test_beyond_the_resamples_prompts_widen_the_bounds_too() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(4, 1)) + rng.normal(size=(1, 30)) + 0.1 * rng.normal(size=(4, 30))
    zero = np.zeros_like(values)
    by_resampling = np.std(statistics._resampled_means(values, 40_000))
    half = 3.1824 * math.sqrt(4 / 3) * by_resampling  # t of 3 degrees, .975
    interval = paired_interval(values, zero)
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.02)
    assert half > 1.05 * 3.1824 * values.mean(axis=1).std(ddof=1) / 2


def test_prompts_that_differ_widen_a_paired_interval() -> None:
    effect = np.array([0.0, 0.0, 0.0, 1.0])
    treatment = np.tile(effect, (6, 1))
    seeds_alone = paired_interval(treatment.mean(axis=1), np.zeros(6))
    assert seeds_alone == pytest.approx((0.25, 0.25, 0.25))
    both = paired_interval(treatment, np.zeros((6, 4)), expand=False)
    # All seeds see the same prompts: the mean is that of a binomial, 4 draws of probability 1/4.
    assert both == pytest.approx((0.25, 0.0, 0.75))


def test_the_p_value_is_the_level_at_which_the_interval_reaches_zero() -> None:
    rng = np.random.default_rng(3)
    treatment, control = rng.normal(0.4, 1, size=12), np.zeros(12)
    for expand in (False, True):
        p = paired_p_value(treatment, control, expand=expand)
        assert 0.01 < p < 0.9
        below = paired_interval(treatment, control, confidence=1 - 1.05 * p, expand=expand)
        above = paired_interval(treatment, control, confidence=1 - 0.95 * p, expand=expand)
        assert below.low > 0 > above.low
    assert paired_p_value(treatment, treatment) == 1.0
    assert paired_p_value([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]) == pytest.approx(
        0.07418, abs=1e-5
    )  # t = 3.464 of 2 degrees


def test_the_probability_of_improvement_counts_pairs_and_halves_ties() -> None:
    # 2 beats 1, ties with 2, loses to 3; 3 beats 1 and 2, ties with 3.
    assert probability_of_improvement([[2.0, 3.0]], [[1.0, 2.0, 3.0]]) == pytest.approx((1.5 + 2.5) / 6)
    assert probability_of_improvement([[2.0], [0.0]], [[1.0], [1.0]]) == 0.5
    with pytest.raises(ValueError, match="1 and 2 strata"):
        probability_of_improvement([[1.0]], [[1.0], [2.0]])
    with pytest.raises(ValueError, match="without a run"):
        probability_of_improvement([[]], [[1.0]])


def test_a_performance_profile_is_the_share_of_runs_above() -> None:
    profile = performance_profile([[0.2, 0.5], [0.5, 0.9]], [0.0, 0.2, 0.5, 0.7, 0.9])
    assert profile.tolist() == [1.0, 0.75, 0.25, 0.25, 0.0]
    with pytest.raises(ValueError, match="at least one score"):
        performance_profile([], [0.5])


def test_holm_multiplies_by_the_hypotheses_that_are_left() -> None:
    # Sorted: .01 x 4, .02 x 3, .03 x 2 = .06, .04 x 1 raised to .06.
    assert holm([0.04, 0.01, 0.03, 0.02]).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([1.2])


def test_students_t_has_the_tabulated_quantiles() -> None:
    # Degrees of freedom, probability, t: from the tables in textbooks.
    table = [(1, 0.975, 12.706), (2, 0.975, 4.303), (4, 0.975, 2.776), (19, 0.975, 2.093), (19, 0.8, 0.861)]
    for degrees, probability, t in [*table, (7, 0.95, 1.895), (120, 0.995, 2.617)]:
        assert t_quantile(probability, degrees) == pytest.approx(t, abs=6e-4)
        assert t_distribution(-t, degrees) == pytest.approx(1 - probability, abs=2e-4)
    assert t_quantile(0.5, 3) == pytest.approx(0, abs=1e-12)


def test_the_detectable_effect_is_that_of_the_t_test() -> None:
    # (2.093 + .861) x .03 / sqrt(20): about the .02 that the pilot asks 20 seeds for.
    assert minimum_detectable_effect(0.03, 20) == pytest.approx((2.0930 + 0.8610) * 0.03 / math.sqrt(20), rel=1e-4)
    assert minimum_detectable_effect(0.03, 80) < minimum_detectable_effect(0.03, 20) / 2
    with pytest.raises(ValueError, match="at least 2"):
        minimum_detectable_effect(0.03, 1)


def test_the_correlation_of_pairs() -> None:
    # Deviations (-1, 0, 1) and (-1, 1, 0): covariance 1 / sqrt(2 x 2).
    assert paired_correlation([1.0, 2.0, 3.0], [4.0, 6.0, 5.0]) == pytest.approx(0.5)
    assert math.isnan(paired_correlation([1.0, 2.0], [1.0, 2.0]))
    assert math.isnan(paired_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="as many of both"):
        paired_correlation([1.0, 2.0, 3.0], [1.0, 2.0])


def test_one_sided_bounds_hold_with_the_confidence_each() -> None:
    values = [0.1, 0.3, 0.2, 0.4, 0.0]
    mean, error = 0.2, np.std(values, ddof=1) / math.sqrt(5)
    bounds = one_sided_bounds(values, np.zeros(5), 0.999)  # beyond all resamples: Student's
    t = t_quantile(0.999, 4)
    assert bounds == pytest.approx((mean, mean - t * error, mean + t * error))


def test_equivalence_is_shown_where_the_bounds_lie_within_the_margin() -> None:
    rng = np.random.default_rng(4)
    treatment, control = rng.normal(0.02, 0.1, size=16), np.zeros(16)
    bounds = one_sided_bounds(treatment, control)
    widest = max(-bounds.low, bounds.high)
    assert equivalence_p_value(treatment, control, 1.05 * widest) < 0.05
    assert equivalence_p_value(treatment, control, 0.95 * widest) > 0.05
    assert equivalence_p_value(treatment + 1, control, 0.5) > 0.99  # a large difference is no equivalence
    with pytest.raises(ValueError, match="margin"):
        equivalence_p_value(treatment, control, 0)


def test_power_is_one_half_at_the_critical_difference_and_agrees_with_the_detectable_one() -> None:
    assert detection_power(t_quantile(0.95, 15) * 0.03 / 4, 0.03, 16) == pytest.approx(0.5)
    assert detection_power(0.0, 0.03, 16) == pytest.approx(0.05)
    found = minimum_detectable_effect(0.03, 16, alpha=0.1)  # one side of a two-sided test at .1
    assert detection_power(found, 0.03, 16) == pytest.approx(0.8)
    assert math.isnan(detection_power(math.nan, 0.03, 16))
    with pytest.raises(ValueError, match="2 that vary"):
        detection_power(0.1, 0.0, 16)
