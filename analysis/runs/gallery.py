"""Pictures before and after training, cut from the stacked pictures that a run saves."""

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from harness.foundation.errors import ConfigError

NUM_PROMPTS = 8
"""Number of prompts, from the start of the validation list, whose pictures a page shows and a shard keeps."""
LARGEST_SIDE = 256
"""Side length in pixels to which larger pictures are shrunk, so that pages and shards stay small."""


class Picture(NamedTuple):
    """One prompt's picture before and after training."""

    prompt: str
    before: bytes
    """PNG bytes."""
    after: bytes
    """PNG bytes."""


class Gallery(NamedTuple):
    """Pictures of one run on validation prompts, from the same noise."""

    before: int
    """Iteration of the first pictures, usually 0."""
    after: int
    """Iteration of the last pictures."""
    pictures: Sequence[Picture]


def read_gallery(run: Path, num_prompts: int = NUM_PROMPTS) -> Gallery | None:
    """Read the first and last pictures in a run directory; None if it does not have two stacks yet.

    Args:
        run: run directory.
        num_prompts: maximum number of prompts.

    Raises:
        ConfigError: a picture or the list of prompts cannot be read; the message names the file.
    """
    folder = run / "images"
    stacks, names = sorted(folder.glob("validation-*.png")), folder / "prompts.json"
    if len(stacks) < 2 or not names.is_file():
        return None
    try:
        prompts = [str(prompt) for prompt in json.loads(names.read_text(encoding="utf-8"))]
    except ValueError as error:
        raise ConfigError(f"{names}: not JSON: {error}") from None
    before, after = (_slices(stack, len(prompts), num_prompts) for stack in (stacks[0], stacks[-1]))
    pictures = [Picture(*of_prompt) for of_prompt in zip(prompts, before, after, strict=False)]
    return Gallery(_iteration(stacks[0]), _iteration(stacks[-1]), pictures)


def _iteration(stack: Path) -> int:
    return int(stack.stem.rpartition("-")[2])


def _slices(path: Path, num_stacked: int, num_wanted: int) -> list[bytes]:
    """Cut the first pictures from a PNG that stacks them in one column; returns their PNG bytes."""
    try:
        with Image.open(path) as image:
            stack = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # raised by PIL's readers
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if num_stacked == 0 or stack.height % num_stacked:
        raise ConfigError(f"{path}: height {stack.height} does not divide into {num_stacked} prompts' pictures")
    height, slices = stack.height // num_stacked, []
    for top in range(0, height * min(num_stacked, num_wanted), height):
        picture = stack.crop((0, top, stack.width, top + height))
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        buffer = BytesIO()
        picture.save(buffer, format="PNG", optimize=True)
        slices.append(buffer.getvalue())
    return slices
