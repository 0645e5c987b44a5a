"""Text that a report keeps up to date within a file that people write, such as the README: between two comments."""

from pathlib import Path

from harness.foundation.errors import ConfigError
from harness.foundation.files import write_atomically

START, END = "<!-- claims: written by adagrpo report -->", "<!-- end of claims -->"


def split(path: Path) -> tuple[str, str]:
    """What stands before and after the markers of a file in UTF-8.

    Raises:
        ConfigError: it cannot be read, or has not both markers, once each and in order.
    """
    try:
        content = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if content.count(START) != 1 or content.count(END) != 1 or content.index(START) > content.index(END):
        raise ConfigError(
            f"{path}: needs the line {START!r} and after it the line {END!r}, once each; claims go between"
        )
    return content.partition(START)[0], content.partition(END)[2]


def insert(path: Path, text: str) -> None:
    """Replace what stands between the markers with Markdown; the rest of the file stays as it is, byte by byte.

    Raises:
        ConfigError: see ``split``.
    """
    before, after = split(path)
    write_atomically(path, f"{before}{START}\n\n{text.strip()}\n\n{END}{after}".encode())
