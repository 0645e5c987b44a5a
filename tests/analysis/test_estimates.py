"""Statistics of gradients equal what is computed by hand, and are free of the bias that they are made to avoid."""

import math

import numpy as np
import pytest

from analysis.estimates import (
    alignment,
    cross_product,
    signal_to_noise,
    squared_norm,
    weighted_mean,
)
from analysis.statistics import Resampled, resampling_weights

EQUAL = np.full((1, 3), 1 / 3)
HALF = np.full((1, 2), 0.5)


def array(*values: float) -> np.ndarray:
    return np.array(values)


def test_a_squared_norm_uses_different_blocks_alone() -> None:
    sums, counts = array(2.0, 4.0, 6.0), array(1, 2, 1)
    products = np.outer(sums, sums)
    products[np.diag_indices(3)] = 1e9
    expected = (2 * 4 + 2 * 6 + 4 * 6) / (1 * 2 + 1 * 1 + 2 * 1)
    assert squared_norm(products, counts, EQUAL) == pytest.approx(expected)
    drawn = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    assert squared_norm(products, counts, drawn) == pytest.approx([2 * 4 / 2, math.nan], nan_ok=True)


def test_ratios_need_signal_on_both_sides() -> None:
    # 1 and 3: the product of the two is 3, their unbiased variance 2.
    signal = squared_norm(np.outer([1.0, 3.0], [1.0, 3.0]), array(1, 1), HALF)
    square = weighted_mean(array(1.0, 9.0), array(1, 1), HALF)
    assert signal_to_noise(signal, square) == pytest.approx(3 / 2)
    # Without noise there is no ratio.
    assert math.isnan(signal_to_noise(signal, signal)[0])
    assert alignment(array(3.0), array(9.0), array(4.0)) == pytest.approx(0.5)
    for ours, theirs in ((-9.0, 4.0), (9.0, 0.0), (-9.0, -4.0)):
        assert math.isnan(alignment(array(3.0), array(ours), array(theirs))[0])


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


def test_products_and_means_are_over_blocks_of_different_sizes() -> None:
    # Means 4 = (2 + 4 + 6) / 3 and 5 = (10 + 5) / 3.
    products, counts = np.outer([2.0, 4.0, 6.0], [10.0, 5.0]), (array(1, 1, 1), array(2, 1))
    assert cross_product(products, counts[0], EQUAL, counts[1], HALF) == pytest.approx(4 * 5)
    one = cross_product(products, counts[0], np.array([[0.0, 0.0, 1.0]]), counts[1], np.array([[0.0, 1.0]]))
    assert one == pytest.approx(6 * 5)
    sums, sizes = array(4.0, 6.0, 0.0), array(1, 3, 0)
    assert weighted_mean(sums, sizes, EQUAL) == pytest.approx(2.5)
    assert math.isnan(weighted_mean(sums, sizes, np.array([[0.0, 0.0, 1.0]]))[0])


# --- Intervals of such statistics


def test_weights_are_the_sample_itself_and_then_resamples_of_it() -> None:
    [weights] = resampling_weights([5])
    assert weights[0].tolist() == [0.2] * 5
    assert weights.sum(axis=1) == pytest.approx(1)
    # Whole numbers of draws, on average one each.
    assert (weights * 5) == pytest.approx((weights * 5).round())
    assert weights[1:].mean(axis=0) == pytest.approx([0.2] * 5, abs=0.02)
    assert len({one.tobytes() for one in resampling_weights([4] * 12)}) == 12  # each stratum has its own
    with pytest.raises(ValueError, match="at least 2 units"):
        resampling_weights([5, 1])


def test_strata_are_resampled_independently_and_an_undefined_resample_leaves_no_bounds() -> None:
    ours, theirs = resampling_weights([8, 8])
    values = np.arange(8.0)
    both = Resampled(ours @ values - theirs @ values, [8, 8]).interval()
    one = Resampled(ours @ values, [8]).interval()
    assert both.estimate == 0
    # Drawn alike, the difference would be 0 in every resample.
    assert both.high - both.low == pytest.approx(math.sqrt(2) * (one.high - one.low), rel=0.1)
    estimate, *bounds = Resampled(array(1.0, 2.0, math.nan), [2]).interval()
    assert estimate == 1.0
    assert np.isnan(bounds).all()
