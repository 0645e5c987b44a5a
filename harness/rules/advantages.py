"""Advantages that correct a group's local ones by the capability, beside the paper's fusion: ``fusion.kind``.

The paper's global advantage keeps the signs of z within a group but, in a two-sided group, not its level: a group of
which all but one sample lie above the capability still has as much negative advantage as positive. These rules differ
in how they let the level in. Symbols as in ``harness.adagrpo``; m and s are a group's mean and unbiased standard
deviation, local is clip((R - m) / s), w is ``fusion.weight`` in [0, 1]; w = 0 is local in all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.adagrpo import EPSILON, counts_as_equal, fuse_advantages, global_advantage, rescale_advantages


@dataclass(frozen=True)
class Group:
    """A group and what it is compared with.

    Attributes:
        local: ``[G]`` local advantages.
        rewards: ``[G]``.
        mean: mu_ema, in the reward's unit.
        std: sigma_ema > 0.
        clip: c.
        resolution: how far apart scores of equal samples may come out.
    """

    local: Tensor
    rewards: Tensor
    mean: float
    std: float
    clip: float = 5.0
    resolution: float | None = None


def fused(group: Group, weight: float) -> Tensor:
    """The paper's: ``fuse_advantages`` of local and global advantages."""
    level = global_advantage(group.rewards, group.mean, group.std, group.clip, group.resolution)
    return fuse_advantages(group.local, level, weight)


def rescaled(group: Group, weight: float) -> Tensor:
    """``rescale_advantages``: the control that knows a group's spread but no signs."""
    return rescale_advantages(group.local, group.rewards, group.std, weight)


def uncentred(group: Group, weight: float) -> Tensor:
    """(1 - w) local + w clip(z), z = (R - mu_ema) / sigma_ema: a group above the capability gains as a whole, even one
    whose rewards are equal. Advantages do not sum to 0, which moves the policy towards, or away from, all it sampled.
    """
    z = ((group.rewards - group.mean) / (group.std + EPSILON)).clamp(-group.clip, group.clip)
    return (1 - weight) * group.local + weight * z.to(group.local)


def shrinkage(group: Group, weight: float) -> Tensor:
    """clip((R - b) / s) with the baseline shrunk towards the capability, b = (1 - w L) m + w L mu_ema.

    L = (s^2 / G) / (s^2 / G + max(sigma_ema^2 - s^2, 0)) is the share of the group mean's uncertainty in the variance
    between prompts (James and Stein's weight for one group): a sign turns only where the mean is uncertain. A
    group of equal rewards has 0. The idea is arXiv 2511.03710's, for batches of prompts, with a baseline of the others.
    """
    if counts_as_equal(group.rewards, group.resolution or 0.0):
        return torch.zeros_like(group.local)
    mean, variance = group.rewards.mean(), group.rewards.var(correction=1)
    of_mean = variance / len(group.rewards)
    share = of_mean / (of_mean + (group.std**2 - variance).clamp(min=0) + EPSILON)
    baseline = mean + weight * share * (group.mean - mean)
    return ((group.rewards - baseline) / (variance.sqrt() + EPSILON)).clamp(-group.clip, group.clip)


def ema_std(group: Group, weight: float) -> Tensor:
    """(1 - w) local + w clip((R - m) / sigma_ema): a group counts for as much as it is spread beside the capability."""
    centred = (group.rewards - group.rewards.mean()) / (group.std + EPSILON)
    return (1 - weight) * group.local + weight * centred.clamp(-group.clip, group.clip).to(group.local)


def gated(group: Group, weight: float) -> Tensor:
    """Local, times 1 - w where it and R - mu_ema have different signs: nothing is pushed against its level."""
    disagrees = group.local * (group.rewards - group.mean).to(group.local) < 0
    return torch.where(disagrees, (1 - weight) * group.local, group.local)


FUSIONS: dict[str, Callable[[Group, float], Tensor]] = {
    rule.__name__: rule for rule in (fused, rescaled, uncentred, shrinkage, ema_std, gated)
}
"""By ``fusion.kind``."""


def fuse(
    group: Group, kind: str | Callable[[Group, float], Tensor], weight: float, same_length: bool = False
) -> Tensor:
    """A group's advantages ``[G]``, by one of ``FUSIONS``.

    Args:
        group: the group.
        kind: name in ``FUSIONS``, or another function of a group and a weight.
        weight: w.
        same_length: the control: local advantages, stretched to the Euclidean length that the kind's have. What the
            kind gains over it, it gains by direction.
    """
    rule = FUSIONS[kind] if isinstance(kind, str) else kind
    advantages = rule(group, weight)
    if same_length:
        return group.local * (advantages.norm() / group.local.norm().clamp(min=EPSILON))
    return advantages
