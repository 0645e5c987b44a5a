"""What a reward is: a name, a range, and a score per image."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor


class Reward(ABC):
    """A scorer of images against prompts.

    Images are ``[B, 3, H, W]`` floats in [0, 1], already rounded to multiples of 1/255, so that the score of a
    saved PNG equals the score seen in training.
    """

    name: str
    """Key of this reward in configs, metrics and tables."""
    low: float
    """Smallest possible score."""
    high: float
    """Largest possible score."""

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score each image.

        Args:
            images: ``[B, 3, H, W]`` in [0, 1], rounded to 1/255.
            prompts: B prompt strings, one an image.

        Returns:
            ``[B]`` float32 on the CPU, in ``[low, high]``, higher is better.
        """

    def measure(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Everything worth reporting of each image at evaluation: ``{metric name: [B]}``, the score under ``name``."""
        return {self.name: self.score(images, prompts)}

    @abstractmethod
    def fingerprint(self) -> str:
        """A string that changes whenever scores could change (weights' sha256, version of the formula)."""
