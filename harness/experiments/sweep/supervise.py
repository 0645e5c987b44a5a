"""Starts the workers of a sweep or a measurement on this machine, replaces those that are killed, waits for them."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.config import ROOT, ConfigError
from harness.experiments.jobs.runner import sigterm_interrupts

MAX_RESTARTS = 3
"""How often a worker is replaced after it was killed."""
INTERRUPTED_CODE = 130
"""Exit code of a worker that was told to end."""
_POLL_SECONDS, _PATIENCE_SECONDS = 0.2, 60.0


@dataclass
class Worker:
    """A process that works off what there is to do, and its log."""

    log: Path
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    failure: str | None = None

    def last_line(self) -> str:
        """Of what it said."""
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def run_workers(
    command: Sequence[str],
    environments: Sequence[Mapping[str, str]],
    folder: Path,
    look: Callable[[], None],
    say: Callable[[str], None],
) -> list[str]:
    """Run processes of one command until all have ended.

    Args:
        command: of each of them; it ends when its standard input does.
        environments: one a process: variables in addition to this process's.
        folder: for their logs, ``worker-HOST-N.log``; hosts may share it.
        look: called again and again meanwhile.
        say: receives lines of progress.

    Returns:
        Of each worker that failed, or was killed more than ``MAX_RESTARTS`` times: why.

    Raises:
        ConfigError: of a worker (exit code 2).
        KeyboardInterrupt: on Ctrl-C and SIGTERM, after the workers have ended.
    """
    logs = [folder / f"worker-{socket.gethostname()}-{i}.log" for i in range(len(environments))]
    workers = [Worker(log, environment) for log, environment in zip(logs, environments, strict=True)]
    with sigterm_interrupts():
        try:
            for worker in workers:
                _start(worker, command)
            while any(worker.process is not None for worker in workers):
                time.sleep(_POLL_SECONDS)
                for worker in workers:
                    _settle(worker, command, say)
                look()
        finally:
            _end(workers)
    return [worker.failure for worker in workers if worker.failure]


def _start(worker: Worker, command: Sequence[str]) -> None:
    with worker.log.open("ab") as log:
        worker.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=os.environ | dict(worker.environment) | {"PYTHONUNBUFFERED": "1"},
            cwd=ROOT,
            # Ctrl-C at the terminal reaches this process alone, which tells the workers, once.
            start_new_session=True,
        )


def _settle(worker: Worker, command: Sequence[str], say: Callable[[str], None]) -> None:
    code = None if worker.process is None else worker.process.poll()
    if code is None:
        return
    _release(worker)
    if code == 0:
        return
    if code == 2:
        raise ConfigError(worker.last_line())
    killed_by = signal.Signals(-code).name if code < 0 else "SIGTERM" if code == INTERRUPTED_CODE else None
    if killed_by and worker.restarts < MAX_RESTARTS:
        worker.restarts += 1
        say(f"a worker was killed by {killed_by}: another takes its place, and its work is tried again")
        _start(worker, command)
        return
    cause = f"was killed by {killed_by} again and again" if killed_by else f"ended early: {worker.last_line()}"
    worker.failure = f"a worker {cause} (log: {worker.log})"
    say(worker.failure)


def _release(worker: Worker) -> None:
    assert worker.process is not None
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    worker.process = None


def _end(workers: Sequence[Worker]) -> None:
    running = [worker for worker in workers if worker.process is not None]
    for worker in running:
        assert worker.process is not None
        worker.process.terminate()
    for worker in running:
        assert worker.process is not None
        try:
            worker.process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        _release(worker)
