"""Generated text between two marker comments in a hand-written file, such as the README."""

from pathlib import Path

from harness.foundation.errors import ConfigError
from harness.foundation.files import write_atomically

START, END = "<!-- claims: written by adagrpo report -->", "<!-- end of claims -->"


def split(path: Path) -> tuple[str, str]:
    """Split a UTF-8 file into the text before the first marker and the text after the second.

    Raises:
        ConfigError: the file cannot be read, or does not have both markers, once each and in order.
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
    """Replace the text between the markers with Markdown; the rest of the file stays as it is, byte by byte.

    Raises:
        ConfigError: see ``split``.
    """
    before, after = split(path)
    write_atomically(path, f"{before}{START}\n\n{text.strip()}\n\n{END}{after}".encode())
