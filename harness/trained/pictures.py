"""Pictures on disk: single PNGs, and grids with captions."""

import hashlib
import io
import itertools
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from harness.config import ConfigError
from harness.foundation.files import append, make_folder, read_text, write_atomically
from harness.models.pipelines.policy import Policy
from harness.training.evaluation import draw

SEEDS = (3407, 3408, 3409)
"""Seeds of the paper's figures."""


def draw_seeds(policy: Policy, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Pictures of each prompt from each seed's noise, ``[prompts, seeds, 3, H, W]``; the seeds work as in diffusers."""
    columns = [draw(policy, prompts, [torch.Generator().manual_seed(seed) for _ in prompts]) for seed in seeds]
    return torch.stack(columns, dim=1)


def write_pictures(
    policy: Policy, prompts: Sequence[str], seeds: Sequence[int], folder: Path, checkpoint: str
) -> Iterator[Path]:
    """Draw each prompt from each seed's noise, and write each picture as a PNG as soon as it is drawn.

    Files in the folder are kept: an identical picture is not written again, a different one gets another name. A line
    of ``pictures.jsonl`` beside the pictures describes each of them, as do text fields of the PNG.

    Args:
        policy: policy that draws.
        prompts: prompts to draw.
        seeds: seeds of the noise.
        folder: folder to write to.
        checkpoint: label of the checkpoint; each file name begins with it.

    Yields:
        path of each file, once it is written.

    Raises:
        ConfigError: pictures.jsonl has a line that names no picture.
        FileError: the folder cannot be written to.
    """
    make_folder(folder)
    listed = folder / "pictures.jsonl"
    for prompt in prompts:
        for seed, image in zip(seeds, draw_seeds(policy, [prompt], seeds)[0], strict=True):
            fields = {"prompt": prompt, "seed": str(seed), "steps": str(policy.config.num_steps)}
            fields["checkpoint"] = checkpoint
            path = _write_new(as_png(image, fields), folder, _stem(checkpoint, prompt, seed))
            if path.name not in _names_in(listed):
                append(listed, json.dumps({"file": path.name, **fields}, ensure_ascii=False) + "\n")
            yield path


def save_grid(prompts: Sequence[str], drawn: Mapping[str, Tensor], seeds: Sequence[int], path: Path) -> None:
    """Write a grid as a PNG: under each prompt a line of pictures per checkpoint, with a column per seed.

    Args:
        prompts: captions.
        drawn: pictures ``[prompts, seeds, 3, H, W]`` of one size, by the label of the checkpoint.
        seeds: seeds of the columns.
        path: path of the file.
    """
    height, width = next(iter(drawn.values())).shape[-2:]
    zoom = max(1, 256 // max(height, width))  # the miniature's pictures are too small to look at
    inches = len(seeds) * (width * zoom + 16) / 100, len(prompts) * (len(drawn) * (height * zoom + 30) + 60) / 100
    figure = Figure(figsize=inches, dpi=100, layout="constrained")  # without pyplot: needs no display
    parts = figure.subfigures(len(prompts), 1, squeeze=False)[:, 0]
    for number, (part, prompt) in enumerate(zip(parts, prompts, strict=True)):
        caption = "\n".join(textwrap.wrap(prompt, max(20, int(12 * inches[0]))))
        part.suptitle(caption, fontsize=10, parse_math=False)
        axes = part.subplots(len(drawn), len(seeds), squeeze=False)
        for line, (label, images) in zip(axes, drawn.items(), strict=True):
            for place, image, seed in zip(line, images[number], seeds, strict=True):
                place.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
                place.set(xticks=[], yticks=[])
                place.set_xlabel(f"{label}, seed {seed}", fontsize=8, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def as_image(image: Tensor) -> Image.Image:
    """Image with 8 bits per channel of a picture ``[3, H, W]`` in [0, 1]."""
    return Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def as_png(image: Tensor, fields: Mapping[str, str] | None = None) -> bytes:
    """PNG file of a picture ``[3, H, W]`` in [0, 1], with text fields."""
    info, buffer = PngInfo(), io.BytesIO()
    for key, value in (fields or {}).items():
        info.add_itxt(key, value)
    as_image(image).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _stem(checkpoint: str, prompt: str, seed: int) -> str:
    """Name that any file system accepts; a hash tells apart prompts that begin alike or have no Latin letters."""
    texts = ((checkpoint, 40), (prompt, 60))
    words = [re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:longest].rstrip("-") for text, longest in texts]
    digest = hashlib.sha256(prompt.encode()).hexdigest()[:8]
    return "-".join(filter(None, [*words, digest, f"seed{seed}"]))


def _write_new(content: bytes, folder: Path, stem: str) -> Path:
    """Write to the first name that is free or already has this content."""
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    path = next(p for p in (folder / f"{name}.png" for name in names) if not p.exists() or p.read_bytes() == content)
    if not path.exists():
        write_atomically(path, content)
    return path


def _names_in(listed: Path) -> set[str]:
    """Names of the files listed in ``pictures.jsonl``."""
    try:
        return {json.loads(line)["file"] for line in read_text(listed).splitlines()} if listed.exists() else set()
    except (ValueError, LookupError, TypeError):
        raise ConfigError(f"{listed}: a line names no picture; move the file away") from None
