"""Standard output that never fails: a closed pipe or a full disk behind it does not end the work."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class _Quiet:
    """Text stream that drops its output once it can no longer be written to; all else is delegated to the stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, with escapes for characters that the stream cannot encode, or drop it if the stream fails."""
        encoding = self._stream.encoding or "utf-8"
        self._try(self._stream.write, text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush, or do nothing if the stream fails."""
        self._try(self._stream.flush)

    def _try(self, call: Callable[..., Any], *arguments: str) -> None:
        try:
            call(*arguments)
        except (OSError, ValueError):  # ValueError: the stream is closed
            # Buffered text, and the output of libraries and child processes, still need somewhere to go.
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


@contextmanager
def never_failing() -> Iterator[None]:
    """Context in which writing to stdout or stderr never raises."""
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
