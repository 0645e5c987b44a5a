"""Execution of jobs on this machine: one worker per slot, replaced if it ends before all jobs are settled."""

import os
import pickle
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness.experiments.jobs.interruption import sigterm_interrupts
from harness.experiments.jobs.job import Job, give_up, reset
from harness.experiments.jobs.process import QUEUE_NAME, WorkerProcess
from harness.experiments.jobs.progress import Progress
from harness.experiments.jobs.slots import Slot, local_slots
from harness.foundation.errors import FileError
from harness.foundation.files import has_space, lock, write_atomically

MAX_ATTEMPTS = 3
"""Largest number of attempts at a job, if its worker dies in each, and at a slot, if its workers cannot start."""
LAUNCHES = ".workers-"
"""Prefix of the name of the folder that a launch keeps while it is at work."""
_PROGRESS = "progress"
"""File in that folder with the latest line of progress."""
_POLL_SECONDS = 0.5
_QUIET_SECONDS = 15.0
"""Longest time without a line of progress: at first, models are loaded and the untrained one is evaluated."""
_STANDINGS_SECONDS = 300.0
_REST_SECONDS = 4.0
"""Pause of a slot after its worker died, doubled after each further death."""
_SPACE = 2**20
"""Bytes of free space that a worker needs to start; more than it writes until it is at work."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """Outcome of a list of jobs."""

    finished: list[Job] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Reasons by job id."""


def run_jobs(
    jobs: Sequence[Job],
    slots: int | Sequence[Slot] | None,
    folder: Path,
    say: Say,
    *,
    on_finished: Callable[[Job], object] = lambda job: None,
    standings: Callable[[], Sequence[str]] = lambda: (),
) -> Outcome:
    """Execute jobs in workers, skipping those that are done. Must be called from the main thread.

    Neither a failed job nor a dead worker stops the other jobs: a new worker repeats a dead worker's job, in at most
    ``MAX_ATTEMPTS`` attempts. Ctrl-C and SIGTERM end the workers; the same call continues where they stopped.

    Args:
        jobs: jobs in order of priority.
        slots: number of jobs at a time, or the slots; None for as many as the machine can hold.
        folder: folder of the experiment; the launch keeps the workers' logs in a folder inside it.
        say: called with each line of progress.
        on_finished: called with each finished job: at once, or soon after it finishes.
        standings: returns lines that are printed now and then, and at the end.

    Raises:
        ConfigError: the machine cannot provide the slots, or the jobs need different ones.
        KeyboardInterrupt: on Ctrl-C and SIGTERM, after the workers have ended.
    """
    _remove_left_behind(folder)
    finished = [job for job in jobs if job.state().name == "finished"]
    if finished:
        say(f"{len(finished)} of {len(jobs)} are finished already")
    for job in finished:
        on_finished(job)
    outcome = Outcome(finished)
    if left := [job for job in jobs if job not in finished]:
        if slots is None or isinstance(slots, int):
            slots = local_slots([job.config.runtime for job in left], slots)
        reset(left)
        _Launch(left, slots, folder, say, on_finished, standings, outcome).execute()
    for line in standings():
        say(line)
    return outcome


def launches_at_work(root: Path) -> Iterator[tuple[Path, str]]:
    """Experiment folder and latest line of progress of every launch that is at work below a folder."""
    for path in sorted(root.rglob(f"{LAUNCHES}*/{_PROGRESS}")):
        with suppress(FileNotFoundError):  # the launch has ended meanwhile
            held = lock(path.with_name("lock"), shared=True)
            if held is None:
                yield path.parent.parent, path.read_text(encoding="utf-8")
            else:
                held.close()


def _remove_left_behind(folder: Path) -> None:
    """Remove the folders that ended or killed launches of this machine left in an experiment's folder."""
    for left in folder.glob(f"{LAUNCHES}{socket.gethostname()}-*"):
        with suppress(OSError):
            held = lock(left / "lock")
            if held is not None:
                held.close()
                shutil.rmtree(left)


