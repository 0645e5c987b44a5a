"""The two components of AdaGRPO, usable in any GRPO trainer of a flow model. The file needs only torch; copy it freely.

Online Curriculum Filtering: `CapabilityTracker` and `select_prompt`.
Cross-Level Advantage Fusion: `local_advantage`, `global_advantage` and `fuse_advantages`. `rescale_advantages` is a
control experiment for the fusion and not part of the paper.

Use in a training loop (``docs/example_loop.py`` is a complete, runnable one)::

    tracker = CapabilityTracker(decay=0.8)
    for prompts in batches_of_candidates:                               # B prompts
        trajectories = [ode_trajectory(prompt) for prompt in prompts]   # x_0 .. x_N, one deterministic sample each
        rewards = score([path[-1] for path in trajectories], prompts)   # Tensor[B]
        tracker.update(rewards)                                         # before the selection, as in the paper
        chosen = select_prompt(rewards, "curriculum", tracker)
        for branch in (0, 2, 4, 6):                                     # steps at which the trajectory branches
            x = trajectories[chosen][branch]                            # the G siblings share it
            transition = stochastic_step(x, branch, prompts[chosen])    # with gradient
            siblings = transition.sample(G)                             # without gradient
            images = ode_to_the_end(siblings, branch + 1, prompts[chosen])
            group_rewards = score(images, prompts[chosen])              # Tensor[G]
            local = local_advantage(group_rewards)
            global_ = global_advantage(group_rewards, tracker.mean, tracker.std)
            advantages = fuse_advantages(local, global_, weight=1.0)
            log_prob = transition.log_prob(siblings)                    # Tensor[G]
            (-(advantages * (log_prob - log_prob.detach()).exp()).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()

Symbols of the paper (arXiv 2606.06828): alpha is `decay`, mu_ema and sigma_ema are `CapabilityTracker.mean` and
`.std`, R is `rewards`, B is the number of candidate prompts, G the size of a group, c is `clip`.
"""

import math
from typing import Any

import torch
from torch import Tensor

SELECTION_STRATEGIES = ("random", "easiest", "hardest", "medium", "curriculum")
"""Strategies that `select_prompt` accepts, in the order of the paper's comparison."""

EPSILON = 1e-8  # added to a standard deviation before a division; also the lower bound of the capability's variance
ONE_SIDED_THRESHOLD = 1e-6  # a group is one-sided if its positive or its negative standardised rewards sum to less


