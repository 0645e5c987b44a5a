"""Evaluation: one deterministic ODE sample per prompt and fixed noise, scored by every judge."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from harness.models.flux import FluxPolicy
from harness.prompts import generator_for
from harness.rewards import Reward
from harness.rollout import ode_trajectory
from harness.trainer import require_finite

_NOISE_SEED = 20_260_606
"""Evaluation noise is the same for every run, whatever its seed: differences are the policy's."""


def sample_images(policy: FluxPolicy, prompts: Sequence[str], noise_index: int) -> Tensor:
    """Pictures ``[n, 3, H, W]`` of prompts; each prompt's noise depends on the prompt and ``noise_index`` alone.

    Raises:
        TrainingError: the policy has diverged, so that pictures are not finite.
    """
    sigmas = policy.sigmas(policy.config.num_steps)
    max_batch = policy.config.max_batch
    images = []
    with policy.sampling():
        for start in range(0, len(prompts), max_batch):
            part = prompts[start : start + max_batch]
            noise = torch.cat([policy.noise(generator_for(_NOISE_SEED, prompt, noise_index)) for prompt in part])
            images.append(policy.decode(ode_trajectory(policy.velocity, noise, policy.encode(part), sigmas).final))
    drawn = torch.cat(images)
    require_finite(drawn, "in an evaluation")
    return drawn


def evaluate(
    policy: FluxPolicy, prompts: Sequence[str], rewards: Sequence[Reward], num_noises: int
) -> dict[str, list[float]]:
    """Measure a policy on prompts: ``{metric: [value per prompt, mean over noises]}``."""
    collected: dict[str, list[Tensor]] = defaultdict(list)
    for noise_index in range(num_noises):
        images = sample_images(policy, prompts, noise_index)
        # Two rewards may measure the same metric, such as a weighted sum and its part: equal, and counted once.
        measured: dict[str, Tensor] = {}
        for reward in rewards:
            measured |= reward.measure(images, prompts)
        for metric, values in measured.items():
            collected[metric].append(values)
    return {metric: torch.stack(values).double().mean(0).tolist() for metric, values in collected.items()}


def save_gallery(images: Tensor, prompts: Sequence[str], folder: Path, name: str) -> None:
    """Stack pictures into one column ``name.png`` and write their prompts beside it."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).flatten(0, 1)
    Image.fromarray(pixels.numpy()).save(folder / f"{name}.png")
    (folder / "prompts.json").write_text(json.dumps(list(prompts), indent=1) + "\n")
