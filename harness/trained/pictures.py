"""Pictures on disk: single PNGs, and grids with captions."""

import hashlib
import io
import itertools
import json
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

from harness.config import ConfigError
from harness.files import read_text, write_atomically
from harness.models.pipelines.policy import Policy
from harness.training.evaluation import draw

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

    What is in the folder stays: the same picture of the same prompt is not written again, another one has another name.
    A line of ``pictures.jsonl`` beside the pictures says what each shows.

    Args:
        policy: that draws.
        prompts: what.
        seeds: of the noise.
        folder: to write to.
        about: text fields of every PNG, beside its prompt, seed and number of steps; ``checkpoint`` begins its name.

    Yields:
        each file, once it is written.

    Raises:
        ConfigError: it cannot be written.
    """
    for prompt in prompts:
        images = draw_seeds(policy, [prompt], seeds)[0]
        for seed, image in zip(seeds, images, strict=True):
            fields = {"prompt": prompt, "seed": str(seed), "steps": str(policy.config.num_steps), **about}
            try:
                folder.mkdir(parents=True, exist_ok=True)
                path = _write_new(_as_png(image, fields), folder, _stem(about.get("checkpoint", ""), prompt, seed))
                if path.name not in _listed(folder):
                    with (folder / "pictures.jsonl").open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps({"file": path.name, **fields}, ensure_ascii=False) + "\n")
            except OSError as error:
                raise ConfigError(f"--output {folder}: cannot be written ({error.strerror})") from None
            yield path


def _as_png(image: Tensor, fields: Mapping[str, str]) -> bytes:
    info = PngInfo()
    for key, value in fields.items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    _to_image(image).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _stem(checkpoint: str, prompt: str, seed: int) -> str:
    """A name that any file system takes; a hash keeps apart prompts that begin alike or have no Latin letters."""
    words = "-".join(filter(None, (_slug(checkpoint, 40), _slug(prompt, 60))))
    return f"{words}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}-seed{seed}"


def _write_new(content: bytes, folder: Path, stem: str) -> Path:
    """Write to the first name that is free, or has this content already."""
    for number in itertools.count(1):
        path = folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
        if not path.exists():
            write_atomically(path, content)
            return path
        if path.read_bytes() == content:
            return path
    raise AssertionError("unreachable")


def _listed(folder: Path) -> set[str]:
    """Files that ``pictures.jsonl`` names."""
    path = folder / "pictures.jsonl"
    lines = read_text(path).split("\n") if path.exists() else []
    try:
        return {json.loads(line)["file"] for line in lines if line}
    except (ValueError, LookupError, TypeError):
        raise ConfigError(f"{path}: a line names no picture; move the file away") from None


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


def _slug(text: str, longest: int) -> str:
    """The first words of a text as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:longest].rstrip("-")


def _font(size: int) -> ImageFont.FreeTypeFont:
    # DejaVu ships inside matplotlib: the same letters on every machine, accents included.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
