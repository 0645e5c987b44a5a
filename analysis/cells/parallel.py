"""Work on several cores, for reports of many runs."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_function: Callable[[Any], Any] | None = None
"""What forked processes call: they have it, and all that it refers to, without a copy being sent."""


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item], chunk: int = 1) -> list[Result]:
    """``[function(item) for item in items]``, computed by a process for each core.

    Args:
        function: any, also a closure; what it changes is lost. Its results are pickled.
        items: to be pickled; up to ``chunk`` of them are worked on in this process.
        chunk: items that a process takes at a time, so many that starting processes pays.

    Returns:
        Results in the order of items.

    Raises:
        Exception: what ``function`` raises.
        BrokenProcessPool: a process was killed, such as for memory.
    """
    global _function
    processes = min(_cores(), -(-len(items) // chunk))
    # Elsewhere processes cannot safely be forked (macOS) or at all (Windows).
    if processes < 2 or sys.platform != "linux":
        return [function(item) for item in items]
    _function = function
    try:
        with ProcessPoolExecutor(processes, get_context("fork"), _leave_interrupts_to_the_parent) as pool:
            return list(pool.map(_call, items, chunksize=chunk))
    finally:
        _function = None


def _call(item: Any) -> Any:
    assert _function is not None
    return _function(item)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
