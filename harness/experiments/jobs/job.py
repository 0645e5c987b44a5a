"""Job: a piece of work for a child process, claimed by a lock, so that it is done once.

Only the lock says who is at work. The operating system releases the lock of a process that dies in any way, and a claim
is decided while the lock is held, so no job is done twice and none is lost.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple

from harness.config import RunConfig
from harness.foundation.files import lock, read_text, write_atomically


class State(NamedTuple):
    """State of a job."""

    name: Literal["waiting", "finished", "failed"]
    """waiting: every job that has neither finished nor failed, including one that a process is working on."""
    share: float
    """Fraction of its work that is done, in [0, 1]."""
    reason: str | None = None
    """Reason of the failure."""


@dataclass(kw_only=True, eq=False)
class Job:
    """A piece of work. It is pickled for the worker, and only the worker calls ``call``.

    Attributes:
        id: short, and unique among the jobs of a launch.
        call: function of a module, or a ``partial`` of one, that does the work. An exception is why the job failed.
        done: file that exists if the job is done; ``call`` writes it atomically, as its last action.
        log: file that receives the output of ``call``.
        config: configuration whose ``runtime`` says which processes the job needs; the same for all jobs of a launch.
    """

    id: str
    call: Callable[[], object]
    done: Path
    log: Path
    config: RunConfig

    def state(self) -> State:
        """Read the job's state from its files; called twice a second for each waiting job."""
        if self.done.exists():
            return State("finished", 1.0)
        if self._failure.exists():
            return State("failed", 0.0, read_text(self._failure))
        return State("waiting", 0.0)

    def try_lock(self) -> IO[bytes] | None:
        """Claim the job as long as the returned stream is open; None if another process is working on it."""
        self.done.parent.mkdir(parents=True, exist_ok=True)
        return None if self.is_locked() else lock(self._lock)

    def is_locked(self) -> bool:
        """Whether a process is working on the job now."""
        held = lock(self._lock, shared=True) if self._lock.exists() else None
        if held is not None:
            held.close()
        return held is None and self._lock.exists()

    def traces(self) -> Sequence[Path]:
        """Files that grow while a process works on the job."""
        return [self.log]

    def begin(self) -> None:
        """Record that this process has claimed the job."""

    def reset(self) -> None:
        """Forget that the job failed, so that it is tried again."""
        self._failure.unlink(missing_ok=True)

    def fail(self, reason: str) -> None:
        """Record that the job has failed."""
        write_atomically(self._failure, reason)

    def note(self, error: Exception) -> None:
        """Record an exception that ``call`` raised."""
        self.fail(" ".join(f"{type(error).__name__}: {error}".split()))

    def result(self) -> str:
        """Outcome of a finished job, in a few words."""
        return ""

    @property
    def _lock(self) -> Path:
        return self.done.with_name(f".{self.done.name}.lock")

    @property
    def _failure(self) -> Path:
        return self.done.with_name(f".{self.done.name}.failure")


def claim_next(jobs: Sequence[Job]) -> tuple[Job, IO[bytes]] | None:
    """Claim the first job that is waiting and not locked. Returns it with its lock; None if there is none."""
    for job in jobs:
        if job.state().name == "waiting" and (held := job.try_lock()) is not None:
            # Check again: the job may have been settled before the lock was ours.
            if job.state().name == "waiting":
                job.begin()
                return job, held
            held.close()
    return None


def reset(jobs: Sequence[Job]) -> None:
    """Reset every job that is not finished, so that it is tried again, except jobs that a process is working on."""
    for job in _unclaimed(jobs):
        if job.state().name != "finished":
            job.reset()


def give_up(jobs: Sequence[Job], reason: str) -> None:
    """Record waiting jobs as failed, except jobs that a process is working on."""
    for job in _unclaimed(jobs):
        if job.state().name == "waiting":
            job.fail(reason)


def _unclaimed(jobs: Sequence[Job]) -> Iterator[Job]:
    """Jobs that no process is working on, each locked while it is handled."""
    for job in jobs:
        held = job.try_lock()
        if held is not None:
            with held:
                yield job
