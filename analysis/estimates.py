"""Statistics of gradients, from their inner products alone: pure functions on arrays.

A gradient g of one update has the expectation E g and the covariance Cov g. What is estimated of them:

- ``squared_norm``: |E g|^2. The square of a mean's length would be too large by tr Cov / n; products of independent
  gradients are not.
- ``signal_to_noise``: |E g|^2 / tr Cov g: a mean of n such gradients has n times as much. 1 / it is how many updates
  must be averaged before signal and noise are equal.
- ``alignment``: cosine between E g and another expected gradient: 1 where the updates have no bias in direction,
  however noisy they are.

Blocks are sums of gradients that are independent of those of other blocks, and ``weights`` ``[resamples, blocks]`` are
those of ``statistics.resampling_weights``. Products of a block with itself are never used: a resample may hold a block
twice, but no gradient is independent of itself. Where nothing was drawn that defines a statistic it is NaN.
"""

import numpy as np

from analysis.statistics import Values


def squared_norm(products: Values, counts: Values, weights: Values) -> Values:
    """|E g|^2 = sum over a != b of w_a w_b <S_a, S_b> / sum over a != b of w_a w_b n_a n_b.

    Unbiased for equal weights, so that it may be negative where the signal is lost in the noise.

    Args:
        products: ``[blocks, blocks]`` <S_a, S_b> of sums of gradients; the diagonal is not used.
        counts: ``[blocks]`` how many gradients each sum has.
        weights: of blocks.

    Returns:
        ``[resamples]``.
    """
    between = products - np.diag(np.diag(products))
    numerator = ((weights @ between) * weights).sum(axis=1)
    return _ratio(numerator, (weights @ counts) ** 2 - weights**2 @ counts**2)


def cross_product(
    products: Values, counts: Values, weights: Values, other_counts: Values, other_weights: Values
) -> Values:
    """<E g, E r> of two independent kinds of gradients.

    Args:
        products: ``[blocks, other blocks]`` of sums of g with sums of r.
        counts: ``[blocks]`` of g.
        weights: of its blocks.
        other_counts: ``[other blocks]`` of r.
        other_weights: of its blocks, drawn independently.

    Returns:
        ``[resamples]``.
    """
    numerator = ((weights @ products) * other_weights).sum(axis=1)
    return _ratio(numerator, (weights @ counts) * (other_weights @ other_counts))


def weighted_mean(sums: Values, counts: Values, weights: Values) -> Values:
    """``[resamples]`` mean of single values, from each block's sum and number of them."""
    return _ratio(weights @ sums, weights @ counts)


def signal_to_noise(signal: Values, mean_square: Values) -> Values:
    """|E g|^2 / tr Cov g, with tr Cov g = E |g|^2 - |E g|^2.

    Args:
        signal: |E g|^2 of ``squared_norm``.
        mean_square: E |g|^2, the ``weighted_mean`` of the gradients' squared lengths.
    """
    return _ratio(signal, mean_square - signal)


def alignment(product: Values, signal: Values, other_signal: Values) -> Values:
    """Cosine of two expected gradients, <E g, E r> / (|E g| |E r|), free of noise in all three.

    It may lie beyond 1 by chance. NaN where an expected gradient is not seen above the noise.

    Args:
        product: of ``cross_product``.
        signal: |E g|^2 of ``squared_norm``.
        other_signal: |E r|^2.
    """
    return _ratio(product, np.sqrt(np.where((signal > 0) & (other_signal > 0), signal * other_signal, np.nan)))


def _ratio(numerator: Values, denominator: Values) -> Values:
    """Their quotient; NaN where the denominator is not above 0, or so little that it is rounding."""
    undefined = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=np.asarray(denominator > 1e-300))
