"""Scores of sampled pictures, by component, computed asynchronously while more pictures are sampled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.foundation.errors import TrainingError
from harness.rewards import Reward, RewardError
from harness.rewards.base import Pending


def require_finite(values: Tensor, what: str, where: str) -> None:
    """Raise TrainingError, with the values attached, unless all are finite; a diverged policy is noticed here."""
    if not values.isfinite().all():
        raise TrainingError(f"{what} are not finite {where}: lower the learning rate", {what: values})


@dataclass(frozen=True)
class Scores:
    """Scores of n pictures, or of groups of pictures.

    Attributes:
        components: ``[n]`` float64 for each component, in its own unit.
        total: ``[n]`` float64, the reward to train on.
    """

    components: dict[str, Tensor]
    total: Tensor

    def grouped(self, group_size: int) -> "Scores":
        """The same scores, reshaped to ``[groups, G]``."""
        components = {name: values.reshape(-1, group_size) for name, values in self.components.items()}
        return Scores(components, self.total.reshape(-1, group_size))


@dataclass(frozen=True)
class PendingScores:
    """Scores that have been requested, one request per part of the pictures."""

    reward: Reward
    parts: Sequence[Pending]

    def wait(self) -> Scores:
        """Wait for all scores. In float64, because float32 rounding would give groups of equal rewards advantages.

        Raises:
            RewardError: the reward failed, or a score is not finite.
        """
        arrived = [part() for part in self.parts]
        components = {name: torch.cat([part[name] for part in arrived]).double() for name in arrived[0]}
        total = self.reward.total(components)
        if not (finite := total.isfinite()).all():
            image = int((~finite).nonzero()[0])
            each = ", ".join(f"{name} {values[image].item():g}" for name, values in components.items())
            raise RewardError(f"reward {self.reward.name!r}: picture {image} has no finite score ({each})", image)
        return Scores(components, total)


def start_scoring(
    reward: Reward, decode: Callable[[Tensor], Tensor], latents: Tensor, prompts: Sequence[str], max_batch: int
) -> PendingScores:
    """Decode pictures, at most ``max_batch`` at a time, and submit each part to the reward.

    A remote reward scores one part while the next is decoded. ``decode`` maps latents to pictures ``[n, 3, H, W]`` in
    [0, 1], rounded to 1/255.
    """
    parts = [
        reward.submit(decode(latents[start : start + max_batch]), prompts[start : start + max_batch])
        for start in range(0, len(latents), max_batch)
    ]
    return PendingScores(reward, parts)
