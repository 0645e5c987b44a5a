"""Gradients of single samples, and of one update for every kind of advantage."""

import torch
from torch import Tensor

from harness.adagrpo import local_advantage
from harness.models.pipelines.embedding import PromptEmbedding
from harness.models.pipelines.policy import Policy
from harness.rollout import Rollout
from harness.rules.plugins import Kernel


def score_gradients(policy: Policy, kernel: Kernel, sigmas: Tensor, rollout: Rollout) -> Tensor:
    """Gradient of every sibling's log-probability with respect to the trained parameters.

    Siblings share the state they branch from, so one forward pass per branch index is enough; the log-probability is
    the method's own, a mean over latent dimensions, as in the trainer's loss.

    Args:
        policy: policy with the weights that drew the rollout.
        kernel: the method's stochastic step.
        sigmas: noise levels, ``[N + 1]``.
        rollout: anchor-branch rollout of one prompt: K branch indices with G siblings each.

    Returns:
        ``[K * G, parameters]`` float32 on the CPU, in the order of steps and siblings; parameters in the order of
        ``Policy.trainable``.
    """
    steps = rollout.steps
    x = torch.cat([step.x for step in steps])
    levels = torch.stack([sigmas[step.index] for step in steps])
    velocity = policy.velocity(x, levels, PromptEmbedding.cat([rollout.text] * len(steps)))
    log_probs = []
    for step, at_branch in zip(steps, velocity.split(1), strict=True):
        siblings = step.x_next
        pair = sigmas[step.index : step.index + 2].tolist()
        transition = kernel.step(step.x.expand_as(siblings), at_branch.expand_as(siblings), *pair)
        log_probs.append(transition.log_prob(siblings))
    of_each = torch.cat(log_probs)
    directions = torch.eye(len(of_each), device=of_each.device)
    gradients = torch.autograd.grad(of_each, list(policy.trainable().values()), directions, is_grads_batched=True)
    return torch.cat([gradient.flatten(1) for gradient in gradients], dim=1).cpu()


def unbiased_advantages(rewards: Tensor) -> Tensor:
    """G / (G - 1) (R_j - mean(R)) = R_j - mean of the other siblings: ``[K, G]`` float64, from rewards ``[K, G]``.

    The baseline is independent of the sample, so that the expected gradient is that of the expected reward.
    """
    rewards = rewards.double()
    size = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * size / (size - 1)


def local_advantages(rewards: Tensor, clip: float) -> Tensor:
    """The paper's advantages within each group, clipped to ±clip: ``[K, G]`` float64, from rewards ``[K, G]``."""
    return torch.stack([local_advantage(group, clip) for group in rewards.double()])


def update_gradients(scores: Tensor, *advantages: Tensor) -> Tensor:
    """Ascent direction of one update for each kind of advantages ``[K, G]``, as in the on-policy loss.

    g = 1/K sum over groups of 1/G sum_j A_j grad log p_j: the negative gradient of the trainer's loss.

    Args:
        scores: result of ``score_gradients``, ``[K * G, parameters]``.
        advantages: advantages of each kind.

    Returns:
        ``[kinds, parameters]`` float64, in the order given.
    """
    weights = torch.stack(advantages).flatten(1).double()
    return weights @ scores.double() / scores.shape[0]
