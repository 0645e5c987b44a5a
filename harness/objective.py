"""Policy-gradient losses on log-probabilities of transitions, and the advantage normalised over a whole batch."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SurrogateStats:
    """Measures of how far the policy has moved since the samples were drawn: detached floats, dimensionless.

    Attributes:
        ratio_mean: mean of r = exp(logp - logp_old); 1 if sampling and training use the same policy and arithmetic.
        ratio_max_deviation: max of |r - 1|.
        clip_fraction: fraction of samples with r outside the clip range, whether or not the minimum took the clipped
            branch; 0 without a range.
        approx_kl: 0.5 * mean((logp - logp_old)^2). A log-probability is a mean over latent dimensions, so this is a
            value per dimension, not for the whole latent.
    """

    ratio_mean: float
    ratio_max_deviation: float
    clip_fraction: float
    approx_kl: float


def surrogate_loss(
    log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, clip_range: float | None = None
) -> tuple[Tensor, SurrogateStats]:
    """Policy-gradient loss of a group of samples, with r = exp(logp - logp_old)::

        -mean(A r)                                               clip_range None
        -mean(min(A r, A clip(r, 1 - c, 1 + c)))                 with a clip range c (PPO)

    For on-policy use (AdaGRPO's release: one update per rollout), pass ``log_prob.detach()``, or `log_prob` itself, as
    `old_log_prob`. The ratio is then exactly 1 and the gradient is -mean(A grad logp); clipping has no effect.

    Args:
        log_prob: ``[N]``, under the policy in training, with gradient.
        old_log_prob: ``[N]``, under the policy that drew the samples; treated as a constant.
        advantages: ``[N]``, treated as constants; clip them before.
        clip_range: None, or c in (0, 1], the largest deviation of the ratio from 1 that is not clipped. The releases'
            1e-4 suits log-probabilities that are means over dimensions.

    Returns:
        The loss, a float32 scalar (float64 for float64 log-probabilities), and statistics for the log.

    Raises:
        ValueError: the three are not one-dimensional and of equal length >= 1, or the clip range is out of range.
    """
    if log_prob.ndim != 1 or len(log_prob) == 0 or not log_prob.shape == old_log_prob.shape == advantages.shape:
        shapes = [list(tensor.shape) for tensor in (log_prob, old_log_prob, advantages)]
        raise ValueError(f"log_prob, old_log_prob and advantages must be [N] of one N >= 1, got {shapes}")
    low, high = _clip_bounds(clip_range)
    # Ratios are around 1 + 1e-4, which half precision cannot distinguish from 1.
    log_prob = log_prob.float() if log_prob.element_size() < 4 else log_prob
    log_ratio = log_prob - old_log_prob.detach()
    advantages = advantages.detach().to(log_prob.dtype)
    ratio = log_ratio.exp()
    objective = advantages * ratio
    if clip_range is not None:
        objective = objective.minimum(advantages * ratio.clamp(low, high))
    return -objective.mean(), ratio_stats(log_prob, old_log_prob, clip_range)


def ratio_stats(log_prob: Tensor, old_log_prob: Tensor, clip_range: float | None = None) -> SurrogateStats:
    """Statistics of the ratio of new to old log-probabilities, each ``[N]``; the clip range is `surrogate_loss`'s."""
    low, high = _clip_bounds(clip_range)
    log_ratio = log_prob.detach().float() - old_log_prob.detach().float()
    ratio = log_ratio.exp()
    return SurrogateStats(
        ratio_mean=ratio.mean().item(),
        ratio_max_deviation=(ratio - 1).abs().max().item(),
        clip_fraction=((ratio < low) | (ratio > high)).float().mean().item(),
        approx_kl=0.5 * log_ratio.square().mean().item(),
    )


def centred_log_ratio(mean: Tensor, old_mean: Tensor, std: Tensor, x_next: Tensor) -> Tensor:
    """Log-ratio of GRPO-Guard (arXiv 2510.22319), whose mean over samples of the old policy is 0::

        std (log p - log p_old) + mean((mu - mu_old)^2) / (2 std) = mean((x' - mu_old) (mu - mu_old)) / std

    with log p = -mean((x' - mu)^2) / (2 std^2). The mean of the plain log-ratio is below 0, because of the second term,
    most of all at steps with little noise, so that a clip range acts mostly on one side there.

    Args:
        mean: ``[N, ...]``, mean of the policy in training, with gradient.
        old_mean: ``[N, ...]``, mean of the policy that drew the samples; treated as a constant.
        std: ``[]``, standard deviation of both, in the latents' unit.
        x_next: ``[N, ...]``, the latents that were drawn.

    Returns:
        ``[N]`` float32.
    """
    old_mean = old_mean.detach()
    return ((x_next - old_mean) * (mean - old_mean)).flatten(1).mean(1) / std


def stays_close(
    log_ratio: Tensor, advantages: Tensor, mean: Tensor, old_mean: Tensor, std: Tensor, limit: float
) -> Tensor:
    """Mask of Flow-DPPO (arXiv 2606.11025): ``[N]`` bool, True for the samples to train on.

    A sample is masked out if its divergence mean((mu - mu_old)^2) / (2 std^2) has reached the limit and its advantage
    would increase it: a ratio above 1 with A > 0, or below 1 with A < 0. Arguments as in `centred_log_ratio`.
    """
    divergence = (mean - old_mean).detach().square().flatten(1).mean(1) / (2 * std**2)
    return (divergence < limit) | (log_ratio.detach() * advantages <= 0)


def batch_normalised_advantage(
    rewards: Tensor, epsilon: float = 1e-4, clip: float = 5.0, resolution: float = 0.0
) -> Tensor:
    """Advantage of the Flow-GRPO and Flow-CPS releases: mean of the prompt's group, std of the whole batch.

    A_pj = clip((R_pj - mean_j(R_pj)) / (std(all R) + epsilon), -c, c), population std.

    The std is taken over the rewards themselves, so it includes the spread between prompts. The counterpart within one
    group is `harness.adagrpo.local_advantage`.

    Args:
        rewards: ``[P, G]``: G >= 2 samples of each of P prompts, in the reward's own unit.
        epsilon: added to the std; > 0.
        clip: c > 0; ``math.inf`` turns clipping off.
        resolution: >= 0, in the reward's own unit: a group whose rewards span no more than this has advantage 0.

    Returns:
        ``[P, G]``, float32 (float64 for float64 rewards), on the rewards' device, without gradient.

    Raises:
        ValueError: the rewards are not [P >= 1, G >= 2], hold a NaN or an infinity, epsilon or clip is not above 0, or
            the resolution is out of range.
    """
    if rewards.ndim != 2 or rewards.shape[0] < 1 or rewards.shape[1] < 2:
        raise ValueError(f"rewards must be [prompts >= 1, group >= 2], got {list(rewards.shape)}")
    if not epsilon > 0 or not clip > 0:
        raise ValueError(f"epsilon and clip must be above 0, got {epsilon} and {clip}")
    values = rewards.detach().double() if rewards.element_size() == 8 else rewards.detach().float()
    if not values.isfinite().all():
        raise ValueError("rewards must be finite, but at least one is a NaN or an infinity")
    if not 0 <= resolution < math.inf:
        raise ValueError(f"the resolution of a reward must be finite and at least 0, got {resolution}")
    centred = values - values.mean(dim=1, keepdim=True)
    centred[values.amax(-1) - values.amin(-1) <= resolution] = 0
    return (centred / (values.std(correction=0) + epsilon)).clamp(-clip, clip)


def _clip_bounds(clip_range: float | None) -> tuple[float, float]:
    """The smallest and largest ratio that is not clipped. Raises ValueError for a clip range outside (0, 1]."""
    if clip_range is None:
        return -math.inf, math.inf
    if not 0 < clip_range <= 1:
        raise ValueError(f"a clip range must be in (0, 1], got {clip_range}")
    return 1 - clip_range, 1 + clip_range
