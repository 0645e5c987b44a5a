"""Policy-gradient losses on the log-probabilities of transitions, and the batch-wide alternative of an advantage."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SurrogateStats:
    """How far the policy has moved since the samples were drawn: detached floats, dimensionless.

    Attributes:
        ratio_mean: mean of r = exp(logp - logp_old); 1 if sampling and training share one arithmetic and one policy.
        ratio_max_deviation: max of |r - 1|.
        clip_fraction: fraction of samples with r outside the clip range, whether or not the minimum took the clipped
            branch; 0 without a range.
        approx_kl: 0.5 * mean((logp - logp_old)^2). As a log-probability is a mean over latent dimensions, it is in
            units of that mean, not of the whole latent.
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

    On-policy use (AdaGRPO's release: one update per rollout): give ``log_prob.detach()``, or `log_prob` itself, as
    `old_log_prob`. The ratio is then exactly 1 and the gradient is -mean(A grad logp); clipping has no effect.

    Args:
        log_prob: ``[N]``, under the policy in training, with gradient.
        old_log_prob: ``[N]``, under the policy that drew the samples. Taken as a constant.
        advantages: ``[N]``. Taken as constants; clip them where they are made.
        clip_range: None, or how far the ratio may go from 1; in (0, 1]. The releases' 1e-4 suits log-probabilities that
            are means over dimensions.

    Returns:
        The loss, a float32 scalar (float64 for float64 log-probabilities), and what to log about it.

    Raises:
        ValueError: the three are not one-dimensional and of one length >= 1, or the clip range is out of range.
    """
    if log_prob.ndim != 1 or len(log_prob) == 0 or not log_prob.shape == old_log_prob.shape == advantages.shape:
        shapes = [list(tensor.shape) for tensor in (log_prob, old_log_prob, advantages)]
        raise ValueError(f"log_prob, old_log_prob and advantages must be [N] of one N >= 1, got {shapes}")
    low, high = _clip_bounds(clip_range)
    # Ratios are 1 + 1e-4 or so: half precision cannot tell them from 1.
    log_prob = log_prob.float() if log_prob.element_size() < 4 else log_prob
    log_ratio = log_prob - old_log_prob.detach()
    advantages = advantages.detach().to(log_prob.dtype)
    ratio = log_ratio.exp()
    objective = advantages * ratio
    if clip_range is not None:
        objective = objective.minimum(advantages * ratio.clamp(low, high))
    return -objective.mean(), ratio_stats(log_prob, old_log_prob, clip_range)


def ratio_stats(log_prob: Tensor, old_log_prob: Tensor, clip_range: float | None = None) -> SurrogateStats:
    """How far log-probabilities ``[N]`` are from old ones, and how many are outside a clip range (`surrogate_loss`)."""
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
    """GRPO-Guard's logarithm of the ratio (arXiv 2510.22319), 0 on average over what the old policy draws::

        std (log p - log p_old) + mean((mu - mu_old)^2) / (2 std) = mean((x' - mu_old) (mu - mu_old)) / std

    with log p = -mean((x' - mu)^2) / (2 std^2). The plain one is below 0 on average, by the second term, and more so at
    steps of little noise, so that a clip range there bites on one side.

    Args:
        mean: ``[N, ...]``, of the policy in training, with gradient.
        old_mean: ``[N, ...]``, of the policy that drew the samples. Taken as a constant.
        std: ``[]``, of both, in the latents' unit.
        x_next: ``[N, ...]``, what was drawn.

    Returns:
        ``[N]`` float32.
    """
    old_mean = old_mean.detach()
    return ((x_next - old_mean) * (mean - old_mean)).flatten(1).mean(1) / std


def stays_close(
    log_ratio: Tensor, advantages: Tensor, mean: Tensor, old_mean: Tensor, std: Tensor, limit: float
) -> Tensor:
    """Flow-DPPO's mask (arXiv 2606.11025): which samples are trained on, ``[N]`` bool.

    Not those whose divergence mean((mu - mu_old)^2) / (2 std^2) has come to the limit and whose advantage pushes them
    further: a ratio above 1 and A > 0, or one below 1 and A < 0. Arguments as in `centred_log_ratio`.
    """
    divergence = (mean - old_mean).detach().square().flatten(1).mean(1) / (2 * std**2)
    return (divergence < limit) | (log_ratio.detach() * advantages <= 0)


def batch_normalised_advantage(
    rewards: Tensor, epsilon: float = 1e-4, clip: float = 5.0, resolution: float = 0.0
) -> Tensor:
    """Advantage of Flow-GRPO's and Flow-CPS's releases: mean of the prompt's group, std of the whole batch.

    A_pj = clip((R_pj - mean_j(R_pj)) / (std(all R) + 1e-4), -c, c), population std.

    The std is that of the rewards themselves, so it includes the spread between prompts. The alternative within one
    group is `harness.adagrpo.local_advantage`.

    Args:
        rewards: ``[P, G]``: G >= 2 samples of each of P prompts, in the reward's own unit.
        epsilon: added to the std; > 0.
        clip: c > 0; ``math.inf`` for none.
        resolution: >= 0, in the reward's own unit: a group whose rewards are this close counts as equal and has 0.

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
    """The least and greatest ratio that is not clipped."""
    if clip_range is None:
        return -math.inf, math.inf
    if not 0 < clip_range <= 1:
        raise ValueError(f"a clip range must be in (0, 1], got {clip_range}")
    return 1 - clip_range, 1 + clip_range
