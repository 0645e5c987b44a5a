"""AdaGRPO's advantages in verl-omni: ``algorithm.adv_estimator: adagrpo``; importing this registers it."""

import torch
from verl_omni.trainer.diffusion.diffusion_algos import register_diffusion_adv_est

from harness.adagrpo import CapabilityTracker, fuse_advantages, global_advantage, local_advantage

DECAY, WEIGHT = 0.8, 1.0
TRACKER = CapabilityTracker(decay=DECAY)
"""Of the process that estimates advantages, which is one."""


@register_diffusion_adv_est("adagrpo")
def adagrpo_advantage(sample_level_rewards, index, config=None, **_):
    """Advantages and returns, both ``[batch, steps]``, of rewards of that shape; equal ``index`` is one group."""
    rewards = sample_level_rewards[:, 0].double()  # of a sample: the same at each step
    TRACKER.update(rewards)
    fused = torch.zeros_like(rewards)
    for group in dict.fromkeys(index):
        rows = torch.tensor([one == group for one in index])
        level = global_advantage(rewards[rows], TRACKER.mean, TRACKER.std)
        fused[rows] = fuse_advantages(local_advantage(rewards[rows]), level, WEIGHT)
    advantages = fused.to(sample_level_rewards)[:, None].expand_as(sample_level_rewards).clone()
    return advantages, advantages
