"""Handling of SIGTERM and SIGUSR1, by which a scheduler announces preemption: the run saves and ends in time."""

import os
import signal
import threading
from types import FrameType, TracebackType

from harness.foundation.errors import Preempted
from harness.runs.directory import RunDirectory

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption:
    """Context manager that catches the signals, in the main thread. Calling it returns the signal that was received.

    A session asks at each chance, then saves and ends. If that takes longer than ``runtime.preemption_seconds``, the
    process ends with ``Preempted.exit_code`` anyway, and the run resumes from the latest checkpoint. A run that has
    finished by then is left to end by itself.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.run, self.heard = run, ""
        self._late = threading.Timer(run.config.runtime.preemption_seconds, self._end)
        self._late.daemon = True

    def __call__(self) -> str | None:
        """Name of the signal that was received, or None."""
        return self.heard or None

    def __enter__(self) -> "Preemption":
        self._before = {number: signal.signal(number, self._hear) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._late.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self.heard:
            self.heard = signal.Signals(number).name
            self._late.start()

    def _end(self) -> None:
        is_finished = False
        try:
            if int(os.environ.get("RANK", "0")) == 0:
                is_finished = self.run.note_unsaved(self.heard) == "finished"
        finally:
            if not is_finished:
                os._exit(Preempted.exit_code)
