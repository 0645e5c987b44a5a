"""Contact sheet of an evaluation: every prompt's first picture from each checkpoint, in one HTML file."""

import base64
import io
from collections.abc import Sequence

from torch import Tensor

from analysis.figures.short_page import short_page
from analysis.formats import WideTable
from harness.trained.pictures import as_image

LARGEST_SIDE = 256
"""Longest side of a picture in pixels: 1,632 prompts of two checkpoints are about 40 MB."""


def thumbnail(image: Tensor) -> str:
    """Data URL of a picture ``[3, H, W]`` in [0, 1], reduced to ``LARGEST_SIDE``."""
    picture, buffer = as_image(image), io.BytesIO()
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    picture.save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def sheet(
    name: str,
    table: WideTable,
    said: Sequence[str],
    prompts: Sequence[str],
    lines: Sequence[tuple[str, Sequence[str], dict[str, list[float]]]],
) -> str:
    """HTML text of the page.

    Args:
        name: name of the prompts.
        table: table of all scores.
        said: notes, such as which rewards did not score, and why.
        prompts: all prompts.
        lines: for each checkpoint its label, its pictures' data URLs, and its metrics' values, prompt by prompt.
    """
    pictures = [
        (
            prompt,
            [
                (", ".join([label, *(f"{metric} {v[place]:.3f}" for metric, v in values.items())]), addresses[place])
                for label, addresses, values in lines
            ],
        )
        for place, prompt in enumerate(prompts)
    ]
    introduction = (
        f"{len(prompts):,} prompts, each drawn from the same noise by every checkpoint; shown is the first picture, at "
        f"most {LARGEST_SIDE} pixels wide and high, with the prompt's mean over its pictures."
    )
    heading = f"{name}: {', '.join(label for label, _, _ in lines)}"
    return short_page(heading, heading, "sheet", [introduction], said, [table], [], pictures)
