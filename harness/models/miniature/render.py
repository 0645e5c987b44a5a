"""Size and fonts of the miniature's pretraining pictures: one word, 128 x 32 RGB."""

from functools import cache
from pathlib import Path

import matplotlib
from PIL import ImageFont

from harness.models.miniature.prompts import FONTS

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
