"""Statistics equal what is computed by hand or by tables."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis import statistics
from analysis.statistics import (
    NUM_RESAMPLES,
    Resampled,
    correlation,
    holm,
    mean_interval,
    minimum_detectable_effect,
    paired_interval,
    probability_of_improvement,
)


def test_a_paired_interval_sees_only_differences() -> None:
    treatment, control = [0.9, 0.5, 0.7, 0.2, 0.6], [0.8, 0.4, 0.6, 0.1, 0.5]
    assert paired_interval(treatment, control) == pytest.approx((0.1, 0.1, 0.1))
    shifted = paired_interval([1.0, 2.0, 4.0], [0.0, 0.0, 0.0])
    assert shifted == paired_interval([11.0, 22.0, 34.0], [10.0, 20.0, 30.0])
    assert shifted.estimate == pytest.approx(7 / 3)
    with pytest.raises(ValueError, match="at least 2"):
        paired_interval([1.0], [0.0])
    for treatment, control in (([1.0, 2.0], [0.0, 1.0, 2.0]), (np.zeros((3, 0)), np.zeros((3, 0)))):
        with pytest.raises(ValueError, match="pairs need equal"):
            paired_interval(treatment, control)


@pytest.mark.parametrize("interval_of", [mean_interval, lambda values: paired_interval(values, np.zeros(40))])
def test_an_interval_of_many_runs_is_students(interval_of) -> None:
    values = np.random.default_rng(0).normal(size=40)
    expected = stats.t.interval(0.95, 39, values.mean(), values.std(ddof=1) / math.sqrt(40))
    found = interval_of(values)
    assert found[1:] == pytest.approx(expected, abs=0.02)
    assert found.estimate == pytest.approx(values.mean())


@pytest.mark.parametrize(("count", "confidence", "t"), [(2, 0.95, 12.7062), (3, 0.95, 4.3027), (10, 0.995, 3.6897)])
def test_where_no_resample_reaches_the_bounds_are_students(count: int, confidence: float, t: float) -> None:
    # Two values that agree must not make an interval without width around 0.
    values = np.random.default_rng(1).normal(size=count)
    half = t * values.std(ddof=1) / math.sqrt(count)
    interval = paired_interval(values, np.zeros(count), confidence)
    assert interval == pytest.approx((values.mean(), values.mean() - half, values.mean() + half), rel=1e-4)


def test_prompts_that_differ_widen_a_paired_interval() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(4, 1)) + rng.normal(size=(1, 30)) + 0.1 * rng.normal(size=(4, 30))
    half = 3.1824 * math.sqrt(4 / 3) * np.std(statistics._resampled_means(values))  # t of 3 degrees, .975
    interval = paired_interval(values, np.zeros_like(values))
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.02)
    assert half > 1.05 * 3.1824 * values.mean(axis=1).std(ddof=1) / 2
    # All seeds see the same prompts, of which one differs: seeds alone would have an interval without width.
    same = np.tile([0.0, 0.0, 0.0, 1.0], (6, 1))
    interval = paired_interval(same, np.zeros((6, 4)))
    assert interval.low < 0.1 < 0.6 < interval.high


def test_the_error_in_closed_form_is_that_of_resampling_seeds_and_prompts() -> None:
    # As many prompts as seeds: they must still be drawn independently.
    rng, effects = np.random.default_rng(3), 0.3 * np.arange(6)
    values = effects[:, None] + effects + rng.normal(size=(6, 6))
    assert np.std(statistics._resampled_means(values)) == pytest.approx(statistics._bootstrap_error(values), rel=0.03)


def test_strata_add_their_degrees_of_freedom() -> None:
    values = np.random.default_rng(4).normal(size=1 + NUM_RESAMPLES)
    interval = Resampled(values, [4, 6]).interval(0.9999)
    half = math.sqrt(4 / 3) * stats.t.ppf(0.99995, 3 + 5) * values[1:].std()
    assert (interval.high - interval.low) / 2 == pytest.approx(half)


def test_the_probability_of_improvement_counts_pairs_and_halves_ties() -> None:
    # 2 beats 1, ties with 2, loses to 3; 3 beats 1 and 2, ties with 3.
    assert probability_of_improvement([2.0, 3.0], [1.0, 2.0, 3.0]) == pytest.approx((1.5 + 2.5) / 6)


def test_holm_multiplies_by_the_hypotheses_that_are_left() -> None:
    # Sorted: .01 x 4, .02 x 3, .03 x 2 = .06, .04 x 1 raised to .06.
    assert holm([0.04, 0.01, 0.03, 0.02]).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([1.2])


def test_the_correlation_of_pairs_is_pearsons() -> None:
    # Deviations (-1, 0, 1) and (-1, 1, 0): covariance 1 / sqrt(2 x 2).
    three, other = np.array([1.0, 2.0, 3.0]), np.array([4.0, 6.0, 5.0])
    assert correlation(three, other) == pytest.approx(0.5)
    assert math.isnan(correlation(three[:2], other[:2]))
    assert math.isnan(correlation(np.ones(3), other))


def test_the_detectable_difference_is_that_of_tables() -> None:
    # (2.093 + .861) x .03 / sqrt(20): about the .02 that the pilot asks 20 seeds for.
    assert minimum_detectable_effect(0.03, 20) == pytest.approx((2.0930 + 0.8610) * 0.03 / math.sqrt(20), rel=1e-4)
    assert math.isnan(minimum_detectable_effect(0.03, 1))
