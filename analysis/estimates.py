"""Statistics of gradients, computed from their inner products alone: pure functions on arrays.

A gradient g of one update has the expectation E g and the covariance Cov g. Estimated quantities are:

- ``squared_norm``: |E g|^2. The squared length of a mean of n gradients would be too large by tr Cov / n; products of
  independent gradients are unbiased.
- ``signal_to_noise``: |E g|^2 / tr Cov g. A mean of n such gradients has n times as much; the reciprocal is the number
  of updates that must be averaged before signal and noise are equal.
- ``alignment``: the cosine between E g and another expected gradient. It is 1 if the updates have no bias in
  direction, however noisy they are.

Blocks are sums of gradients that are independent of those of other blocks, and ``weights`` ``[resamples, blocks]`` are
those of ``statistics.resampling_weights``. Products of a block with itself are never used: a resample may hold a block
twice, but no gradient is independent of itself. A statistic that a resample does not define is NaN.
"""

import numpy as np

from analysis.statistics import Values


def squared_norm(products: Values, counts: Values, weights: Values) -> Values:
    """|E g|^2 = sum over a != b of w_a w_b <S_a, S_b> / sum over a != b of w_a w_b n_a n_b.

    It is unbiased for equal weights, so that it may be negative if the signal is lost in the noise.

    Args:
        products: ``[blocks, blocks]`` products <S_a, S_b> of sums of gradients; the diagonal is not used.
        counts: ``[blocks]`` number of gradients in each sum.
        weights: ``[resamples, blocks]``.

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
        products: ``[blocks, other blocks]`` products of sums of g with sums of r.
        counts: ``[blocks]`` number of gradients g in each sum.
        weights: ``[resamples, blocks]`` for g.
        other_counts: ``[other blocks]`` number of gradients r in each sum.
        other_weights: ``[resamples, other blocks]`` for r, drawn independently.

    Returns:
        ``[resamples]``.
    """
    numerator = ((weights @ products) * other_weights).sum(axis=1)
    return _ratio(numerator, (weights @ counts) * (other_weights @ other_counts))


def weighted_mean(sums: Values, counts: Values, weights: Values) -> Values:
    """``[resamples]`` means of single values, from each block's sum and number of values."""
    return _ratio(weights @ sums, weights @ counts)


def signal_to_noise(signal: Values, mean_square: Values) -> Values:
    """|E g|^2 / tr Cov g, with tr Cov g = E |g|^2 - |E g|^2.

    Args:
        signal: |E g|^2, see ``squared_norm``.
        mean_square: E |g|^2, the ``weighted_mean`` of the gradients' squared lengths.
    """
    return _ratio(signal, mean_square - signal)


def alignment(product: Values, signal: Values, other_signal: Values) -> Values:
    """Cosine of two expected gradients, <E g, E r> / (|E g| |E r|), free of noise in all three.

    It may exceed 1 by chance. It is NaN if a squared norm is not positive, that is, lost in the noise.

    Args:
        product: <E g, E r>, see ``cross_product``.
        signal: |E g|^2, see ``squared_norm``.
        other_signal: |E r|^2.
    """
    return _ratio(product, np.sqrt(np.where((signal > 0) & (other_signal > 0), signal * other_signal, np.nan)))


def _ratio(numerator: Values, denominator: Values) -> Values:
    """Quotient; NaN where the denominator is not positive, or so small that it is rounding."""
    undefined = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=np.asarray(denominator > 1e-300))
