"""The trainer against the algorithm written down once more: a plain loop with arithmetic of its own."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from harness.config import RunConfig, compose
from harness.models.pipelines.flux import FluxPolicy
from harness.models.pipelines.policy import Policy
from harness.prompts.lists import draw_candidates, generator_for, read_prompts
from harness.rewards import Reward
from harness.training.trainer import Trainer

ITERATIONS, UPDATES, CLIP, WEIGHT, DECAY = 3, 2, 1e-3, 0.7, 0.8
SETTINGS = [
    "selection=curriculum",
    f"fusion={{enabled: true, weight: {WEIGHT}}}",
    f"capability.decay={DECAY}",
    "rollout={candidates: 3, group_size: 4, branch_indices: [0, 2]}",
    f"objective={{updates_per_iteration: {UPDATES}, clip_range: {CLIP}}}",
    # A large epsilon: AdamW makes a whole step of a gradient that is nothing but rounding.
    "optimizer={tuning: full, learning_rate: 1.0e-3, epsilon: 1.0e-3}",
]


class Brightness(Reward):
    """Mean of all pixels."""

    name = "brightness"

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return brightness(images)

    def fingerprint(self) -> str:
        return "brightness"


def brightness(images: Tensor) -> Tensor:
    return images.double().mean((1, 2, 3))


def gaussian(kernel: str, eta: float, x: Tensor, v: Tensor, s: float, t: float) -> tuple[Tensor, float, float]:
    """Mean and std of the latents at t, given those at s, and what a squared error counts in the log-probability."""
    if kernel == "flow_cps":
        angle = eta * math.pi / 2
        return (1 - t) * (x - s * v) + t * math.cos(angle) * (x + (1 - s) * v), t * math.sin(angle), 1.0
    g2 = eta**2 * (s / (1 - (t if s == 1 else s)) if kernel == "flow_grpo" else 1)
    std = math.sqrt(g2 * (s - t))
    return x + (v + g2 / (2 * s) * (x + (1 - s) * v)) * (t - s), std, 1 / (2 * std**2)


def plain_loop(config: RunConfig, policy: Policy, prompts: tuple[str, ...]) -> list[float]:
    """Loss of each iteration, mean over its updates."""
    rollout, kernel, eta, seed = config.rollout, config.method.kernel, config.method.eta, config.seed
    levels = policy.sigmas(config.model.num_steps).tolist()
    weights = list(policy.trainable().values())
    adam = torch.optim.AdamW(weights, lr=1e-3, betas=(0.9, 0.999), eps=1e-3, weight_decay=1e-4)
    mean = variance = None
    losses = []
    for iteration in range(1, ITERATIONS + 1):
        candidates = draw_candidates(prompts, 1, rollout.candidates, seed, iteration)[0]
        noise = [policy.noise(generator_for(seed, iteration, 0, i, "anchor")) for i in range(len(candidates))]
        with torch.no_grad():
            path, text = [torch.cat(noise)], policy.encode(candidates)
            for s, t in pairwise(levels):
                path.append(path[-1] + (t - s) * policy.velocity(path[-1], s, text))
            scores = brightness(policy.decode(path[-1]))
        now, spread = scores.mean().item(), ((scores - scores.mean()) ** 2).mean().item()
        mean = now if mean is None else DECAY * mean + (1 - DECAY) * now
        variance = spread if variance is None else DECAY * variance + (1 - DECAY) * spread
        chosen = min(range(len(candidates)), key=lambda i: abs(scores[i].item() - mean))
        text = policy.encode([candidates[chosen]])
        draws = generator_for(seed, iteration, 0, "branches")
        terms = []
        for index in rollout.branch_indices:
            x, s, t = path[index][chosen : chosen + 1], levels[index], levels[index + 1]
            eps = policy.noise(draws, rollout.group_size)
            with torch.no_grad():
                centre, std, precision = gaussian(kernel, eta, x, policy.velocity(x, s, text), s, t)
                drawn = final = centre + std * eps
                for u, w in pairwise(levels[index + 1 :]):
                    final = final + (w - u) * policy.velocity(final, u, text.repeat(len(final)))
                rewards = brightness(policy.decode(final))
            local = ((rewards - rewards.mean()) / (rewards.std() + 1e-8)).clamp(-5, 5)
            z = (rewards - mean) / (math.sqrt(max(variance, 1e-8)) + 1e-8)
            above, below = z.clamp(min=0).sum(), -z.clamp(max=0).sum()
            level = z - z.mean() if min(above, below) < 1e-6 else torch.where(z > 0, z / above, z / below)
            old = -precision * (drawn - centre).square().flatten(1).mean(1)
            terms.append((x, s, t, drawn, old, (local + WEIGHT * level.clamp(-5, 5)).float()))
        logged = []
        for _ in range(UPDATES):
            loss = torch.zeros(())
            for x, s, t, drawn, old, advantage in terms:
                centre, _, precision = gaussian(kernel, eta, x, policy.velocity(x, s, text), s, t)
                ratio = (-precision * (drawn - centre).square().flatten(1).mean(1) - old).exp()
                gained = torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - CLIP, 1 + CLIP))
                loss = loss - gained.mean() / len(terms)
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            adam.step()
            logged.append(loss.item())
        losses.append(sum(logged) / UPDATES)
    return losses


@pytest.mark.parametrize("method", ["flow_grpo", "dance_grpo", "flow_cps"])
def test_the_trainer_computes_what_a_plain_loop_does(method: str) -> None:
    torch.set_num_threads(1)
    config = compose("smoke", method=method, overrides=SETTINGS)
    prompts = read_prompts(config.prompts.train).prompts
    ours, theirs = (FluxPolicy(config.model, config.optimizer, torch.device("cpu"), config.seed) for _ in range(2))
    start = {name: weight.detach().clone() for name, weight in ours.trainable().items()}
    trainer = Trainer(config, ours, Brightness(), prompts, Accelerator(cpu=True))
    records = [trainer.iterate() for _ in range(ITERATIONS)]
    expected = plain_loop(config, theirs, prompts)
    assert [record["loss"] for record in records] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert max(record["ratio_max_deviation"] for record in records) > 0
    moved = 0.0
    for name, weight in theirs.trainable().items():
        moved = max(moved, (weight - start[name]).abs().max().item())
        # An eta that is off by 1 % makes 4e-5 and more.
        torch.testing.assert_close(ours.trainable()[name], weight, rtol=0, atol=1e-5, msg=name)
    assert moved > 1e-4
