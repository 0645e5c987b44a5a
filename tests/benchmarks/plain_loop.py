"""An AdaGRPO iteration as a first version would be written: what the project's speed is measured against.

Branch after branch, LoRA adapters as peft leaves them, pictures through PIL. It is not slow on purpose: candidates and
siblings are batched, text is encoded once, the recogniser has the same batches and threads as in the project.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.adagrpo import CapabilityTracker, fuse_advantages, global_advantage, local_advantage, select_prompt
from harness.config import RunConfig
from harness.models.pipelines.flux import FluxPolicy
from harness.prompts.lists import draw_candidates, generator_for
from harness.rewards import Reward
from harness.transitions import KERNELS


class PlainLoop:
    """The same iterations as ``Trainer`` makes of the same configuration, for one prompt per iteration.

    Attributes:
        loss: of the last iteration, mean over branch indices.
        seconds: of the last iteration, by phase: sampling, reward, update.
    """

    def __init__(self, config: RunConfig, policy: FluxPolicy, reward: Reward, prompts: tuple[str, ...]) -> None:
        self.config, self.policy, self.reward, self.prompts = config, policy, reward, prompts
        self.kernel = KERNELS[config.method.kernel](eta=config.method.eta)
        self.sigmas = policy.sigmas(config.model.num_steps).tolist()
        self.tracker = CapabilityTracker(config.capability.decay)
        self.parameters = policy.trainable()
        settings = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
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
        prompts = draw_candidates(self.prompts, 1, rollout.candidates, seed, self.iteration)[0]
        noise = [
            self.policy.noise(generator_for(seed, self.iteration, 0, i, "anchor")) for i in range(rollout.candidates)
        ]
        with torch.no_grad(), self._phase("sampling"):
            text = self.policy.encode(prompts)
            path = [torch.cat(noise)]
            for sigma, sigma_next in zip(self.sigmas, self.sigmas[1:], strict=False):
                path.append(path[-1] + (sigma_next - sigma) * self.policy.velocity(path[-1], sigma, text))
        rewards = self._score(path[-1], prompts)
        self.tracker.update(rewards)
        chosen = select_prompt(rewards, self.config.selection, self.tracker)
        text = self.policy.encode([prompts[chosen]])
        generator = generator_for(seed, self.iteration, 0, "branches")
        branches = []
        for index in rollout.branch_indices:
            x = path[index][chosen : chosen + 1]
            noises = self.policy.noise(generator, rollout.group_size)
            with torch.no_grad(), self._phase("sampling"):
                siblings = self._transition(x, index, text, noises).sample(noise=noises)
                final = siblings
                repeated = text.repeat(rollout.group_size)
                for step in range(index + 1, len(self.sigmas) - 1):
                    velocity = self.policy.velocity(final, self.sigmas[step], repeated)
                    final = final + (self.sigmas[step + 1] - self.sigmas[step]) * velocity
            branches.append((index, x, siblings, self._score(final, [prompts[chosen]] * rollout.group_size)))
        with self._phase("update"):
            self._update(branches, text)

    def _update(self, branches: Sequence[tuple], text: object) -> None:
        self.optimizer.zero_grad()
        losses = []
        for index, x, siblings, rewards in branches:
            local = local_advantage(rewards)
            advantages = fuse_advantages(
                local, global_advantage(rewards, self.tracker.mean, self.tracker.std), self.config.fusion.weight
            )
            log_prob = self._transition(x, index, text, siblings).log_prob(siblings)
            loss = -(advantages.to(log_prob.dtype) * (log_prob - log_prob.detach()).exp()).mean()
            (loss / len(branches)).backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.optimizer.max_grad_norm)
        self.optimizer.step()
        self.loss = sum(losses) / len(losses)

    def _transition(self, x: Tensor, index: int, text: object, like: Tensor) -> object:
        velocity = self.policy.velocity(x, self.sigmas[index], text)
        return self.kernel.step(x.expand_as(like), velocity.expand_as(like), self.sigmas[index], self.sigmas[index + 1])

    def _score(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        with self._phase("reward"):
            decoded = (self.policy.decode(latents) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
            pictures = [Image.fromarray(image.numpy()) for image in decoded]
            pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
            return self.reward.score(pixels.permute(0, 3, 1, 2).float() / 255, prompts).double()

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began
