"""A worker's standard streams: output goes to the log of the run at work, and the end of input is its own end."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Within: what this process and its children print is appended to a file."""
    kept = {number: os.dup(number) for number in (1, 2)}
    with path.open("ab") as log:
        _redirect(dict.fromkeys(kept, log.fileno()))
    try:
        yield
    finally:
        _redirect(kept)
        for copy in kept.values():
            os.close(copy)


def end_with_input() -> None:
    """End this process, as SIGTERM does, when its standard input ends: the other end of a pipe is closed or dead."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _redirect(targets: dict[int, int]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    for number, target in targets.items():
        os.dup2(target, number)
