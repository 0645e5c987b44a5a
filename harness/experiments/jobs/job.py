"""A job: one piece of work for a child process, claimed by a lock, so that it is done once.

Nothing but the lock says who is at work. The operating system drops the lock of a process that dies, however it dies,
and a claim is decided while the lock is held, so no job is done twice and none is lost.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple

from harness.config import RunConfig
from harness.foundation.files import lock, read_text, write_atomically


class State(NamedTuple):
    """Where a job stands."""

    name: Literal["waiting", "finished", "failed"]
    """Waiting is every job that is neither done nor given up, also one that a process is at."""
    share: float
    """Part of its work that is done, in [0, 1]."""
    reason: str | None = None
    """Why it failed."""


@dataclass(kw_only=True, eq=False)
class Job:
    """A piece of work. It is pickled on its way to the worker, and only there is ``call`` called.

    Attributes:
        id: short, and unique among the jobs of a launch.
        call: does the work; a function of a module, or a ``partial`` of one. What it raises is why the job failed.
        done: file whose presence says that it is done; ``call`` writes it in one step, as the last thing that it does.
        log: file that gets what ``call`` prints.
        config: whose ``runtime`` says what processes it needs: all jobs of a launch need the same.
        needs: files without which it cannot begin; other jobs of the launch write them.
        size: how much work it is beside the other jobs, in any unit.
    """

    id: str
    call: Callable[[], object]
    done: Path
    log: Path
    config: RunConfig
    needs: Sequence[Path] = ()
    size: float = 1.0

    def state(self) -> State:
        """Look where it stands; asked twice a second of each job that is waiting."""
        if self.done.exists():
            return State("finished", 1.0)
        if self._failure.exists():
            return State("failed", 0.0, read_text(self._failure))
        return State("waiting", 0.0)

    def is_ready(self) -> bool:
        """Whether all that it needs is there."""
        return all(path.exists() for path in self.needs)

    def try_lock(self) -> IO[bytes] | None:
        """Claim it as long as the returned stream is open; None if another process is at it."""
        self.done.parent.mkdir(parents=True, exist_ok=True)
        return None if self.is_locked() else lock(self._lock)

    def is_locked(self) -> bool:
        """Whether a process is at it now."""
        held = lock(self._lock, shared=True) if self._lock.exists() else None
        if held is not None:
            held.close()
        return held is None and self._lock.exists()

    def traces(self) -> Sequence[Path]:
        """Files that grow while it is at work."""
        return [self.log]

    def begin(self) -> None:
        """Note that it is claimed by this process."""

    def reset(self) -> None:
        """Forget that it failed, so that it is tried again."""
        self._failure.unlink(missing_ok=True)

    def fail(self, reason: str) -> None:
        """Note that it is given up."""
        write_atomically(self._failure, reason)

    def note(self, error: Exception) -> None:
        """Note that ``call`` has raised an exception."""
        self.fail(" ".join(f"{type(error).__name__}: {error}".split()))

    def result(self) -> str:
        """What it has come to, in a few words, once it is done."""
        return ""

    @property
    def _lock(self) -> Path:
        return self.done.with_name(f".{self.done.name}.lock")

    @property
    def _failure(self) -> Path:
        return self.done.with_name(f".{self.done.name}.failure")


def claim_next(jobs: Sequence[Job]) -> tuple[Job, IO[bytes]] | None:
    """The first job that waits, is ready and that no process is at, with its lock; None if there is none."""
    for job in jobs:
        if job.state().name != "waiting" or not job.is_ready():
            continue
        held = job.try_lock()
        if held is None:
            continue
        # Looked at again: it may have been settled before the lock was ours.
        if job.state().name == "waiting":
            job.begin()
            return job, held
        held.close()
    return None


def reset(jobs: Sequence[Job]) -> None:
    """Have every job that is not finished tried again, except those at which a process is at work now."""
    for job in _unclaimed(jobs):
        if job.state().name != "finished":
            job.reset()


def give_up(jobs: Sequence[Job], reason: str) -> None:
    """Have jobs that wait fail, except those at which a process is at work."""
    for job in _unclaimed(jobs):
        if job.state().name == "waiting":
            job.fail(reason)


def _unclaimed(jobs: Sequence[Job]) -> Iterator[Job]:
    """Jobs that nobody is at, each held while it is dealt with."""
    for job in jobs:
        held = job.try_lock()
        if held is not None:
            with held:
                yield job
