"""What is printed is a side channel: a pipe that was closed or a full disk behind it never ends the work."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class _Quiet:
    """A text stream that goes on in silence where it cannot be written to any more; all else is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or let it be."""
        try:
            self._stream.write(text)
        except (OSError, ValueError):  # the latter of a closed file
            self._end()
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each line."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, or let it be."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._end()

    def _end(self) -> None:
        # What is still buffered, and what libraries and child processes print, must have somewhere to go.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def never_failing() -> Iterator[None]:
    """Within: neither stdout nor stderr raises when it is written to."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # else the next file that is opened would be stdout
    kept = sys.stdout, sys.stderr
    nowhere = open(os.devnull, "w", encoding="utf-8") if None in kept else None  # noqa: SIM115
    sys.stdout, sys.stderr = (_Quiet(stream or nowhere) for stream in kept)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = kept
        if nowhere is not None:
            nowhere.close()
