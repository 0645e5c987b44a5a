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
    height, width = next(iter(rows[0].lines.values())).shape[-2:]
    zoom = max(1, 256 // max(height, width))  # the miniature's pictures are too small to look at
    height, width = height * zoom, width * zoom
    font = _font(max(13, width // 24))
    labels = list(rows[0].lines) if len(rows[0].lines) > 1 else []
    left = _GAP + int(max((font.getlength(label) + _GAP for label in labels), default=0))
    total_width = left + len(heads) * (width + _GAP)
    parts = [_draw_heads(heads, font, left, width, total_width)]
    parts += [_draw_row(row, font, left, (width, height), total_width) for row in rows]
    canvas = Image.new("RGB", (total_width, sum(part.height for part in parts)), _PAPER)
    y = 0
    for part in parts:
        canvas.paste(part, (0, y))
        y += part.height
    canvas.save(path)


def _draw_heads(
    heads: Sequence[str], font: ImageFont.FreeTypeFont, left: int, width: int, total_width: int
) -> Image.Image:
    canvas = Image.new("RGB", (total_width, sum(font.getmetrics()) + _GAP), _PAPER)
    for column, head in enumerate(heads):
        centre = left + column * (width + _GAP) + width / 2
        ImageDraw.Draw(canvas).text((centre, _GAP), head, _FAINT, font, anchor="ma")
    return canvas


def _draw_row(
    row: Row, font: ImageFont.FreeTypeFont, left: int, picture: tuple[int, int], total_width: int
) -> Image.Image:
    width, height = picture
    line_height = sum(font.getmetrics())
    caption = textwrap.wrap(row.prompt, max(10, int((total_width - 2 * _GAP) / font.getlength("n"))))
    canvas = Image.new(
        "RGB", (total_width, _GAP + len(caption) * line_height + len(row.lines) * (height + _GAP)), _PAPER
    )
    pen, y = ImageDraw.Draw(canvas), _GAP
    for text in caption:
        pen.text((_GAP, y), text, _INK, font)
        y += line_height
    for label, images in row.lines.items():
        if len(row.lines) > 1:
            pen.text((_GAP, y + height / 2), label, _FAINT, font, anchor="lm")
        for column, image in enumerate(images):
            scaled = _to_image(image).resize(picture, Image.Resampling.NEAREST)
            canvas.paste(scaled, (left + column * (width + _GAP), y))
        y += height + _GAP
    return canvas


def _to_image(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def _slug(prompt: str) -> str:
    """The prompt's first words as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].rstrip("-") or "prompt"


def _font(size: int) -> ImageFont.FreeTypeFont:
    # DejaVu ships inside matplotlib: the same letters on every machine, accents included.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
