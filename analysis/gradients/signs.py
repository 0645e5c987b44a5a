"""Wrong-signed samples: where the local advantage's sign is not that of the reward minus the capability mean."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.gradients.effects import WEIGHTS
from analysis.gradients.estimates import weighted_mean
from analysis.gradients.tables import EVERYTHING, Measurement, Units
from analysis.statistics import Resampled, Values, resampling_weights

Mask = NDArray[np.bool_]
ONE_SIDED, TWO_SIDED = "one-sided", "two-sided"
SIGN_COLUMNS = ["checkpoint", "iteration", "set", "groups", "sides", "share_of_groups", "wrong_share"]
SIGN_COLUMNS += ["median_weight", "weight", "corrected", "low", "high"]


class Signs(NamedTuple):
    """What is known of each sample, ``[...]``."""

    wrong: Mask
    """Local advantage and reward minus capability differ in sign."""
    one_sided: Mask
    """All rewards of its group lie on one side of the capability."""


def sign_errors(rewards: Values, local: Values, capability: Values) -> Signs:
    """Which samples have a wrong sign, and which are of a one-sided group.

    Args:
        rewards: ``[..., G]`` of groups.
        local: their local advantages.
        capability: ``[...]`` mu_ema of each group.

    Returns:
        Shaped like the rewards. A sample at the capability or at its group's mean has no sign that could be wrong.
    """
    above = np.sign(rewards - capability[..., None])
    one_sided = (above >= 0).all(axis=-1, keepdims=True) | (above <= 0).all(axis=-1, keepdims=True)
    return Signs(above * np.sign(local) < 0, np.broadcast_to(one_sided, rewards.shape))


def corrected_signs(signs: Signs, local: Values, global_: Values, weight: float) -> Mask:
    """Which of the wrong-signed samples fusion turns to the other sign: local + w global against local."""
    return np.asarray(signs.wrong & ((local + weight * global_) * local < 0))


def needed_weights(signs: Signs, local: Values, global_: Values) -> Values:
    """Weight from which on a wrong sign is corrected, -local / global; infinite if none does, NaN of a right one."""
    opposed = signs.wrong & (local * global_ < 0)
    return np.divide(-local, global_, out=np.where(signs.wrong, np.inf, np.nan), where=opposed)


def sign_frame(tables: Measurement) -> pd.DataFrame:
    """Share of wrong-signed samples, and of these the share that fusion corrects, by weight and by sides of groups.

    Columns ``SIGN_COLUMNS``: of all different prompts that were chosen and of each strategy's. ``median_weight`` is the
    weight that corrects half of the wrong signs, infinite where none does.
    """
    rows = [
        (checkpoint, iteration, name, *row)
        for checkpoint, iteration in tables.iterations.items()
        for name in (EVERYTHING, *tables.strategies)
        for row in _of_set(tables.units(checkpoint, name))
    ]
    return pd.DataFrame(rows, columns=SIGN_COLUMNS)


def _of_set(units: Units) -> Iterator[tuple[object, ...]]:
    local, global_ = units.siblings("local"), units.siblings("global")
    capability = np.broadcast_to(units.rows["capability_mean"].to_numpy(dtype=float)[:, None], local.shape[:2])
    signs = sign_errors(units.siblings("rewards"), local, capability)
    needed = needed_weights(signs, local, global_)
    for sides in (ONE_SIDED, TWO_SIDED):
        mask = signs.one_sided == (sides == ONE_SIDED)
        wrong, num_samples = signs.wrong & mask, int(mask.sum())
        shares = num_samples / mask.size, float(wrong.sum()) / num_samples if num_samples else np.nan
        median = float(np.median(needed[wrong])) if wrong.any() else np.nan
        for weight in WEIGHTS:
            corrected = corrected_signs(signs, local, global_, weight) & mask
            share = _share(units, corrected, wrong)
            yield num_samples // local.shape[-1], sides, *shares, median, weight, *share


def _share(units: Units, part: Mask, whole: Mask) -> tuple[float, float, float]:
    """Share with its interval over blocks; NaN of nothing."""
    if not whole.any():
        return np.nan, np.nan, np.nan
    parts, wholes = (units.by_block(mask.sum(axis=(1, 2)).astype(float)) for mask in (part, whole))
    [weights] = resampling_weights([units.num_blocks])
    return Resampled(weighted_mean(parts, wholes, weights), [units.num_blocks]).interval()
