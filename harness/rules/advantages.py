"""Corrections of a group's local advantages by the capability: the paper's fusion and alternatives (``fusion.kind``).

The paper's global advantage keeps the signs of z within a group but, in a two-sided group, not its level: if all but
one sample lie above the capability, the group still has as much negative advantage as positive. The rules differ in how
they use the level. Symbols as in ``harness.adagrpo``; m and s are a group's mean and unbiased std, w is
``fusion.weight``, at most 1 but for ``fused`` and ``rescaled``; with w = 0 all give local, clip((R - m) / s).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.adagrpo import EPSILON, counts_as_equal, fuse_advantages, global_advantage, rescale_advantages


@dataclass(frozen=True)
class Group:
    """A group of siblings and the capability with which it is compared.

    Attributes:
        local: ``[G]`` local advantages.
        rewards: ``[G]`` rewards.
        mean: mu_ema, in the reward's unit.
        std: sigma_ema > 0, in the reward's unit.
        clip: c, bound of an advantage's absolute value.
        resolution: largest difference between scores of equal samples; None skips the check for equal rewards.
    """

    local: Tensor
    rewards: Tensor
    mean: float
    std: float
    clip: float = 5.0
    resolution: float | None = None


def fused(group: Group, weight: float) -> Tensor:
    """The paper's fusion: ``fuse_advantages`` of local and global advantages."""
    level = global_advantage(group.rewards, group.mean, group.std, group.clip, group.resolution)
    return fuse_advantages(group.local, level, weight)


def rescaled(group: Group, weight: float) -> Tensor:
    """``rescale_advantages``: a control that depends on the group's spread but not on the signs of z."""
    return rescale_advantages(group.local, group.rewards, group.std, weight)


def uncentred(group: Group, weight: float) -> Tensor:
    """(1 - w) local + w clip(z), z = (R - mu_ema) / sigma_ema: a group above the capability gains as a whole, even if
    its rewards are equal. Advantages do not sum to 0, so the policy may move towards or away from all its samples.
    """
    z = ((group.rewards - group.mean) / (group.std + EPSILON)).clamp(-group.clip, group.clip)
    return (1 - weight) * group.local + weight * z.to(group.local)


def shrinkage(group: Group, weight: float) -> Tensor:
    """clip((R - b) / s) with the baseline shrunk towards the capability, b = (1 - w L) m + w L mu_ema.

    L = (s^2 / G) / (s^2 / G + max(sigma_ema^2 - s^2, 0)) weighs the uncertainty of the group mean against the variance
    between prompts (the James-Stein weight of one group), so a sign changes only where the mean is uncertain. A group
    of equal rewards has 0. The idea is from arXiv 2511.03710, for batches of prompts, with a leave-one-out baseline.
    """
    if counts_as_equal(group.rewards, group.resolution or 0.0):
        return torch.zeros_like(group.local)
    mean, variance = group.rewards.mean(), group.rewards.var(correction=1)
    of_mean = variance / len(group.rewards)
    share = of_mean / (of_mean + (group.std**2 - variance).clamp(min=0) + EPSILON)
    baseline = mean + weight * share * (group.mean - mean)
    return ((group.rewards - baseline) / (variance.sqrt() + EPSILON)).clamp(-group.clip, group.clip)


def ema_std(group: Group, weight: float) -> Tensor:
    """(1 - w) local + w clip((R - m) / sigma_ema): a group's weight grows with its spread relative to sigma_ema."""
    centred = (group.rewards - group.rewards.mean()) / (group.std + EPSILON)
    return (1 - weight) * group.local + weight * centred.clamp(-group.clip, group.clip).to(group.local)


def gated(group: Group, weight: float) -> Tensor:
    """Local advantages, multiplied by 1 - w where they and R - mu_ema have different signs."""
    disagrees = group.local * (group.rewards - group.mean).to(group.local) < 0
    return torch.where(disagrees, (1 - weight) * group.local, group.local)


FUSIONS: dict[str, Callable[[Group, float], Tensor]] = {
    rule.__name__: rule for rule in (fused, rescaled, uncentred, shrinkage, ema_std, gated)
}
"""Rules by ``fusion.kind``."""


def fuse(
    group: Group, kind: str | Callable[[Group, float], Tensor], weight: float, same_length: bool = False
) -> Tensor:
    """Compute a group's advantages ``[G]`` by one of ``FUSIONS``.

    Args:
        group: the group.
        kind: name in ``FUSIONS``, or another function of a group and a weight.
        weight: w.
        same_length: return a control: local advantages, scaled to the Euclidean norm of the rule's advantages. Whatever
            the rule gains over this control is due to the direction.
    """
    rule = FUSIONS[kind] if isinstance(kind, str) else kind
    advantages = rule(group, weight)
    if same_length:
        return group.local * (advantages.norm() / group.local.norm().clamp(min=EPSILON))
    return advantages
