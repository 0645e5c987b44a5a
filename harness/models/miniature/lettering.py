"""Measures of the miniature's pictures: font and colours of the word, and texture of the background."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from harness.models.miniature.prompts import FONTS, parse_prompt
from harness.models.miniature.render import HEIGHT, WIDTH, fitting_font

FONT_NAMES = tuple(FONTS)
_BACKGROUND_SHARE = 0.6
"""Share of pixels nearest to the median colour that count as background; text covers at most a third of a picture."""
_TEXT_SHARE = 0.02
"""Share of pixels furthest from the median colour that count as text; less than any word has, to omit soft edges."""
_SHIFT_X, _SHIFT_Y = 4, 3
"""Largest distance of a word from the centre, in pixels: the jitter of the pretraining pictures and one or two more."""


def measure(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Measure font, colours and texture of pictures.

    - fonts: the one of ``FONT_NAMES`` in which the prompt's word is drawn: the font whose ink, within a few pixels of
      the centre, correlates best with the picture's distance from its median colour.
    - colours: the median colour, which is the background's, and the mean of the 2 % of pixels furthest from it.
    - texture: root-mean-square difference of a background pixel from the mean of its four neighbours, where these are
      background as well. A smooth gradient has none; a checkerboard of amplitude a has 2 a.

    Args:
        images: ``[B, 3, H, W]`` in [0, 1]; fonts are recognised only at the size of the pretraining pictures.
        prompts: B prompts of the miniature's grammar, else ValueError.

    Returns:
        ``fonts`` ``[B, fonts]`` of 0 and 1 (all 0 at another size); ``colours`` ``[B, 6]`` in [0, 1], background first;
        ``texture`` ``[B]`` in [0, 1].
    """
    words = [parse_prompt(prompt).word for prompt in prompts]
    pixels = images.flatten(2)
    background = pixels.median(dim=2).values
    distance = (pixels - background[..., None]).square().sum(1).sqrt()  # [B, H W]
    furthest = distance.topk(max(1, round(_TEXT_SHARE * distance.shape[1]))).indices
    text = pixels.gather(2, furthest[:, None].expand(-1, 3, -1)).mean(2)
    nearness = distance.kthvalue(max(1, round(_BACKGROUND_SHARE * distance.shape[1]))).values
    is_background = (distance <= nearness[:, None]).view(len(images), 1, *images.shape[2:])
    return {
        "fonts": _fonts(distance.view(len(images), *images.shape[2:]), words),
        "colours": torch.cat([background, text], dim=1),
        "texture": _texture(images, is_background),
    }


def _texture(images: Tensor, is_background: Tensor) -> Tensor:
    above, below, left, right = _neighbours(images)
    off = images[..., 1:-1, 1:-1] - (above + below + left + right) / 4
    # A pixel counts if it and all four neighbours are background.
    counts = is_background[..., 1:-1, 1:-1]
    for around in _neighbours(is_background):
        counts = counts & around
    squares = off.square().sum(1, keepdim=True) * counts
    return (squares.sum(dim=(1, 2, 3)) / (3 * counts.sum(dim=(1, 2, 3))).clamp_min(1)).sqrt()


def _neighbours(grid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values above, below, left and right of each inner pixel of ``[..., H, W]``."""
    return grid[..., :-2, 1:-1], grid[..., 2:, 1:-1], grid[..., 1:-1, :-2], grid[..., 1:-1, 2:]


def _fonts(ink: Tensor, words: Sequence[str]) -> Tensor:
    """One-hot fonts ``[B, fonts]`` from ink ``[B, H, W]``; 0 at another size."""
    found = torch.zeros(len(ink), len(FONT_NAMES))
    if ink.shape[1:] != (HEIGHT, WIDTH):
        return found
    pictures = torch.fft.rfft2(ink)
    for i, word in enumerate(words):
        agreement = torch.fft.irfft2(pictures[i] * _templates(word).conj(), s=(HEIGHT, WIDTH))
        near = torch.roll(agreement, (_SHIFT_Y, _SHIFT_X), dims=(1, 2))[:, : 2 * _SHIFT_Y + 1, : 2 * _SHIFT_X + 1]
        found[i, near.flatten(1).amax(1).argmax()] = 1
    return found


@lru_cache(maxsize=1024)
def _templates(word: str) -> Tensor:
    """Spectra of the word's ink in each font, normalised to mean 0 and norm 1: ``[fonts, H, W // 2 + 1]``."""
    drawn = []
    for name in FONT_NAMES:
        canvas = Image.new("L", (WIDTH, HEIGHT), 0)
        ImageDraw.Draw(canvas).text((WIDTH / 2, HEIGHT / 2), word, font=fitting_font(name, word), fill=255, anchor="mm")
        drawn.append(np.asarray(canvas, dtype=np.float32))
    ink = torch.from_numpy(np.stack(drawn))
    ink = ink - ink.mean(dim=(1, 2), keepdim=True)
    spectra: Tensor = torch.fft.rfft2(ink / ink.flatten(1).norm(dim=1)[:, None, None])
    return spectra
