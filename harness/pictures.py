"""Pictures on disk: single PNGs, and grids with captions."""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from harness.evaluation import draw
from harness.models.policy import Policy

SEEDS = (3407, 3408, 3409)
"""Of the paper's figures."""

_GAP = 8  # pixels
_INK, _PAPER, _FAINT = (20, 20, 20), (255, 255, 255), (110, 110, 110)


@dataclass(frozen=True)
class Row:
    """One prompt of a grid: a line of pictures for each checkpoint."""

    prompt: str
    lines: Mapping[str, Tensor]
    """``[columns, 3, H, W]`` in [0, 1] by the checkpoint's label."""


def draw_seeds(policy: Policy, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Pictures of each prompt from each seed's noise, ``[prompts, seeds, 3, H, W]``; the seeds are diffusers' own."""
    columns = [draw(policy, prompts, [torch.Generator().manual_seed(seed) for _ in prompts]) for seed in seeds]
    return torch.stack(columns, dim=1)


def write_pictures(
    policy: Policy, prompts: Sequence[str], seeds: Sequence[int], folder: Path, about: Mapping[str, str]
) -> Iterator[Path]:
    """Draw each prompt from each seed's noise, and write each as a PNG as soon as it is drawn.

    Args:
        policy: that draws.
        prompts: what.
        seeds: of the noise.
        folder: to write to; a picture of the same prompt and seed is replaced.
        about: text fields of every PNG, beside its prompt, seed and number of steps.

    Yields:
        each file, once it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, prompt in enumerate(prompts):
        images = draw_seeds(policy, [prompt], seeds)[0]
        for seed, image in zip(seeds, images, strict=True):
            # Long prompts may begin alike: the number keeps their files apart.
            name = (
                f"{number:03d}-{_slug(prompt)}-seed{seed}.png"
                if len(prompts) > 1
                else f"{_slug(prompt)}-seed{seed}.png"
            )
            info = PngInfo()
            fields = {"prompt": prompt, "seed": str(seed), "steps": str(policy.config.num_steps), **about}
            for key, value in fields.items():
                info.add_itxt(key, value)
            _to_image(image).save(folder / name, pnginfo=info)
            yield folder / name


def save_grid(rows: Sequence[Row], heads: Sequence[str], path: Path) -> None:
    """Write a grid as a PNG: under each prompt a line of pictures a checkpoint, a column a seed.

    Args:
        rows: with equal labels and picture sizes.
        heads: of the columns.
        path: of the file.
    """
    first = next(iter(rows[0].lines.values()))
    height, width = first.shape[-2:]
    zoom = max(1, 256 // max(height, width))  # the miniature's pictures are too small to look at
    height, width = height * zoom, width * zoom
    font = _font(max(13, width // 24))
    line_height = sum(font.getmetrics())
    labels = list(rows[0].lines)
    left = _GAP + (int(max(font.getlength(label) for label in labels)) + _GAP if len(labels) > 1 else 0)
    total_width = left + len(heads) * (width + _GAP)
    captions = [_wrapped(row.prompt, font, total_width - 2 * _GAP) for row in rows]
    top = _GAP + line_height
    row_heights = [_GAP + line_height * len(caption) + len(labels) * (height + _GAP) for caption in captions]
    canvas = Image.new("RGB", (total_width, top + sum(row_heights) + _GAP), _PAPER)
    pen = ImageDraw.Draw(canvas)
    for column, head in enumerate(heads):
        pen.text((left + column * (width + _GAP) + width / 2, _GAP / 2), head, _FAINT, font, anchor="ma")
    for row, caption, row_height in zip(rows, captions, row_heights, strict=True):
        y = top + _GAP
        for text in caption:
            pen.text((_GAP, y), text, _INK, font)
            y += line_height
        for label, images in row.lines.items():
            if len(labels) > 1:
                pen.text((_GAP, y + height / 2), label, _FAINT, font, anchor="lm")
            for column, image in enumerate(images):
                scaled = _to_image(image).resize((width, height), Image.Resampling.NEAREST)
                canvas.paste(scaled, (left + column * (width + _GAP), y))
            y += height + _GAP
        top += row_height
    canvas.save(path)


def _to_image(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def _slug(prompt: str) -> str:
    """The prompt's first words as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].rstrip("-") or "prompt"


def _font(size: int) -> ImageFont.FreeTypeFont:
    # DejaVu ships inside matplotlib: the same letters on every machine, accents included.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    return textwrap.wrap(text, max(10, int(width / font.getlength("n"))))
