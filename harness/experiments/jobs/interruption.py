"""SIGTERM as an interruption that is not lost."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def interruption_heard() -> None:
    """Raise no more: what the interruption has set going is not to be interrupted."""
    signal.alarm(0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # What is raised in a destructor or in a weak reference's callback is lost: again each second until it is heard.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.alarm(1)
    raise KeyboardInterrupt


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within: SIGTERM raises KeyboardInterrupt, as Ctrl-C does, and again until ``interruption_heard`` is called."""
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGALRM)}
    try:
        yield
    finally:
        interruption_heard()
        for number, handler in before.items():
            signal.signal(number, handler)
