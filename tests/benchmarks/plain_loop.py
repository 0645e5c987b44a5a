"""An AdaGRPO iteration as a first version would be written, with arithmetic of its own.

The trainer's numbers are tested against it (tests/harness/test_plain_loop.py), the project's speed is measured against
it. Branch after branch, LoRA adapters as peft leaves them, pictures through PIL. It is not slow on purpose: candidates
and siblings are batched, text is encoded once, the recogniser has the same batches and threads as in the project.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.config import RunConfig
from harness.models.pipelines.embedding import PromptEmbedding
from harness.models.pipelines.policy import Policy
from harness.prompts.lists import draw_candidates, generator_for
from harness.rewards import Reward


def gaussian(kernel: str, eta: float, x: Tensor, v: Tensor, s: float, t: float) -> tuple[Tensor, float, float]:
    """Mean and std of the latents at t, given those at s, and the weight of a squared error in the log-probability."""
    if kernel == "flow_cps":
        angle = eta * math.pi / 2
        return (1 - t) * (x - s * v) + t * math.cos(angle) * (x + (1 - s) * v), t * math.sin(angle), 1.0
    g2 = eta**2 * (s / (1 - (t if s == 1 else s)) if kernel == "flow_grpo" else 1)
    std = math.sqrt(g2 * (s - t))
    return x + (v + g2 / (2 * s) * (x + (1 - s) * v)) * (t - s), std, 1 / (2 * std**2)


class PlainLoop:
    """The same iterations as ``Trainer`` makes of the same configuration, for one capability-matched prompt each.

    Attributes:
        loss: of the last iteration, mean over its updates.
        seconds: of the last iteration, by phase: sampling, reward, update.
    """

    def __init__(self, config: RunConfig, policy: Policy, reward: Reward, prompts: tuple[str, ...]) -> None:
        self.config, self.policy, self.reward, self.prompts = config, policy, reward, prompts
        self.levels = policy.sigmas(config.model.num_steps).tolist()
        self.mean = self.variance = math.nan
        settings = config.optimizer
        self.optimizer = torch.optim.AdamW(
            policy.trainable().values(),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
        )
        self.iteration = 0
        self.loss = 0.0
        self.seconds: dict[str, float] = {}

    def iterate(self) -> None:
        """One iteration."""
        self.iteration += 1
        self.seconds = defaultdict(float)
        seed, rollout = self.config.seed, self.config.rollout
        candidates = draw_candidates(self.prompts, 1, rollout.candidates, seed, self.iteration)[0]
        keys = [(seed, self.iteration, 0, number, "anchor") for number in range(rollout.candidates)]
        noise = torch.cat([self.policy.noise(generator_for(*key)) for key in keys])
        with torch.no_grad(), self._phase("sampling"):
            path = self._ode(noise, self.levels, self.policy.encode(candidates))
        scores = self._score(path[-1], candidates)
        self._move_capability(scores)
        chosen = min(range(len(candidates)), key=lambda i: abs(scores[i].item() - self.mean))
        text = self.policy.encode([candidates[chosen]])
        draws = generator_for(seed, self.iteration, 0, "branches")
        branches = []
        for index in rollout.branch_indices:
            x, eps = path[index][chosen : chosen + 1], self.policy.noise(draws, rollout.group_size)
            with torch.no_grad(), self._phase("sampling"):
                centre, std, precision = self._step(x, index, text)
                drawn = centre + std * eps
                final = self._ode(drawn, self.levels[index + 1 :], text.repeat(len(drawn)))[-1]
            old = -precision * (drawn - centre).square().flatten(1).mean(1)
            advantages = self._advantages(self._score(final, [candidates[chosen]] * len(final)))
            branches.append((x, index, drawn, old, advantages))
        with self._phase("update"):
            updates = self.config.objective.updates_per_iteration
            self.loss = sum(self._update(branches, text) for _ in range(updates)) / updates

    def _ode(self, x: Tensor, levels: Sequence[float], text: PromptEmbedding) -> list[Tensor]:
        path = [x]
        for s, t in pairwise(levels):
            path.append(path[-1] + (t - s) * self.policy.velocity(path[-1], s, text))
        return path

    def _step(self, x: Tensor, index: int, text: PromptEmbedding) -> tuple[Tensor, float, float]:
        method, (s, t) = self.config.method, self.levels[index : index + 2]
        return gaussian(method.kernel, method.eta, x, self.policy.velocity(x, s, text), s, t)

    def _move_capability(self, scores: Tensor) -> None:
        decay, mean, variance = self.config.capability.decay, scores.mean().item(), scores.var(correction=0).item()
        first = self.iteration == 1
        self.mean = mean if first else decay * self.mean + (1 - decay) * mean
        self.variance = variance if first else decay * self.variance + (1 - decay) * variance

    def _advantages(self, rewards: Tensor) -> Tensor:
        local = ((rewards - rewards.mean()) / (rewards.std() + 1e-8)).clamp(-5, 5)
        z = (rewards - self.mean) / (math.sqrt(max(self.variance, 1e-8)) + 1e-8)
        above, below = z.clamp(min=0).sum(), -z.clamp(max=0).sum()
        level = z - z.mean() if min(above, below) < 1e-6 else torch.where(z > 0, z / above, z / below)
        return (local + self.config.fusion.weight * level.clamp(-5, 5)).float()

    def _update(self, branches: Sequence[tuple[Tensor, int, Tensor, Tensor, Tensor]], text: PromptEmbedding) -> float:
        clip = self.config.objective.clip_range
        self.optimizer.zero_grad()
        losses = []
        for x, index, drawn, old, advantage in branches:
            centre, _, precision = self._step(x, index, text)
            log_prob = -precision * (drawn - centre).square().flatten(1).mean(1)
            ratio = (log_prob - (log_prob.detach() if clip is None else old)).exp()
            gained = advantage * ratio
            if clip is not None:
                gained = torch.minimum(gained, advantage * ratio.clamp(1 - clip, 1 + clip))
            loss = -gained.mean() / len(branches)
            loss.backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(self.policy.trainable().values(), self.config.optimizer.max_grad_norm)
        self.optimizer.step()
        return sum(losses)

    def _score(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        with self._phase("reward"), torch.no_grad():
            decoded = (self.policy.decode(latents) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
            pictures = [Image.fromarray(image.numpy()) for image in decoded]
            pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
            return self.reward.score(pixels.permute(0, 3, 1, 2).float() / 255, prompts).double()

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began
