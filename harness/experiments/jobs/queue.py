"""The queue of a launch: a list of run directories, each claimed by its own lock.

Nothing else says who executes what. The operating system drops the lock of a process that dies, however it dies, and a
claim is decided while the lock is held, so no run is executed twice and none is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness.config import ConfigError
from harness.files import read_text, write_atomically
from harness.runs.directory import RunDirectory

SETTLED = ("finished", "failed")
"""States of runs that need no worker any more in this launch."""

MAX_ATTEMPTS = 3
"""How often a run is begun in one launch, if its worker dies in the middle of it each time."""


@dataclass(frozen=True)
class Claim:
    """A run that belongs to this process as long as ``lock`` is open."""

    run: RunDirectory
    attempt: int
    """From 1."""
    lock: IO[bytes]


def write_queue(path: Path, runs: Sequence[RunDirectory]) -> None:
    """Write the list that workers read."""
    write_atomically(path, "".join(f"{run.folder}\n" for run in runs))


def read_queue(path: Path) -> list[RunDirectory]:
    """The runs of a launch, in the order in which they are wanted."""
    return [RunDirectory(Path(line)) for line in read_text(path).splitlines()]


def reset(runs: Sequence[RunDirectory]) -> None:
    """Make every unfinished run claimable, failed ones too, except those at which another process is at work now."""
    for run in runs:
        lock = _try_lock(run)
        if lock is None:
            continue
        with lock:
            status = run.status()
            if status["state"] != "finished":
                # A damaged status.json does not know the number.
                iterations = status["iterations"] or run.config.iterations
                run.set_status("waiting", status["iteration"], iterations, attempts=0)


def give_up(runs: Sequence[RunDirectory], reason: str) -> None:
    """Mark runs as failed, except those at which a process is at work."""
    for run in runs:
        lock = _try_lock(run)
        if lock is not None:
            with lock:
                status = run.status()
                run.set_status("failed", status["iteration"], status["iterations"], reason)


def claim_next(runs: Sequence[RunDirectory]) -> Claim | None:
    """The first run that is neither settled nor claimed, claimed and marked as running; None if there is none.

    A run whose workers died ``MAX_ATTEMPTS`` times is marked as failed instead.
    """
    for run in runs:
        if is_settled(run):
            continue
        lock = _try_lock(run)
        if lock is None:
            continue
        # Looked at again: it may have been settled before the lock was ours.
        if not is_settled(run):
            status = run.status()
            if status["attempts"] < MAX_ATTEMPTS:
                attempt = status["attempts"] + 1
                run.set_status("running", status["iteration"], status["iterations"], attempts=attempt)
                return Claim(run, attempt, lock)
            cause = status["reason"] or "killed from outside, or out of memory"
            reason = f"its worker died in each of {MAX_ATTEMPTS} attempts: {cause}"
            run.set_status("failed", status["iteration"], status["iterations"], reason)
        lock.close()
    return None


def is_settled(run: RunDirectory) -> bool:
    """Whether a run needs no worker any more in this launch."""
    return run.status()["state"] in SETTLED


def _try_lock(run: RunDirectory) -> IO[bytes] | None:
    if run.is_locked():
        return None
    try:
        return run.lock()
    except ConfigError:
        return None  # another process was quicker
