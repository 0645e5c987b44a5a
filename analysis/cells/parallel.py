"""Parallel map over several CPU cores, for reports of many runs."""

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
"""Function that a forked process calls; it inherits it and all that it refers to, so that it is not pickled."""


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item], chunk: int = 1) -> list[Result]:
    """Compute ``[function(item) for item in items]`` with one process per core.

    Args:
        function: any callable, also a closure; its side effects are lost. Its results are pickled.
        items: arguments, which are pickled; up to ``chunk`` of them are processed in this process.
        chunk: items that a process takes at a time, enough that starting processes pays.

    Returns:
        Results in the order of items.

    Raises:
        Exception: whatever ``function`` raises.
        BrokenProcessPool: a process was killed, for instance for lack of memory.
    """
    processes = min(_cores(), -(-len(items) // chunk))
    # Forking is unsafe on macOS and impossible on Windows.
    if processes < 2 or sys.platform != "linux":
        return [function(item) for item in items]
    with ProcessPoolExecutor(processes, get_context("fork"), _begin, (function,)) as pool:
        return list(pool.map(_call, items, chunksize=chunk))


def _begin(function: Callable[[Any], Any]) -> None:
    """Prepare a forked process, which leaves interrupts to its parent."""
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _call(item: Any) -> Any:
    assert _function is not None
    return _function(item)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
