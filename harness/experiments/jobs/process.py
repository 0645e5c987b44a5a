"""Worker process of a slot, as seen by ``run_jobs``."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from harness.experiments.jobs.command import Placement, worker_command
from harness.experiments.jobs.job import Job
from harness.experiments.jobs.slots import Slot
from harness.foundation.places import process_environment

QUEUE_NAME = "queue"
_SIGNAL = re.compile(r"(?:died with <Signals\.|\bSignal \d+ \()(SIG\w+)")
_EXCEPTION = re.compile(r"^(?:\[rank\d+\]: ?)?((?!subprocess)[\w.]+(?:Error|Exception): \S.*)$", re.MULTILINE)
PATIENCE_SECONDS = 40.0
"""Longest wait for a worker that was told to end; torchrun gives its own children 30 seconds."""
_KERNEL_COUNTS = Path("/proc/vmstat")


def command(placement: Placement, arguments: Sequence[str]) -> list[str]:
    """Command line of a worker."""
    return worker_command(placement, "harness.experiments.jobs.worker", arguments)


class WorkerProcess:
    """Starts, watches and ends a slot's worker; each start is a new process in a group of its own.

    Args:
        slot: slot that it runs in.
        folder: folder with the queue (``QUEUE_NAME``), the worker's log and the id of its current job.
        name: stem of the names of its files.
    """

    def __init__(self, slot: Slot, folder: Path, name: str) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        self.rests_until = 0.0
        """Value of ``time.monotonic`` before which the launch starts no new process."""
        self._slot = slot
        self._queue = folder / QUEUE_NAME
        self._current = folder / f"{name}.job"
        self._log_start = self._code = self._out_of_memory = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether the process has been started and ``ended`` has not yet reported its end."""
        return self._process is not None

    @property
    def job_id(self) -> str | None:
        """Id of the job that it is at, or was at when it died; None before, between and after jobs."""
        try:
            return self._current.read_text(encoding="utf-8") or None
        except FileNotFoundError:
            return None

    def start(self) -> None:
        """Start a new process. It ends when this one does in any way, since this one holds its standard input."""
        self._current.unlink(missing_ok=True)
        self._verdict, self._out_of_memory = "", _kills_for_memory()
        self._heard: tuple[object, float] = (None, 0.0)
        arguments = [str(self._queue), str(self._current)]
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                command(self._slot.placement, arguments),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=process_environment() | self._slot.environment | {"PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )

    def ended(self) -> int | None:
        """Exit code of the process: returned once, after it has ended; otherwise None."""
        if self._process is None or self._process.poll() is None:
            return None
        self._code = self._process.returncode
        self.wait()
        return self._code

    def death_reason(self) -> str:
        """Signal or exception that ended the latest process, as far as its log tells, and the path of the log.

        With several processes that is accelerate or torchrun, whose exit code says nothing about the workers below it.
        """
        text = self.log.read_bytes()[self._log_start :].decode(errors="replace")
        causes = [self._verdict] if self._verdict else []
        causes += [signal.Signals(-self._code).name] if self._code < 0 else []
        causes += [found[-1] for pattern in (_SIGNAL, _EXCEPTION) if (found := pattern.findall(text))]
        if causes[:1] == ["SIGKILL"] and _kills_for_memory() > self._out_of_memory:
            causes = ["killed for want of memory (take fewer --slots)"]
        return f"{(causes or ['no reason given'])[0]} (log: {self.log})"

    def end_if_silent(self, job: Job) -> None:
        """Kill the process if its job has written nothing for ``runtime.silent_seconds``, by this process's clock."""
        written = job.id, [path.stat().st_mtime_ns for path in job.traces() if path.exists()]
        if self._heard[0] != written:
            self._heard = written, time.monotonic()
        elif time.monotonic() - self._heard[1] > (most := job.config.runtime.silent_seconds):
            self._verdict = f"nothing written for runtime.silent_seconds={most:g}"
            self.tell_to_end(signal.SIGKILL)

    def tell_to_end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal to the whole process group; ``wait`` waits for its end."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def wait(self) -> None:
        """Wait for the process to end, and kill it after ``PATIENCE_SECONDS``."""
        if self._process is None:
            return
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.tell_to_end(signal.SIGKILL)
            self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process = None


def _kills_for_memory() -> int:
    """Number of processes that Linux has killed since boot because memory was exhausted."""
    try:
        lines = _KERNEL_COUNTS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
