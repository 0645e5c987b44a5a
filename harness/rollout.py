"""Sampling: the deterministic ODE, and the stochastic rollouts that a policy gradient learns from.

Sigma schedules come from the policy (``Policy.sigmas``). One velocity of one sample counts as one *sample-forward*,
although with classifier-free guidance it costs two forwards of the network.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from harness.models.pipelines.embedding import PromptEmbedding
from harness.transitions import Kernel

Velocity = Callable[[Tensor, Tensor | float, PromptEmbedding], Tensor]


@dataclass(frozen=True)
class Trajectory:
    """Deterministic ODE paths of n samples.

    Attributes:
        states: ``[N + 1, n, ...]``, from noise to data.
        velocities: ``[N, n, ...]``, the network's prediction at each state except the last.
    """

    states: Tensor
    velocities: Tensor

    @property
    def final(self) -> Tensor:
        """Latents at sigma = 0, ``[n, ...]``."""
        return self.states[-1]

    def select(self, row: int) -> "Trajectory":
        """The path of one sample, kept as a batch of one."""
        return Trajectory(self.states[:, row : row + 1], self.velocities[:, row : row + 1])


@dataclass(frozen=True)
class TrainStep:
    """Stochastic transitions of n siblings at one step of the schedule, to be trained on.

    Attributes:
        index: index of the step.
        x: latents before the step; ``[1, ...]`` if all siblings share them, else ``[n, ...]``.
        x_next: latents drawn, ``[n, ...]``.
        old_log_prob: ``[n]``, log-probabilities under the policy that drew them.
        siblings: ``[n]``, indices within the group of G siblings; None means all of them, n = G.
    """

    index: int
    x: Tensor
    x_next: Tensor
    old_log_prob: Tensor
    siblings: Tensor | None = None

    def of_siblings(self, values: Tensor) -> Tensor:
        """Select from a group's values ``[G]`` those of the siblings in this step, ``[n]``."""
        return values if self.siblings is None else values[self.siblings]

    def pieces(self, max_batch: int) -> "Iterator[tuple[slice, TrainStep]]":
        """Yield pieces of at most ``max_batch`` siblings, each with its rows; one piece if they share x."""
        size = len(self.x_next) if len(self.x) == 1 else max_batch
        for start in range(0, len(self.x_next), size):
            rows = slice(start, start + size)
            x = self.x if len(self.x) == 1 else self.x[rows]
            siblings = None if self.siblings is None else self.siblings[rows]
            yield rows, TrainStep(self.index, x, self.x_next[rows], self.old_log_prob[rows], siblings)


@dataclass(frozen=True)
class Rollout:
    """Result of one prompt's rollout.

    Attributes:
        text: embedding of the prompt, for one sample.
        steps: transitions to train on, in the order of the schedule.
        finals: latents of all pictures to score, ``[M, ...]``: for anchor-branch a group of G per step, in the order of
            ``steps``; for full SDE one group, whose rewards all steps share.
        sample_forwards: velocities computed, one per sample and step; those of an anchor path are not included.
    """

    text: PromptEmbedding
    steps: Sequence[TrainStep]
    finals: Tensor
    sample_forwards: int


def in_batches(velocity: Velocity, max_batch: int) -> Velocity:
    """Wrap a velocity function so that it is called on at most ``max_batch`` samples at a time."""

    def batched(x: Tensor, sigma: Tensor | float, text: PromptEmbedding) -> Tensor:
        if len(x) <= max_batch:
            return velocity(x, sigma, text)
        parts = [slice(i, i + max_batch) for i in range(0, len(x), max_batch)]
        return torch.cat([velocity(x[p], sigma, text[p]) for p in parts])

    return batched


