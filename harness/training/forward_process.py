"""Losses on the forward process: pictures are noised again and flow-matching losses are weighted by their advantages.

Formulas of AWM (arXiv 2509.25050) and DiffusionNFT (arXiv 2509.16117), as implemented in the trainers of
X-GenGroup/Flow-Factory. Only the pictures of a rollout are used, so any sampler can draw them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.rollout import Rollout, TrainStep
from harness.transitions import Sigma, Transition


@dataclass(frozen=True, eq=False)
class Matching(Transition):
    """Predicted velocity at a noised picture (``mean``), used like a stochastic step whose ``x_next`` is eps - x0.

    log_prob = -mean over dims of (eps - x0 - v)^2          (AWM with uniform weighting)
    kl       =  mean over dims of (v - v_ref)^2
    """

    sigma: Sigma

    def log_prob(self, x_next: Tensor) -> Tensor:
        return -self._squared_error(x_next)

    def kl(self, other: Transition) -> Tensor:
        return self._squared_distance(other)


class ForwardProcess:
    """Kernel for these losses; its steps wrap the velocity, and nothing is drawn."""

    def step(
        self, x: Tensor, velocity: Tensor, sigma: Sigma, sigma_next: Sigma, sigma_fallback: Sigma | None = None
    ) -> Matching:
        """Wrap the network's velocity ``[n, ...]`` at ``x``; the next sigma and the fallback are unused."""
        return Matching(velocity.float(), velocity.new_zeros(()), sigma)


def noised_again(rollout: Rollout, sigmas: Tensor, group_size: int, generator: torch.Generator) -> Rollout:
    """Replace the steps of a rollout by its pictures noised to their sigmas: x = (1 - s) x0 + s eps, x_next = eps - x0.

    The rollout has a group of G pictures for each step, or one that all steps share. The schedule has ``[N + 1]``
    sigmas; eps is drawn on the CPU.
    """
    groups = rollout.finals.float().unflatten(0, (-1, group_size))
    steps = []
    for step, pictures in zip(rollout.steps, groups.expand(len(rollout.steps), *groups.shape[1:]), strict=True):
        own, sigma = step.of_siblings(pictures), float(sigmas[step.index])
        noise = torch.randn(own.shape, generator=generator).to(own)
        x = (1 - sigma) * own + sigma * noise
        steps.append(TrainStep(step.index, x, noise - own, own.new_zeros(len(own)), step.siblings))
    return Rollout(rollout.text, steps, rollout.finals, rollout.sample_forwards)


def nft_loss(new: Matching, old: Transition, target: Tensor, advantages: Tensor, largest: float) -> Tensor:
    """DiffusionNFT's loss with beta = 1, which fits v to good pictures and its mirror image 2 v_old - v to bad ones::

        largest * mean(r L(v) + (1 - r) L(2 v_old - v))        r = (1 + A / largest) / 2, in [0, 1]
        L(v) = mean(e^2) / mean|e|                              e = sigma (target - v), the error of x0; over latents

    The denominator is treated as a constant.

    Args:
        new: velocities of the policy in training, with gradient, of n samples.
        old: velocities of the policy that drew the pictures; treated as constants.
        target: eps - x0, ``[n, ...]``.
        advantages: ``[n]``.
        largest: absolute advantage at and above which r is 0 or 1.
    """
    share = (0.5 + advantages / (2 * largest)).clamp(0, 1)
    mirrored = 2 * old.mean.detach() - new.mean
    near, far = (_relative_error(new.sigma, target - velocity) for velocity in (new.mean, mirrored))
    return largest * (share * near + (1 - share) * far).mean()


def _relative_error(sigma: Sigma, error: Tensor) -> Tensor:
    error = sigma * error.flatten(1)
    return error.square().mean(1) / error.detach().abs().mean(1).clamp_min(1e-5)