class CapabilityTracker:
    """The model's current capability: moving averages of the mean and variance of its rewards on candidate prompts.

    The first update sets both averages; later updates move them (paper, Online Curriculum Filtering)::

        mu_ema  <- alpha * mu_ema  + (1 - alpha) * mean(R)
        var_ema <- alpha * var_ema + (1 - alpha) * var(R)           population variance
        sigma_ema = sqrt(max(var_ema, 1e-8))

    The state is kept in Python floats (double precision), so JSON and moves between devices preserve it exactly.

    Args:
        decay: alpha, in [0, 1), else ValueError. With 0 only the last batch counts.
    """

    def __init__(self, decay: float = 0.8) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"the decay of the capability tracker must be in [0, 1), got {decay}")
        self.decay = float(decay)
        self._mean: float | None = None
        self._variance: float | None = None

    def update(self, rewards: Tensor) -> None:
        """Update the averages with the rewards of one batch of candidates; call this before the selection.

        Args:
            rewards: ``[B]``, B >= 1, finite, else ValueError; rewards of the deterministic samples, in the reward's own
                unit. With several processes, gather them first: one update takes all candidates of an iteration.
        """
        values = _checked_rewards(rewards, minimum=1).to("cpu", torch.float64)
        mean = values.mean().item()
        variance = values.var(correction=0).item()
        if self._mean is None or self._variance is None:
            self._mean, self._variance = mean, variance
        else:
            self._mean = self.decay * self._mean + (1.0 - self.decay) * mean
            self._variance = self.decay * self._variance + (1.0 - self.decay) * variance

    @property
    def is_empty(self) -> bool:
        """Whether no batch has been seen yet."""
        return self._mean is None

    @property
    def mean(self) -> float:
        """mu_ema, in the reward's unit. Raises ValueError before the first update."""
        if self._mean is None:
            raise ValueError("the capability tracker is empty: call update(rewards) before reading its mean")
        return self._mean

    @property
    def std(self) -> float:
        """sigma_ema, in the reward's unit, at least 1e-4. Raises ValueError before the first update."""
        if self._variance is None:
            raise ValueError("the capability tracker is empty: call update(rewards) before reading its std")
        return math.sqrt(max(self._variance, EPSILON))

    def state_dict(self) -> dict[str, float | None]:
        """The tracker's whole state, in values that JSON preserves exactly; mean and variance are None when empty."""
        return {"decay": self.decay, "mean": self._mean, "variance": self._variance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`, bit for bit.

        Raises ValueError for wrong keys, for values that no tracker can have, and for a different decay.
        """
        if set(state) != {"decay", "mean", "variance"}:
            raise ValueError(f"a tracker state has the keys decay, mean and variance, got {sorted(state)}")
        if state["decay"] != self.decay:
            raise ValueError(f"the state was made with decay {state['decay']}, this tracker has {self.decay}")
        mean, variance = state["mean"], state["variance"]
        empty = mean is None and variance is None
        if not empty and (None in (mean, variance) or not (math.isfinite(mean) and 0 <= variance < math.inf)):
            raise ValueError(f"a tracker state has a finite mean and a variance >= 0, got {mean} and {variance}")
        self._mean, self._variance = mean, variance


def counts_as_equal(rewards: Tensor, resolution: float = 0.0) -> bool:
    """Whether rewards ``[G]`` span no more than the reward's resolution; with resolution 0, whether they are equal.

    Raises ValueError if the resolution is negative or not finite.
    """
    if not 0 <= resolution < math.inf:
        raise ValueError(f"the resolution of a reward must be finite and at least 0, got {resolution}")
    return bool(rewards.max() - rewards.min() <= resolution)


def select_prompt(
    rewards: Tensor,
    strategy: str,
    tracker: CapabilityTracker | None = None,
    generator: torch.Generator | None = None,
    resolution: float = 0.0,
) -> int:
    """Choose the candidate prompt to train on and return its index in [0, B). On a tie the lowest index wins.

    - ``random``: any candidate, uniformly; the values of the rewards are not used.
    - ``easiest``, ``hardest``: the candidate with the highest or the lowest reward.
    - ``medium``: the candidate with the median reward; for an even B the lower (harder) of the two middle ones.
    - ``curriculum``: the candidate whose reward is closest to the capability, i* = argmin_i |R_i - mu_ema| (paper,
      Online Curriculum Filtering). Update the tracker with this batch first.

    Args:
        rewards: ``[B]``, B >= 1: the reward of one deterministic sample per candidate.
        strategy: one of `SELECTION_STRATEGIES`.
        tracker: the capability; only ``curriculum`` reads it, and no strategy changes it.
        generator: used by ``random`` only; None draws from torch's global generator.
        resolution: >= 0, in the reward's own unit; distances to the wanted reward that differ by no more are a tie.

    Raises:
        ValueError: the strategy is unknown, ``curriculum`` has no tracker or an empty one, or the rewards are empty,
            not one-dimensional or not finite.
    """
    if strategy not in SELECTION_STRATEGIES:
        raise ValueError(f"unknown selection strategy {strategy!r}: use one of {', '.join(SELECTION_STRATEGIES)}")
    values = _checked_rewards(rewards, minimum=1).to("cpu", torch.float64)
    if strategy == "random":
        device = "cpu" if generator is None else generator.device
        return int(torch.randint(len(values), (1,), generator=generator, device=device).item())
    if strategy == "curriculum" and tracker is None:
        raise ValueError('"curriculum" needs a tracker that was updated with these rewards: tracker.update(rewards)')
    if strategy == "easiest":
        wanted = values.max()
    elif strategy == "hardest":
        wanted = values.min()
    elif strategy == "medium" or tracker is None:
        wanted = values.median()  # torch returns the lower of the two middle elements
    else:
        wanted = values.new_tensor(tracker.mean)
    return nearest(values, wanted, resolution)


def nearest(values: Tensor, wanted: Tensor | float, resolution: float = 0.0) -> int:
    """The lowest index whose value, of ``[B]``, is as close to the wanted one as the closest, up to ``resolution``."""
    distance = (values - wanted).abs()
    return int((distance <= distance.min() + resolution).nonzero()[0])


def local_advantage(rewards: Tensor, clip: float = 5.0, resolution: float | None = None) -> Tensor:
    """Group-relative advantage: each sample compared with its siblings.

    local_j = clip((R_j - mean(R)) / (std(R) + 1e-8), -c, c), std unbiased (paper; GRPO).

    Computed in the precision of the rewards, at least float32, as in the release. If a `resolution` is given, a group
    whose rewards are equal within it has advantage 0; rounding errors over a std as small would be of order 1.

    Args:
        rewards: ``[G]``, G >= 2: rewards of the siblings, in the reward's own unit.
        clip: c > 0; ``math.inf`` turns clipping off.
        resolution: >= 0, in the reward's own unit: the largest difference between scores of equal samples. None, as in
            the release, skips the check.

    Returns:
        ``[G]``, on the rewards' device, without gradient, in units of the group's std.

    Raises ValueError for fewer than two rewards, not one-dimensional, not finite, or clip or resolution out of range.
    """
    _check_clip(clip)
    values = _checked_rewards(rewards, minimum=2)
    if resolution is not None and counts_as_equal(values, resolution):
        return torch.zeros_like(values)
    return ((values - values.mean()) / (values.std(correction=1) + EPSILON)).clamp(-clip, clip)


def global_advantage(
    rewards: Tensor, mean: float, std: float, clip: float = 5.0, resolution: float | None = None
) -> Tensor:
    """Advantage relative to the model's capability; in a two-sided group it has the sign of R_j - mu_ema.

    With z_j = (R_j - mu_ema) / (sigma_ema + 1e-8) (paper, Cross-Level Advantage Fusion)::

        global_j = z_j / sum(z over z > 0)        where z_j > 0
                   z_j / |sum(z over z < 0)|      where z_j < 0        so the advantages sum to 0
        global   = z - mean(z)                    in a one-sided group: either sum below 1e-6

    then clipped to [-c, c]. In a two-sided group sigma_ema cancels, and the positive advantages sum to 1, the negative
    ones to -1. In a one-sided group the result is proportional to the unclipped `local_advantage`. If a `resolution` is
    given, a group whose rewards are equal within it has advantage 0, and a group that reaches beyond mu_ema by no more
    than it on one side counts as one-sided: otherwise rounding errors on that side would share a total advantage of 1.

    Args:
        rewards: ``[G]``, G >= 2: rewards of the siblings, in the reward's own unit.
        mean: mu_ema, `CapabilityTracker.mean`, in the same unit.
        std: sigma_ema >= 0, `CapabilityTracker.std`, in the same unit.
        clip: c > 0; ``math.inf`` turns clipping off.
        resolution: as in `local_advantage`, in the same unit.

    Returns:
        ``[G]``, on the rewards' device, without gradient, dimensionless.

    Raises ValueError for fewer than two rewards, not one-dimensional, any input that is not finite, or a std, clip or
    resolution out of range.
    """
    _check_clip(clip)
    if not (math.isfinite(mean) and 0 <= std < math.inf):
        raise ValueError(f"the capability needs a finite mean and a finite std >= 0, got {mean} and {std}")
    values = _checked_rewards(rewards, minimum=2)
    if resolution is not None and counts_as_equal(values, resolution):
        return torch.zeros_like(values)
    z = (values - mean) / (std + EPSILON)
    positive_sum = z[z > 0].sum()
    negative_sum = z[z < 0].sum().abs()
    margin = resolution or 0.0
    on_one_side = values.max() - mean <= margin or mean - values.min() <= margin
    if on_one_side or positive_sum < ONE_SIDED_THRESHOLD or negative_sum < ONE_SIDED_THRESHOLD:
        advantage = z - z.mean()
    else:
        advantage = z / torch.where(z > 0, positive_sum, negative_sum)
    return advantage.clamp(-clip, clip)


def fuse_advantages(local: Tensor, global_: Tensor, weight: float = 1.0) -> Tensor:
    """Cross-Level Advantage Fusion: A_j = local_j + weight * global_j. The sum is not clipped again.

    Args:
        local: ``[G]``, from `local_advantage`; the result is shaped like it.
        global_: ``[G]``, from `global_advantage`.
        weight: >= 0; 1 in the release, 0 turns the fusion off.

    Raises ValueError if the two are not one-dimensional and of equal length, or the weight is out of range.
    """
    _check_fused(local, global_, weight, "global ones")
    return local + weight * global_


def rescale_advantages(local: Tensor, rewards: Tensor, std: float, weight: float = 1.0) -> Tensor:
    """Control for the fusion: the local advantages of a group, all multiplied by one factor.

    A_j = local_j (1 + weight * (std(R) + 1e-8) / (sigma_ema + 1e-8)), std unbiased.

    This is the result of `fuse_advantages` in a one-sided group (before clipping), here applied to every group. The
    factor depends on the group's spread relative to the capability's, but not on whether a sample lies above mu_ema.
    Whatever the fusion gains over this control is due to more than rescaling (docs/fusion.md).

    Args:
        local: ``[G]``, from `local_advantage`; the result is shaped like it.
        rewards: ``[G]``, G >= 2: the rewards behind the local advantages, in the reward's own unit.
        std: sigma_ema >= 0, `CapabilityTracker.std`, in the same unit.
        weight: >= 0; 0 leaves the local advantages unchanged.

    Raises ValueError if the two are not one-dimensional and of equal length, the rewards are fewer than two or not
    finite, or std or weight is out of range.
    """
    _check_fused(local, rewards, weight, "rewards")
    if not 0 <= std < math.inf:
        raise ValueError(f"the capability needs a finite std >= 0, got {std}")
    spread = _checked_rewards(rewards, minimum=2).std(correction=1)
    return local * (1 + weight * (spread + EPSILON) / (std + EPSILON)).to(local)


def _checked_rewards(rewards: Tensor, minimum: int) -> Tensor:
    """The rewards, detached, in float32 or float64. Raises ValueError unless they are ``[>= minimum]`` and finite."""
    if rewards.ndim != 1:
        raise ValueError(f"rewards must be one-dimensional, got shape {list(rewards.shape)}")
    if len(rewards) < minimum:
        what = "a group needs at least two rewards" if minimum == 2 else "there must be at least one reward"
        raise ValueError(f"{what}, got {len(rewards)}")
    values = rewards.detach()
    if not values.isfinite().all():
        raise ValueError(f"rewards must be finite, got {values.tolist()}")
    return values if values.dtype == torch.float64 else values.float()


def _check_fused(local: Tensor, other: Tensor, weight: float, what: str) -> None:
    if local.ndim != 1 or local.shape != other.shape:
        raise ValueError(f"local advantages and {what} must be [G] of one G, got {[*local.shape]} and {[*other.shape]}")
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"the fusion weight must be finite and at least 0, got {weight}")


def _check_clip(clip: float) -> None:
    if not clip > 0:
        raise ValueError(f"the advantage clip must be above 0, got {clip}")