def ode_step(x: Tensor, velocity: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Euler step of the probability-flow ODE: x' = x + (s' - s) v, in float32."""
    return x + (sigma_next - sigma) * velocity


def ode_trajectory(velocity: Velocity, noise: Tensor, text: PromptEmbedding, sigmas: Tensor) -> Trajectory:
    """Integrate the ODE from noise ``[n, ...]`` to data, with N = len(sigmas) - 1 forwards per sample."""
    levels = sigmas.tolist()
    states, velocities = [noise], []
    for sigma, sigma_next in pairwise(levels):
        velocities.append(velocity(states[-1], sigma, text))
        states.append(ode_step(states[-1], velocities[-1], sigma, sigma_next))
    return Trajectory(torch.stack(states), torch.stack(velocities))


def anchor_branch(
    velocity: Velocity,
    kernel: Kernel,
    anchor: Trajectory,
    text: PromptEmbedding,
    sigmas: Tensor,
    branch_indices: Sequence[int],
    noise: Tensor,
) -> Rollout:
    """Branch G siblings off a deterministic path at each index: one stochastic step, then the ODE to the end.

    The siblings of an index share the anchor's state and velocity there, so the stochastic step itself needs no
    forward. Branches that have reached the same step share a batch, whatever index they left from.

    Args:
        velocity: velocity function of the policy.
        kernel: the method's stochastic step.
        anchor: ODE path of the chosen prompt, for one sample.
        text: embedding of the prompt, for one sample.
        sigmas: schedule, ``[N + 1]``.
        branch_indices: steps to branch at, increasing, each in [0, N - 2].
        noise: ``[number of indices, G, ...]`` standard normal, one draw per sibling.
    """
    levels = sigmas.tolist()
    draws = dict(zip(branch_indices, noise, strict=True))
    steps = []
    running = anchor.final[:0]
    forwards = 0
    for index, (sigma, sigma_next) in enumerate(pairwise(levels)):
        if len(running):
            predicted = velocity(running, sigma, text.repeat(len(running)))
            forwards += len(running)
            running = ode_step(running, predicted, sigma, sigma_next)
        if index in draws:
            x, noises = anchor.states[index], draws[index]
            at_anchor = anchor.velocities[index].expand_as(noises)
            transition = kernel.step(x.expand_as(noises), at_anchor, sigma, sigma_next)
            siblings = transition.sample(noise=noises)
            steps.append(TrainStep(index, x, siblings, transition.log_prob(siblings)))
            running = torch.cat([running, siblings])
    return Rollout(text, steps, running, forwards)


def full_sde(
    velocity: Velocity,
    kernel: Kernel,
    start: Tensor,
    text: PromptEmbedding,
    sigmas: Tensor,
    stochastic_indices: Sequence[int],
    noise: Tensor,
    trained: Tensor | None = None,
) -> Rollout:
    """Sample G whole paths of one prompt, stochastic at some steps and deterministic at the others.

    Args:
        velocity: velocity function of the policy.
        kernel: the method's stochastic step.
        start: ``[G, ...]`` initial noise.
        text: embedding of the prompt, for one sample.
        sigmas: schedule, ``[N + 1]``.
        stochastic_indices: steps that are stochastic, increasing, each in [0, N - 2].
        noise: ``[number of indices, G, ...]`` standard normal.
        trained: ``[number of indices, G]`` bool, True where a sample is trained on; None means everywhere.
    """
    levels = sigmas.tolist()
    draws = dict(zip(stochastic_indices, noise, strict=True))
    everything = torch.ones(noise.shape[:2], dtype=torch.bool)
    rows = dict(zip(stochastic_indices, everything if trained is None else trained, strict=True))
    embedding = text.repeat(len(start))
    x = start
    steps = []
    for index, (sigma, sigma_next) in enumerate(pairwise(levels)):
        predicted = velocity(x, sigma, embedding)
        if index in draws:
            transition = kernel.step(x, predicted, sigma, sigma_next)
            x_next = transition.sample(noise=draws[index])
            steps += _train_step(TrainStep(index, x, x_next, transition.log_prob(x_next)), rows[index])
        else:
            x_next = ode_step(x, predicted, sigma, sigma_next)
        x = x_next
    return Rollout(text, steps, x, len(start) * (len(levels) - 1))


def _train_step(step: TrainStep, trained: Tensor) -> list[TrainStep]:
    """The step with only those siblings that ``trained``, ``[G]`` bool, selects; empty if it selects none."""
    if trained.all():
        return [step]
    siblings = trained.nonzero().flatten()
    part = TrainStep(step.index, step.x[siblings], step.x_next[siblings], step.old_log_prob[siblings], siblings)
    return [part] if len(siblings) else []