@dataclass
class _Launch:
    """Workers and state of one call of ``run_jobs``."""

    jobs: Sequence[Job]
    slots: Sequence[Slot]
    experiment: Path
    say: Say
    on_finished: Callable[[Job], object]
    standings: Callable[[], Sequence[str]]
    outcome: Outcome

    def __post_init__(self) -> None:
        self.progress = Progress(self.jobs)
        self.folder = self.experiment / f"{LAUNCHES}{socket.gethostname()}-{os.getpid()}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = lock(self.folder / "lock", wait=True)  # held until this process ends in any way
        write_atomically(self.folder / QUEUE_NAME, pickle.dumps(list(self.jobs)))
        self.workers = [WorkerProcess(slot, self.folder, f"worker-{index}") for index, slot in enumerate(self.slots)]
        self.deaths: Counter[str] = Counter()
        """Deaths of workers at each job, by its id, and in a row before a job was claimed, by the worker's name."""
        self.last_seen, self.said_time, self.standings_time = "", 0.0, time.monotonic()
        if self.progress.running:
            self.say(f"{self.progress.running} are at work under another command; this one waits for them")

    def execute(self) -> None:
        """Supervise the workers until every job is settled; on return they have ended, if necessary by force."""
        try:
            with sigterm_interrupts():
                for job in self.progress.settled_before:
                    self._settle(job)
                while self.progress.unsettled:
                    began = time.monotonic()
                    self._step()
                    # A step reads the state of every job that is left: with hundreds it must not keep a core busy.
                    time.sleep(min(max(_POLL_SECONDS, 50 * (time.monotonic() - began)), 10 * _POLL_SECONDS))
        except KeyboardInterrupt:
            self.say("interrupted: the same command continues where it stopped")
            raise
        finally:
            if self.progress.unsettled:
                for worker in self.workers:
                    worker.tell_to_end()
            for worker in self.workers:
                worker.wait()
            if self.lock is not None:
                self.lock.close()
            # A worker's own log matters only if it died, since each job has its log. The next launch removes these.
            if not self.deaths:
                shutil.rmtree(self.folder, ignore_errors=True)

    def _step(self) -> None:
        for worker in self.workers:
            if worker.is_running and (job := self._job_of(worker)) is not None:
                worker.end_if_silent(job)
            self._bury(worker)
        # Counted before the jobs are read: a job that is claimed in between must not look as if it had no worker.
        starting = sum(worker.is_running and worker.job_id is None for worker in self.workers)
        for job in self.progress.refresh():
            self._settle(job)
        usable = [worker for worker in self.workers if self.deaths[worker.name] < MAX_ATTEMPTS]
        if not usable:
            give_up(self.progress.unsettled, f"no worker could start: {self.workers[-1].death_reason()}")
            return
        free = [worker for worker in usable if not worker.is_running and worker.rests_until <= time.monotonic()]
        if free and not has_space(self.folder, _SPACE):
            self._say_full()
            free = []
        for worker in free[: max(0, self.progress.waiting - starting)]:
            worker.start()
        self._report()

    def _job_of(self, worker: WorkerProcess) -> Job | None:
        """Unsettled job that a worker is at, or was at when it died."""
        at = worker.job_id
        return next((job for job in self.progress.unsettled if job.id == at), None)

    def _bury(self, worker: WorkerProcess) -> None:
        """Handle the end of a worker, and report it unless the worker has done its work."""
        code = worker.ended()
        if code is None:
            return
        if code == 0 or worker.job_id is not None:
            del self.deaths[worker.name]
        if code == 0:
            return
        cause, job = worker.death_reason(), self._job_of(worker)
        if worker.job_id is None:
            self.say(f"a worker could not start: {cause}")
            self._count_death(worker, worker.name)
        elif job is not None and job.state().name == "waiting":
            self.say(f"the worker at {job.id} died: {cause}")
            self._count_death(worker, job.id)
            if self.deaths[job.id] >= MAX_ATTEMPTS:  # more, if another worker claimed it first
                give_up([job], f"its worker died in each of {MAX_ATTEMPTS} attempts: {cause}")

    def _count_death(self, worker: WorkerProcess, at: str) -> None:
        self.deaths[at] += 1
        worker.rests_until = time.monotonic() + _REST_SECONDS * 2 ** (self.deaths[at] - 1)

    def _say_full(self) -> None:
        if time.monotonic() - self.said_time > _QUIET_SECONDS:
            self.said_time = time.monotonic()
            self.say(f"{self.experiment}: the disk is full; no worker is started until there is space")

    def _settle(self, job: Job) -> None:
        state = job.state()
        if state.name == "finished":
            self.outcome.finished.append(job)
            self.say(": ".join(filter(None, [f"finished {job.id}", job.result()])))
            self.on_finished(job)
        else:
            self.outcome.failed[job.id] = state.reason or "no reason given"
            self.say(f"FAILED {job.id}: {state.reason} (log: {job.log})")

    def _report(self) -> None:
        seen = f"{self.progress.share:.0%}, {self.progress.running}"
        is_quiet = time.monotonic() - self.said_time > _QUIET_SECONDS
        if (seen != self.last_seen or is_quiet) and self.progress.unsettled:
            self.last_seen, self.said_time = seen, time.monotonic()
            self.say(str(self.progress))
            with suppress(FileError):
                write_atomically(self.folder / _PROGRESS, str(self.progress))
        if time.monotonic() - self.standings_time > _STANDINGS_SECONDS:
            self.standings_time = time.monotonic()
            for standing in self.standings():
                self.say(f"  {standing}")
