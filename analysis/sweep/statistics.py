"""Intervals of paired differences."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


class Interval(NamedTuple):
    """An estimate and the bounds of its confidence interval, in the units of the data."""

    estimate: float
    low: float
    high: float


def paired_interval(treatment: ArrayLike, control: ArrayLike, confidence: float = 0.95) -> Interval:
    """Student's interval of the mean difference ``treatment - control`` of runs that share seeds.

    Args:
        treatment: ``[seeds]``, at least 2.
        control: the same shape; entry i has the seed of entry i of ``treatment``.
        confidence: in (0, 1).
    """
    differences = np.asarray(treatment, dtype=float) - np.asarray(control, dtype=float)
    estimate, count = float(differences.mean()), len(differences)
    margin = stats.t.ppf((1 + confidence) / 2, count - 1) * differences.std(ddof=1) / count**0.5
    return Interval(estimate, float(estimate - margin), float(estimate + margin))
