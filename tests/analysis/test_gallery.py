"""Pictures of runs that cannot be shown are named."""

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from analysis.runs.gallery import read_gallery
from harness.foundation.errors import ConfigError


def png(width: int, height: int, real: tuple[int, int] = (4, 4)) -> bytes:
    """A small picture whose header says another size."""
    buffer = io.BytesIO()
    Image.new("RGB", real).save(buffer, "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + buffer.getvalue()[24:29]
    return buffer.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + buffer.getvalue()[33:]


@pytest.mark.parametrize(
    ("content", "message"),
    [(content, "cannot be read") for content in (b"", b"GIF89a", png(4, 4)[:-30], png(60_000, 60_000), png(0, 4))]
    + [(png(8, 7, (8, 7)), "height 7 does not divide into 2")],
)
def test_a_picture_that_is_damaged_or_unfolds_without_bound_is_one_line(
    content: bytes, message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "prompts.json").write_text('["a cat", "a dog"]', encoding="utf-8")
    for iteration in (0, 5):
        (folder / f"validation-{iteration:05d}.png").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"validation-00000\.png: {message}") as error:
        read_gallery(tmp_path)
    assert "\n" not in str(error.value)
