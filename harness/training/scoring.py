"""Scores of sampled pictures, by component, that may still be under way while more is sampled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.foundation.errors import TrainingError
from harness.rewards import Reward, RewardError
from harness.rewards.base import Pending


def require_finite(values: Tensor, what: str, where: str) -> None:
    """Raise TrainingError, which has the values, unless all are finite: it shows there when a policy has diverged."""
    if not values.isfinite().all():
        raise TrainingError(f"{what} are not finite {where}: lower the learning rate", {what: values})


@dataclass(frozen=True)
class Scores:
    """What n pictures, or groups of pictures, scored.

    Args:
        components: ``[n]`` float64 of each component, as its reward scores.
        total: ``[n]`` float64, the reward to train on.
    """

    components: dict[str, Tensor]
    total: Tensor

    def grouped(self, group_size: int) -> "Scores":
        """The same as ``[groups, G]``."""
        components = {name: values.reshape(-1, group_size) for name, values in self.components.items()}
        return Scores(components, self.total.reshape(-1, group_size))


@dataclass(frozen=True)
class PendingScores:
    """Scores that were asked for, a part of the pictures at a time."""

    reward: Reward
    parts: Sequence[Pending]

    def wait(self) -> Scores:
        """All scores, in float64: in float32 a group of equal rewards has advantages made of rounding.

        Raises:
            RewardError: the reward could not score, or a score is not finite.
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
    """Decode pictures, at most ``max_batch`` at a time, and hand each part to the reward.

    A remote reward scores one part while the next is decoded.

    Args:
        reward: scores them.
        decode: latents -> pictures ``[n, 3, H, W]`` in [0, 1], rounded to 1/255.
        latents: of n pictures.
        prompts: n prompts.
        max_batch: pictures in a part.
    """
    parts = [
        reward.submit(decode(latents[start : start + max_batch]), prompts[start : start + max_batch])
        for start in range(0, len(latents), max_batch)
    ]
    return PendingScores(reward, parts)
