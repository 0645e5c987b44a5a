"""Generated text between two marker comments in a hand-written file, such as the README."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from harness.foundation.errors import ConfigError
from harness.foundation.files import write_atomically

CLAIMS, FINDINGS = "claims", "findings of the study"
"""Names of the blocks of a grid and of the study."""


def require_block(path: Path, names: Sequence[str]) -> None:
    """Raise ConfigError, see ``split``, unless the file has one of these blocks."""
    for name in names[1:]:
        with suppress(ConfigError):
            split(path, name)
            return
    split(path, names[0])


def split(path: Path, name: str) -> tuple[str, str]:
    """Split a UTF-8 file at the markers of a block: the text up to the first one, and from the second one on.

    Raises:
        ConfigError: the file cannot be read, or does not have both markers, once each and in order.
    """
    start, end = f"<!-- {name}: written by adagrpo report -->", f"<!-- end of {name} -->"
    try:
        content = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if content.count(start) != 1 or content.count(end) != 1 or content.index(start) > content.index(end):
        raise ConfigError(
            f"{path}: needs the line {start!r} and after it the line {end!r}, once each; {name} go between"
        )
    before, after = content.partition(start)[0] + start, end + content.partition(end)[2]
    return before, after


def insert(path: Path, name: str, text: str) -> None:
    """Replace the text between the markers with Markdown; the rest of the file stays as it is, byte by byte.

    Raises:
        ConfigError: see ``split``.
    """
    before, after = split(path, name)
    write_atomically(path, f"{before}\n\n{text.strip()}\n\n{after}".encode())
