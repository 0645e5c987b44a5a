"""Text that a report keeps up to date within a file that people write, such as the README: between two comments."""

from pathlib import Path

from harness.files import write_atomically

START, END = "<!-- claims: written by adagrpo report -->", "<!-- end of claims -->"


class MarkerError(ValueError):
    """A file that has no place for the text: which, and what is wrong."""


def check_markers(path: Path) -> None:
    """See that a file has both markers, once each and in order.

    Raises:
        MarkerError: it has not, or cannot be read.
    """
    _split(path)


def insert(path: Path, text: str) -> None:
    """Replace what stands between the markers; the rest of the file stays as it is, byte by byte.

    Args:
        path: of a file in UTF-8.
        text: Markdown.

    Raises:
        MarkerError: see ``check_markers``.
    """
    before, after = _split(path)
    write_atomically(path, f"{before}{START}\n\n{text.strip()}\n\n{END}{after}".encode())


def _split(path: Path) -> tuple[str, str]:
    try:
        content = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise MarkerError(f"{path}: cannot be read: {error}") from None
    if content.count(START) != 1 or content.count(END) != 1 or content.index(START) > content.index(END):
        raise MarkerError(
            f"{path}: needs the line {START!r} and after it the line {END!r}, once each; claims go between"
        )
    before, _, rest = content.partition(START)
    return before, rest.partition(END)[2]
