"""Statistics of pictures that no reward measures, for signs of reward hacking and of collapsing diversity."""

from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.models.miniature import lettering

VERSION = "1"
"""Version of all measures in this module; cached values of another version are measured again."""

_LARGEST_SIDE = 128
"""Pixels per side to which larger pictures are reduced before they are compared, to save memory."""


class Observer:
    """Collects an evaluation's pictures, one noise after another, and measures them prompt by prompt.

    For any pictures with two noises or more: ``pictures/pixel_spread``, the root-mean-square difference of two pictures
    of a prompt, mean over pairs, in [0, 1] as pixels are; 0 for a policy that draws the same picture from any noise.

    For the miniature also fonts and texture, see ``lettering.measure``, and with two noises or more
    ``pictures/font_spread``, the probability that two pictures of a prompt have different fonts, and
    ``pictures/colour_spread``, the difference of their text and background colours, computed like ``pixel_spread``.
    ``is_miniature`` is that of the whole list, so that all processes and groups have the same metrics.
    """

    def __init__(self, prompts: Sequence[str], is_miniature: bool) -> None:
        self._prompts = prompts
        self._is_miniature = is_miniature
        self._small: list[Tensor] = []
        self._lettering: list[dict[str, Tensor]] = []

    def add(self, images: Tensor) -> None:
        """Add one picture of each prompt, ``[prompts, 3, H, W]`` in [0, 1]."""
        self._small.append(reduced(images))
        if self._is_miniature:
            self._lettering.append(lettering.measure(images.detach().float().cpu(), self._prompts))

    def metrics(self) -> dict[str, list[float]]:
        """``{metric: [one value per prompt]}`` over all pictures added: means over noises or pairs of noises."""
        measured: dict[str, Tensor] = {}
        if self._lettering:
            fonts = torch.stack([seen["fonts"] for seen in self._lettering])
            measured |= {f"pictures/font_{font}": fonts[..., i].mean(0) for i, font in enumerate(lettering.FONT_NAMES)}
            measured["pictures/texture"] = torch.stack([seen["texture"] for seen in self._lettering]).mean(0)
        if len(self._small) > 1:
            measured["pictures/pixel_spread"] = _spread(self._small)
            if self._lettering:
                measured["pictures/colour_spread"] = _spread([seen["colours"] for seen in self._lettering])
                differs = [(a * b).sum(-1) for a, b in combinations(fonts, 2)]
                measured["pictures/font_spread"] = 1 - torch.stack(differs).mean(0)
        return {metric: values.double().tolist() for metric, values in measured.items()}


def _spread(noises: Sequence[Tensor]) -> Tensor:
    """Root-mean-square difference of two of ``noises``, each ``[prompts, ...]``; mean over pairs, ``[prompts]``."""
    pairs = [(a - b).flatten(1).square().mean(1).sqrt() for a, b in combinations(noises, 2)]
    return torch.stack(pairs).mean(0)


def group_spreads(images: Tensor, prompt: str, group_size: int, is_miniature: bool) -> dict[str, float]:
    """Spreads of ``Observer`` within groups of training, mean over groups: ``{"pixel_spread": ...}`` and so on.

    The pictures of the prompt, ``[groups * group_size, 3, H, W]`` in [0, 1], are given group after group.
    """
    siblings = images.unflatten(0, (-1, group_size)).unbind(1)
    observer = Observer([prompt] * len(siblings[0]), is_miniature)
    for of_groups in siblings:
        observer.add(of_groups)
    spreads = {name: values for name, values in observer.metrics().items() if name.endswith("_spread")}
    return {name.removeprefix("pictures/"): sum(values) / len(values) for name, values in spreads.items()}


def reduced(images: Tensor) -> Tensor:
    """Pictures ``[B, 3, H, W]`` on the CPU in float32, reduced to at most ``_LARGEST_SIDE`` pixels per side."""
    images = images.detach().float().cpu()
    height, width = images.shape[-2:]
    factor = max(height, width) / _LARGEST_SIDE
    if factor <= 1:
        return images
    return F.adaptive_avg_pool2d(images, (max(1, round(height / factor)), max(1, round(width / factor))))
