"""Draws the pictures that the miniature is pretrained on: one word, 128 x 32 RGB."""

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from harness.models.miniature.prompts import BACKGROUNDS, FONTS, TEXT_COLOURS, UNNAMED_FONTS, MiniaturePrompt

WIDTH, HEIGHT = 128, 32
_MAX_FONT_SIZE, _MARGIN = 24, 5


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    # DejaVu ships inside matplotlib, so that every machine draws with the same files.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / FONTS[name]), size)


def _fitting_font(name: str, word: str) -> ImageFont.FreeTypeFont:
    for size in range(_MAX_FONT_SIZE, 7, -1):
        if _font(name, size).getlength(word) <= WIDTH - 2 * _MARGIN:
            return _font(name, size)
    raise ValueError(f"the word {word!r} does not fit into {WIDTH} pixels")


def render(prompt: MiniaturePrompt, rng: np.random.Generator) -> np.ndarray:
    """Draw a prompt.

    Args:
        prompt: what to draw; without a font, one of ``UNNAMED_FONTS`` is drawn at random.
        rng: draws the font and a jitter of at most 2 pixels.

    Returns:
        ``[32, 128, 3]`` uint8.
    """
    font = _fitting_font(prompt.font or UNNAMED_FONTS[rng.integers(len(UNNAMED_FONTS))], prompt.word)
    image = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUNDS[prompt.background])
    centre = (WIDTH / 2 + rng.uniform(-2, 2), HEIGHT / 2 + rng.uniform(-1, 1))
    ImageDraw.Draw(image).text(centre, prompt.word, font=font, fill=TEXT_COLOURS[prompt.colour], anchor="mm")
    return np.asarray(image)
