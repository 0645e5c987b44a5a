"""SIGTERM as a KeyboardInterrupt that cannot get lost."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def interruption_heard() -> None:
    """Stop raising the interrupt again, so that the clean-up after it is not interrupted."""
    signal.alarm(0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # An exception in a destructor or a weak reference's callback is lost, so it is raised each second until heard.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.alarm(1)
    raise KeyboardInterrupt


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Context in which SIGTERM raises KeyboardInterrupt, again and again until ``interruption_heard`` is called."""
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGALRM)}
    try:
        yield
    finally:
        interruption_heard()
        for number, handler in before.items():
            signal.signal(number, handler)
