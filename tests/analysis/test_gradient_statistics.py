"""Statistics of gradients equal what is computed by hand, and are free of the bias that they are made to avoid."""

import math

import numpy as np
import pytest

from analysis.gradients.estimates import (
    alignment,
    combined,
    cosines,
    cross_product,
    signal_to_noise,
    squared_norm,
    weighted_mean,
)
from analysis.statistics import Resampled, resampling_weights, t_quantile

EQUAL = np.full((1, 3), 1 / 3)


def test_products_of_a_sum_of_kinds() -> None:
    # g = 2 a - b with <a, a> = 3, <a, b> = 1, <b, b> = 5.
    assert combined(np.array([[3.0, 1.0], [1.0, 5.0]]), [2, -1]) == 4 * 3 - 2 * 2 * 1 + 5
    blocks = np.arange(8.0).reshape(2, 2, 1, 2)
    assert combined(blocks, [1, 0]).tolist() == [[0.0, 1.0]]


def test_cosines_of_single_gradients() -> None:
    # (3, 4) and (0, 2) with a direction (10, 0); a gradient of 0 has no direction.
    assert cosines([25.0, 4.0, 0.0], [30.0, 0.0, 0.0], 10.0).tolist() == [0.6, 0.0, 0.0]


def test_a_squared_norm_uses_different_blocks_alone() -> None:
    sums, counts = np.array([2.0, 4.0, 6.0]), [1, 2, 1]
    products = np.outer(sums, sums)
    expected = (2 * 4 + 2 * 6 + 4 * 6) / (1 * 2 + 1 * 1 + 2 * 1)
    assert squared_norm(products, counts, EQUAL) == pytest.approx(expected)
    products[np.diag_indices(3)] = 1e9
    assert squared_norm(products, counts, EQUAL) == pytest.approx(expected)
    drawn = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    assert squared_norm(products, counts, drawn) == pytest.approx([2 * 4 / 2, math.nan], nan_ok=True)


def test_signal_to_noise_of_two_gradients() -> None:
    # 1 and 3: the product of the two is 3, their unbiased variance 2.
    signal = squared_norm(np.outer([1.0, 3.0], [1.0, 3.0]), [1, 1], np.full((1, 2), 0.5))
    square = weighted_mean([1.0, 9.0], [1, 1], np.full((1, 2), 0.5))
    assert signal_to_noise(signal, square) == pytest.approx(3 / 2)
    # Without noise there is no ratio.
    assert math.isnan(signal_to_noise(signal, signal)[0])


def test_signal_and_noise_are_estimated_without_bias() -> None:
    generator = np.random.default_rng(0)
    num_sets, num_blocks, dimensions = 400, 10, 40
    mean = np.full(dimensions, 0.1)  # |E g|^2 = .4, tr Cov = 40
    gradients = mean + generator.standard_normal((num_sets, num_blocks, dimensions))
    equal, counts = np.full((1, num_blocks), 1 / num_blocks), np.ones(num_blocks)
    signals = np.array([squared_norm(g @ g.T, counts, equal)[0] for g in gradients])
    naive = [(g.mean(0) ** 2).sum() for g in gradients]
    assert signals.mean() == pytest.approx(0.4, abs=4 * signals.std() / math.sqrt(num_sets))
    assert np.mean(naive) == pytest.approx(0.4 + 40 / num_blocks, rel=0.05)
    squares = np.array([weighted_mean((g**2).sum(1), counts, equal)[0] for g in gradients])
    ratios = signal_to_noise(signals, squares)
    assert ratios.mean() == pytest.approx(0.01, abs=4 * ratios.std() / math.sqrt(num_sets))


def test_the_product_of_two_expected_gradients() -> None:
    # Means 4 = (2 + 4 + 6) / 3 and 5 = (10 + 5) / 3.
    products = np.outer([2.0, 4.0, 6.0], [10.0, 5.0])
    assert cross_product(products, [1, 1, 1], EQUAL, [2, 1], np.full((1, 2), 0.5)) == pytest.approx(4 * 5)
    one = cross_product(products, [1, 1, 1], np.array([[0.0, 0.0, 1.0]]), [2, 1], np.array([[0.0, 1.0]]))
    assert one == pytest.approx(6 * 5)


def test_alignment_is_a_cosine_and_needs_signal_on_both_sides() -> None:
    assert alignment(np.array([3.0]), np.array([9.0]), np.array([4.0])) == pytest.approx(0.5)
    for ours, theirs in ((-9.0, 4.0), (9.0, 0.0), (-9.0, -4.0)):
        assert math.isnan(alignment(np.array([3.0]), np.array([ours]), np.array([theirs]))[0])


def test_a_mean_over_blocks_of_different_sizes() -> None:
    assert weighted_mean([4.0, 6.0, 0.0], [1, 3, 0], EQUAL) == pytest.approx(2.5)
    assert math.isnan(weighted_mean([4.0, 6.0, 0.0], [1, 3, 0], np.array([[0.0, 0.0, 1.0]]))[0])


# --- Intervals of such statistics


def test_weights_are_the_sample_itself_and_then_resamples_of_it() -> None:
    [weights] = resampling_weights([5], num_resamples=1000)
    assert weights.shape == (1001, 5)
    assert weights[0].tolist() == [0.2] * 5
    assert weights.sum(axis=1) == pytest.approx(1)
    # Whole numbers of draws, on average one each.
    assert (weights * 5) == pytest.approx((weights * 5).round())
    assert weights[1:].mean(axis=0) == pytest.approx([0.2] * 5, abs=0.02)
    with pytest.raises(ValueError, match="at least 2 units"):
        resampling_weights([5, 1])
    with pytest.raises(ValueError, match="at least 2 units"):
        resampling_weights([])


def test_an_interval_of_a_weighted_mean_is_an_expanded_percentile_interval() -> None:
    values = np.random.default_rng(1).standard_normal(20)
    [weights] = resampling_weights([20])
    interval = Resampled(weights @ values, [20]).interval()
    assert interval.estimate == pytest.approx(values.mean())
    half = t_quantile(0.975, 19) * values.std(ddof=1) / math.sqrt(20)
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.06)


def test_strata_are_resampled_independently() -> None:
    ours, theirs = resampling_weights([8, 8])
    values = np.arange(8.0)
    both = Resampled(ours @ values - theirs @ values, [8, 8]).interval()
    one = Resampled(ours @ values, [8]).interval()
    assert both.estimate == 0
    # Drawn alike, the difference would be 0 in every resample.
    assert both.high - both.low == pytest.approx(math.sqrt(2) * (one.high - one.low), rel=0.1)


def test_differences_of_the_same_counts_are_paired() -> None:
    values = np.random.default_rng(2).standard_normal(10)
    found = []
    for own in (values + 0.5, values):
        [weights] = resampling_weights([10])
        found.append(Resampled(weights @ own, [10]))
    assert found[0].minus(found[1]).interval() == pytest.approx((0.5, 0.5, 0.5))


def test_an_undefined_resample_leaves_the_bounds_undefined() -> None:
    interval = Resampled(np.array([1.0, 2.0, math.nan]), [2]).interval()
    assert interval.estimate == 1.0
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
