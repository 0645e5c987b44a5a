"""How far scores in bfloat16 are from exact ones, on pictures of the miniature at given checkpoints."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from harness.prompts.lists import read_prompts
from harness.rewards.native.ocr import RECOGNISERS, OcrReward
from harness.trained.checkpoints import find_checkpoint
from harness.trained.loading import load_policy
from harness.training.evaluation import sample_images

NOISES = 9
"""Per validation prompt, so that there are at least 2,000 pictures."""


def measure_fidelity(checkpoints: Sequence[str], profile: str) -> dict[str, Any]:
    """For each checkpoint and recogniser: rank correlation, and largest and mean difference, of fast to exact scores.

    ``within`` is the mean rank correlation of a prompt's pictures, where they differ: what advantages are made of.
    """
    found: dict[str, Any] = {}
    for name in checkpoints:
        checkpoint = find_checkpoint(name, profile)
        prompts = read_prompts(checkpoint.config.prompts.validation).prompts
        policy = load_policy(checkpoint, torch.device("cpu"), prompts)
        drawn = [sample_images(policy, prompts, number) for number in range(NOISES)]
        label = f"{checkpoint.label}, {checkpoint.config.iterations} iterations" if checkpoint.run else "untrained"
        for reward in RECOGNISERS:
            exact, fast = (
                np.stack([OcrReward(reward, precision=precision).score(images, prompts).numpy() for images in drawn])
                for precision in ("fp32", "bf16")
            )
            uneven = [(a, b) for a, b in zip(exact.T, fast.T, strict=True) if np.ptp(a) > 0.01 and np.ptp(b) > 0]
            found[f"{label}, {reward}"] = one = {
                "pictures": exact.size,
                "rank_correlation": float(spearmanr(exact.ravel(), fast.ravel()).statistic),
                "within": float(np.mean([spearmanr(a, b).statistic for a, b in uneven])),
                "largest_difference": float(np.abs(fast - exact).max()),
                "mean_difference": float((fast - exact).mean()),
                "standard_deviation": float(exact.std()),
            }
            print(f"  {label}, {reward}: " + "  ".join(f"{key} {value:.4g}" for key, value in one.items()))
    return found
