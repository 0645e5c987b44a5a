"""Reward for drawing the background and the text in the colours that the prompt names."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.models.miniature.prompts import COLOURS, parse_prompt
from harness.rewards.base import Reward, check_images

TOLERANCE = 0.25
"""Root-mean-square colour distance that divides the score by e. Black and white are 1.5 apart, blue and purple 0.4."""

BACKGROUND_SHARE = 0.6
"""Share of pixels that count as background. Text with its soft edges covers at most a third of a picture."""

TEXT_SHARE_PER_LETTER = 0.0035
"""Share of pixels per letter that count as text: 14 of 128 x 32, the area of an i, which clean text always has."""

_FORMULA_VERSION = "colour-1"


class ColourReward(Reward):
    """Closeness of the drawn background and text colours to those of the prompt.

    Pixels are ranked by their RGB distance from the picture's median colour, whatever the prompt says. The nearest 60 %
    are its background, the furthest 0.35 % per letter its text; soft edges lie between and are ignored. With
    E_background and E_text the mean squared RGB distances (channels in [0, 1], summed over channels) of these pixels
    from the prompt's colours,

        score = exp(-(E_background + E_text) / 0.25^2).

    Ranks rather than thresholds keep the score continuous in every pixel. A clean drawing scores 1. A blank picture of
    the right background has no pixel near the text colour and scores below 0.01, as do swapped colours. A wrong text
    colour of the palette scores below 0.1, a wrong background below 0.22, or 0.37 if orange and yellow, the closest
    two, are confused. Texture on the background lowers the score by its variance.
    """

    name = "colour"
    resolution = 1e-7  # computed in float64, then rounded to float32

    def measure(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Compute the score and the error of the background, which is a sign of reward hacking by texture.

        Returns:
            ``{"colour": [B], "colour/background_error": [B] in [0, 1]}``; the error is the mean absolute deviation of
            the background pixels from the prompt's background colour, over pixels and channels.

        Raises:
            ValueError: invalid images, see ``check_images``, or a prompt outside the miniature's grammar.
        """
        wanted = [parse_prompt(prompt) for prompt in prompts]
        pixels = check_images(images, prompts, self.name).double().div(255).flatten(2).transpose(1, 2)  # [B, H W, 3]
        background = _rgb([prompt.background for prompt in wanted])
        text = _rgb([prompt.colour for prompt in wanted])

        distance = (pixels - pixels.median(dim=1, keepdim=True).values).norm(dim=-1)
        by_distance = distance.argsort(dim=1, stable=True)[..., None].expand_as(pixels)
        nearest_first = pixels.gather(1, by_distance)

        num_pixels = pixels.shape[1]
        from_background = nearest_first[:, : max(1, round(BACKGROUND_SHARE * num_pixels))] - background
        num_text = [max(1, round(TEXT_SHARE_PER_LETTER * len(prompt.word) * num_pixels)) for prompt in wanted]
        background_error = from_background.square().sum(-1).mean(-1)
        text_error = torch.stack(
            [
                (picture[-count:] - colour).square().sum(-1).mean()
                for picture, colour, count in zip(nearest_first, text, num_text, strict=True)
            ]
        )
        return {
            self.name: torch.exp(-(background_error + text_error) / TOLERANCE**2).float(),
            f"{self.name}/background_error": from_background.abs().mean(dim=(1, 2)).float(),
        }

    def check_prompt(self, prompt: str) -> None:
        parse_prompt(prompt)

    def fingerprint(self) -> str:
        return f"{_FORMULA_VERSION}:{hashlib.sha256(repr(sorted(COLOURS.items())).encode()).hexdigest()[:16]}"


def _rgb(names: Sequence[str]) -> Tensor:
    """RGB values ``[B, 1, 3]`` in [0, 1] of B colour names."""
    return torch.tensor([COLOURS[name] for name in names], dtype=torch.float64)[:, None] / 255
