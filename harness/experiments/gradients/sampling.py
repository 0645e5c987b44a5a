"""Candidates, groups and gradients of a fixed policy, drawn as the trainer draws them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.adagrpo import SELECTION_STRATEGIES, CapabilityTracker, select_prompt
from harness.config import RunConfig
from harness.experiments.gradients.checkpoint import MeasuredCheckpoint
from harness.experiments.gradients.gradients import score_gradients, unbiased_advantages, update_gradients
from harness.experiments.parts import Arrays
from harness.models.pipelines.policy import Policy
from harness.prompts.lists import draw_candidates, generator_for, read_prompts
from harness.rewards import Reward, build_weighted
from harness.rollout import Rollout, anchor_branch, in_batches, ode_trajectory
from harness.rules.plugins import kernel_of
from harness.training.scoring import require_finite, start_scoring


class Sampled(NamedTuple):
    """A prompt's groups: rewards ``[K, G]`` float64, and scores of ``score_gradients``, ``[K * G, parameters]``."""

    rewards: Tensor
    scores: Tensor


class Sampler:
    """Sampler of a policy that stays as it is.

    Prompts and noise are functions of seed and round: those of round t are what a run of this seed, with one prompt per
    update, draws at iteration t. Strategies share them: whichever prompt is chosen, its siblings get the same noise.

    Args:
        config: the measured configuration.
        policy: policy at the checkpoint.
        reward: reward that is trained on.
        prompts: the training list.
    """

    def __init__(self, config: RunConfig, policy: Policy, reward: Reward, prompts: tuple[str, ...]) -> None:
        self.config, self.policy, self.reward, self.prompts = config, policy, reward, prompts
        self.kernel = kernel_of(config.method.kernel, config.source_of(config.method.kernel), config.method.eta)
        self.sigmas = policy.sigmas(config.model.num_steps)
        self.velocity = in_batches(policy.velocity, config.model.max_batch)

    def candidates(self, number: int) -> list[str]:
        """B candidate prompts of a round; rounds count from 1."""
        seed = self.config.seed
        [drawn] = draw_candidates(self.prompts, 1, self.config.rollout.candidates, seed, number)
        return drawn

    def candidate_rewards(self, number: int) -> Tensor:
        """Rewards ``[B]`` float64 of one deterministic sample of each candidate of a round."""
        prompts = self.candidates(number)
        noise = torch.cat([self._candidate_noise(number, candidate) for candidate in range(len(prompts))])
        return self.rewards_of(prompts, noise)

    def rewards_of(self, prompts: Sequence[str], noise: Tensor, steps: int | None = None) -> Tensor:
        """Rewards ``[B]`` float64 of a deterministic sample of each prompt from its noise ``[B, ...]``."""
        sigmas = self.sigmas if steps is None else self.policy.sigmas(steps)
        with self.policy.sampling():
            path = ode_trajectory(self.velocity, noise, self.policy.encode(list(prompts)), sigmas)
        return self._score(path.final, prompts)

    def of_candidate(self, number: int, candidate: int) -> Sampled:
        """Groups of a round's candidate, branched off its deterministic path."""
        prompt = self.candidates(number)[candidate]
        noise = self._candidate_noise(number, candidate)
        return self.of_prompt(prompt, noise, (self.config.seed, number, 0, "branches"))

    def of_reference(self, number: int) -> Sampled:
        """Groups of a prompt drawn uniformly from the training list, with its own noise; ``number`` counts from 0."""
        key = (self.config.seed, "reference", number)
        drawn = int(torch.randint(len(self.prompts), (1,), generator=generator_for(*key, "prompt")))
        noise = self.policy.noise(generator_for(*key, "anchor"))
        return self.of_prompt(self.prompts[drawn], noise, (*key, "branches"))

    def _candidate_noise(self, number: int, candidate: int) -> Tensor:
        return self.policy.noise(generator_for(self.config.seed, number, 0, candidate, "anchor"))

    def of_prompt(
        self, prompt: str, anchor_noise: Tensor, branch_key: tuple[int | str, ...], group_size: int | None = None
    ) -> Sampled:
        """Groups of any prompt, branched off the path from ``anchor_noise``; ``branch_key`` seeds their own noise."""
        indices, size = self.config.rollout.branch_indices, group_size or self.config.rollout.group_size
        generator = generator_for(*branch_key)
        noise = torch.stack([self.policy.noise(generator, size) for _ in indices])
        branched = self.branch(prompt, anchor_noise, indices, noise)
        scores = score_gradients(self.policy, self.kernel, self.sigmas, branched)
        return Sampled(self.group_rewards(prompt, branched, size), scores)

    def branch(self, prompt: str, anchor_noise: Tensor, indices: Sequence[int], noise: Tensor) -> Rollout:
        """Rollout of a prompt that branches off the path from ``anchor_noise``, see ``anchor_branch``."""
        text = self.policy.encode([prompt])
        with self.policy.sampling():
            anchor = ode_trajectory(self.velocity, anchor_noise, text, self.sigmas)
            return anchor_branch(self.velocity, self.kernel, anchor, text, self.sigmas, indices, noise)

    def group_rewards(self, prompt: str, rollout: Rollout, group_size: int) -> Tensor:
        """Rewards ``[K, G]`` float64 of a prompt's groups."""
        return self._score(rollout.finals, [prompt] * len(rollout.finals)).reshape(-1, group_size)

    def _score(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        def decode(part: Tensor) -> Tensor:
            images = self.policy.decode(part)
            require_finite(images, "pictures", "in a measurement")
            return images

        return start_scoring(self.reward, decode, latents, prompts, self.config.model.max_batch).wait().total


def make_sampler(config: RunConfig, checkpoint: MeasuredCheckpoint, device: torch.device) -> Sampler:
    """Sampler of the policy at a checkpoint, on a device."""
    torch.set_num_threads(config.runtime.threads)
    policy = checkpoint.load(config, device)
    prompts = read_prompts(config.prompts.train).prompts
    policy.check_prompts(prompts)
    return Sampler(config, policy, build_weighted(config.reward, config.runtime.threads, config.rewards), prompts)


def reference_sums(members: range, sampler: Sampler) -> Arrays:
    """``sum`` of the unbiased gradients of reference prompts, and their ``count``."""
    total = torch.zeros((), dtype=torch.float64)
    for number in members:
        sampled = sampler.of_reference(number)
        [gradient] = update_gradients(sampled.scores, unbiased_advantages(sampled.rewards))
        total = total + gradient
    return {"sum": total.float().numpy(), "count": np.array(len(members))}


def reference_direction(parts: Sequence[Arrays]) -> Tensor:
    """Reference gradient, ``[parameters]`` float64: the mean over the reference prompts of all parts."""
    total = sum(part["sum"].astype(np.float64) for part in parts)
    return torch.from_numpy(total / sum(int(part["count"]) for part in parts))


def choose_all(rewards: Tensor, config: RunConfig) -> list[dict[str, int]]:
    """Choice of every strategy in each round, from the first on, with a capability that includes all rounds so far.

    Args:
        rewards: rewards of candidates, ``[rounds, B]``.
        config: configuration with seed and EMA decay.
    """
    tracker = CapabilityTracker(config.capability.decay)
    choices = []
    for number, of_round in enumerate(rewards, start=1):
        tracker.update(of_round)
        choices.append(
            {
                strategy: select_prompt(of_round, strategy, tracker, generator_for(config.seed, number, 0, "selection"))
                for strategy in SELECTION_STRATEGIES
            }
        )
    return choices
