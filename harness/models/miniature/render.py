"""Drawing of the miniature's pretraining pictures: one word, 128 x 32 RGB."""

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
    # matplotlib contains the DejaVu fonts, so that every machine draws with the same files.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / FONTS[name]), size)


def fitting_font(name: str, word: str) -> ImageFont.FreeTypeFont:
    """Font ``name`` of ``FONTS`` in the largest size, 8 to 24, at which a word fits. Raises ValueError if none does."""
    for size in range(_MAX_FONT_SIZE, 7, -1):
        if _font(name, size).getlength(word) <= WIDTH - 2 * _MARGIN:
            return _font(name, size)
    raise ValueError(f"the word {word!r} does not fit into {WIDTH} pixels")


def render(
    prompt: MiniaturePrompt,
    rng: np.random.Generator,
    struck_share: float = 0.0,
    strike_pixels: tuple[float, float] = (2.0, 12.0),
) -> np.ndarray:
    """Draw a picture of a prompt.

    Args:
        prompt: prompt to draw; if it names no font, one is chosen at random with the probabilities ``UNNAMED_FONTS``.
        rng: generator for the font, a jitter of at most 2 pixels, and the strike.
        struck_share: probability that a bar of the word's colour is drawn over the word.
        strike_pixels: range of the bar's thickness. At 2 pixels the recognisers read most words, at 12 none.

    Returns:
        ``[32, 128, 3]`` uint8.
    """
    unnamed = str(rng.choice(list(UNNAMED_FONTS), p=list(UNNAMED_FONTS.values())))
    font = fitting_font(prompt.font or unnamed, prompt.word)
    image = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUNDS[prompt.background])
    x, y = WIDTH / 2 + rng.uniform(-2, 2), HEIGHT / 2 + rng.uniform(-1, 1)
    ink, canvas = TEXT_COLOURS[prompt.colour], ImageDraw.Draw(image)
    canvas.text((x, y), prompt.word, font=font, fill=ink, anchor="mm")
    if rng.random() < struck_share:
        half_width, half_height = font.getlength(prompt.word) / 2 + 2, rng.uniform(*strike_pixels) / 2
        canvas.rectangle((x - half_width, y - half_height, x + half_width, y + half_height), fill=ink)
    return np.asarray(image)
