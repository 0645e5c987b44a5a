"""Evaluation: one deterministic ODE sample per prompt and fixed noise, scored by every judge."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from harness.config import EvaluationConfig
from harness.foundation.files import replacing, write_atomically
from harness.models.pipelines.policy import Policy
from harness.prompts.lists import generator_for
from harness.rewards import Reward
from harness.rollout import ode_trajectory
from harness.training.scoring import require_finite

_NOISE_SEED = 20_260_606
"""Seed of evaluation noise. It is the same for every run, whatever its seed, so that only policies differ."""


def draw(
    policy: Policy,
    prompts: Sequence[str],
    generators: Sequence[torch.Generator],
    settings: EvaluationConfig | None = None,
) -> Tensor:
    """Draw pictures ``[n, 3, H, W]`` of n prompts, each by the ODE from noise of its own generator.

    A CPU generator seeded with s gives the same picture as the diffusers pipeline with that generator. Number of steps
    and size are the policy's own where the settings leave them open.

    Raises:
        ConfigError: the model cannot draw this size.
        TrainingError: pictures are not finite, because the policy has diverged.
    """
    settings = settings or EvaluationConfig()
    size = settings.height or policy.config.height, settings.width or policy.config.width
    max_batch = policy.config.max_batch
    images = []
    with policy.sampling(), policy.resolution(*size):
        sigmas = policy.sigmas(settings.num_steps or policy.config.num_steps)
        for start in range(0, len(prompts), max_batch):
            part = slice(start, start + max_batch)
            noise = torch.cat([policy.noise(generator) for generator in generators[part]])
            text = policy.encode(prompts[part])
            images.append(policy.decode(ode_trajectory(policy.velocity, noise, text, sigmas).final))
    drawn = torch.cat(images)
    require_finite(drawn, "pictures", "in an evaluation")
    return drawn


def sample_images(
    policy: Policy, prompts: Sequence[str], noise_index: int, settings: EvaluationConfig | None = None
) -> Tensor:
    """``draw`` with fixed noise that depends only on the prompt and ``noise_index``."""
    return draw(policy, prompts, [generator_for(_NOISE_SEED, prompt, noise_index) for prompt in prompts], settings)


def evaluate(
    policy: Policy,
    prompts: Sequence[str],
    rewards: Sequence[Reward],
    num_noises: int,
    settings: EvaluationConfig | None = None,
    on_images: Callable[[Tensor], None] = lambda images: None,
) -> dict[str, list[float]]:
    """Evaluate a policy on prompts by rewards: ``{metric: [mean over noises, for each prompt]}``.

    ``on_images`` is called once per noise with its pictures, one per prompt; for the settings see ``draw``.
    """
    collected: dict[str, list[Tensor]] = defaultdict(list)
    for noise_index in range(num_noises):
        images = sample_images(policy, prompts, noise_index, settings)
        on_images(images)
        # Two rewards may measure the same metric, such as a weighted sum and its part: it is counted once.
        measured: dict[str, Tensor] = {}
        for reward in rewards:
            measured |= reward.measure(images, prompts)
        for metric, values in measured.items():
            collected[metric].append(values)
    return {metric: torch.stack(values).double().mean(0).tolist() for metric, values in collected.items()}


def save_gallery(images: Tensor, prompts: Sequence[str], folder: Path, name: str) -> None:
    """Stack pictures into one column ``name.png`` and write their prompts beside it."""
    from PIL import Image

    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).flatten(0, 1)
    with replacing(folder / f"{name}.png") as stream:
        Image.fromarray(pixels.numpy()).save(stream, format="PNG")
    write_atomically(folder / "prompts.json", json.dumps(list(prompts), indent=1) + "\n")
