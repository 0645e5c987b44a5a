"""Executes jobs on this machine: a worker in each slot, replaced when it ends before all jobs are settled."""

import os
import pickle
import shutil
import signal
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
from harness.foundation.files import has_space, lock, write_atomically

MAX_ATTEMPTS = 3
"""How often a job is begun in one launch, if its worker dies in the middle of it each time."""
LAUNCHES = ".workers-"
"""How the name begins of a folder that a launch keeps while it is at work."""
_POLL_SECONDS = 0.5
_QUIET_SECONDS = 15.0
"""Longest time without a line of progress: models are loaded at first, and the untrained one is measured."""
_STANDINGS_SECONDS = 300.0
_REST_SECONDS = 4.0
"""How long a slot is left alone after its worker died; twice as long after each further death."""
_MAX_FALSE_STARTS = 3
"""How often in a row a slot's worker may die before it has claimed a job."""

_SPACE = 2**20
"""Bytes that a worker writes until it is at work, and more."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """How a list of jobs ended."""

    finished: list[Job] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Reason by id."""


def run_jobs(
    jobs: Sequence[Job],
    slots: int | Sequence[Slot] | None,
    folder: Path,
    say: Say,
    *,
    on_finished: Callable[[Job], object] = lambda job: None,
    standings: Callable[[], Sequence[str]] = lambda: (),
    stop_at_failure: bool = False,
) -> Outcome:
    """Have jobs done by workers; those that are done are skipped. Call it from the main thread.

    A job that fails does not stop the others, nor does a worker that dies: a new one does its job again, in at most
    ``MAX_ATTEMPTS`` attempts. Ctrl-C and SIGTERM end the workers; the same call goes on where they stopped.

    Args:
        jobs: in the order in which they are wanted.
        slots: jobs at a time, or where they run; None for as many as the machine suffices for.
        folder: of the experiment; a folder with the workers' logs is in it as long as the launch lasts.
        say: receives lines of progress.
        on_finished: called with each job that finishes meanwhile, soon after it does.
        standings: lines to say now and then, and at the end.
        stop_at_failure: end the workers as soon as one job has failed, since the others are of no use without it.

    Raises:
        ConfigError: the machine cannot give the slots, or the jobs need different ones.
        KeyboardInterrupt: on Ctrl-C and SIGTERM, after the workers have ended.
    """
    _remove_left_behind(folder)
    finished = [job for job in jobs if job.state().name == "finished"]
    if finished:
        say(f"{len(finished)} of {len(jobs)} are finished already")
    outcome = Outcome(finished)
    if left := [job for job in jobs if job not in finished]:
        if slots is None or isinstance(slots, int):
            slots = local_slots([job.config.runtime for job in left], slots)
        reset(left)
        _Launch(left, slots, folder, say, on_finished, standings, stop_at_failure, outcome).execute()
    for line in standings():
        say(line)
    return outcome


def launches_at_work(root: Path) -> Iterator[tuple[Path, Progress]]:
    """The experiment's folder and the progress of every launch of this user under a folder.

    To read a queue is to execute what is in it: who may write to the folder is not to execute anything as who looks.
    """
    for path in sorted(root.rglob(f"{LAUNCHES}*/{QUEUE_NAME}")):
        held = lock(path.with_name("lock"), shared=True)
        if held is not None:
            held.close()
            continue
        with path.open("rb") as queue:
            if os.fstat(queue.fileno()).st_uid == os.getuid():
                yield path.parent.parent, Progress(pickle.load(queue))


def _remove_left_behind(folder: Path) -> None:
    """Remove what launches of this machine that have ended, or were killed, left in an experiment's folder."""
    for left in folder.glob(f"{LAUNCHES}{socket.gethostname()}-*"):
        with suppress(OSError):
            held = lock(left / "lock")
            if held is not None:
                held.close()
                shutil.rmtree(left)


@dataclass
class _Launch:
    """Workers at the jobs of one call of ``run_jobs``."""

    jobs: Sequence[Job]
    slots: Sequence[Slot]
    experiment: Path
    say: Say
    on_finished: Callable[[Job], object]
    standings: Callable[[], Sequence[str]]
    stop_at_failure: bool
    outcome: Outcome

    def __post_init__(self) -> None:
        self.progress = Progress(self.jobs)
        self.folder = self.experiment / f"{LAUNCHES}{socket.gethostname()}-{os.getpid()}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = lock(self.folder / "lock", wait=True)  # until this process ends, however it does
        write_atomically(self.folder / QUEUE_NAME, pickle.dumps(list(self.jobs)))
        self.workers = [WorkerProcess(slot, self.folder, f"worker-{index}") for index, slot in enumerate(self.slots)]
        self.false_starts: Counter[WorkerProcess] = Counter()
        self.deaths: Counter[str] = Counter()
        self.rests: dict[WorkerProcess, float] = {}
        self.heard: dict[WorkerProcess, tuple[object, float]] = {}
        self.last_seen, self.said_time, self.standings_time = "", 0.0, time.monotonic()
        if self.progress.running:
            self.say(f"{self.progress.running} are at work under another command; this one waits for them")

    def execute(self) -> None:
        """Supervise until every job is settled. The workers end with it in any case: with the jobs, or by force."""
        try:
            with sigterm_interrupts():
                while self.progress.unsettled and not (self.stop_at_failure and self.outcome.failed):
                    began = time.monotonic()
                    self._step()
                    # A look reads the state of every job that is left: of hundreds no core may be busy with it.
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
            # Workers' own logs are of interest only if one died: each job has its log. The next launch removes them.
            if not self.deaths and not self.false_starts:
                shutil.rmtree(self.folder, ignore_errors=True)

    def _step(self) -> None:
        for worker in self.workers:
            self._end_if_silent(worker)
            self._bury(worker)
        # Counted before the jobs are looked at: one that is claimed in between must not look unserved.
        starting = sum(worker.is_running and worker.job_id is None for worker in self.workers)
        for job in self.progress.refresh():
            self._settle(job)
        usable = [worker for worker in self.workers if self.false_starts[worker] < _MAX_FALSE_STARTS]
        if not usable:
            give_up(self.progress.unsettled, f"no worker could start: {self.workers[-1].death_reason()}")
            return
        now = time.monotonic()
        free = [worker for worker in usable if not worker.is_running and self.rests.get(worker, 0.0) <= now]
        if free and not has_space(self.folder, _SPACE):
            self._say_full()
            free = []
        for worker in free[: max(0, self.progress.waiting - starting)]:
            worker.start()
        self._report()

    def _bury(self, worker: WorkerProcess) -> None:
        """Notice a worker that has ended, and say so unless it has done its work."""
        code = worker.ended()
        if code is None:
            return
        self.heard.pop(worker, None)
        if code == 0 or worker.job_id is not None:
            del self.false_starts[worker]
        else:
            self.false_starts[worker] += 1
            self._rest(worker, self.false_starts[worker])
            self.say(f"a worker could not start: {worker.death_reason()}")
        if code == 0:
            return
        for job in self.progress.unsettled:
            if job.id == worker.job_id and job.state().name == "waiting":
                cause = worker.death_reason()
                self.say(f"the worker at {job.id} died: {cause}")
                self.deaths[job.id] += 1
                self._rest(worker, self.deaths[job.id])
                if self.deaths[job.id] >= MAX_ATTEMPTS:  # more, if another worker was quicker to claim it
                    give_up([job], f"its worker died in each of {MAX_ATTEMPTS} attempts: {cause}")

    def _rest(self, worker: WorkerProcess, deaths: int) -> None:
        self.rests[worker] = time.monotonic() + _REST_SECONDS * 2 ** (deaths - 1)

    def _end_if_silent(self, worker: WorkerProcess) -> None:
        """Kill a worker whose job has written nothing for too long, by this process's clock."""
        at = worker.job_id if worker.is_running else None
        for job in [job for job in self.progress.unsettled if job.id == at]:
            mark = job.id, [path.stat().st_mtime_ns for path in job.traces() if path.exists()]
            if self.heard.get(worker, ("", 0.0))[0] != mark:
                self.heard[worker] = mark, time.monotonic()
            elif time.monotonic() - self.heard[worker][1] > (most := job.config.runtime.silent_seconds):
                worker.verdict = f"nothing written for runtime.silent_seconds={most:g}"
                worker.tell_to_end(signal.SIGKILL)

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
        if time.monotonic() - self.standings_time > _STANDINGS_SECONDS:
            self.standings_time = time.monotonic()
            for standing in self.standings():
                self.say(f"  {standing}")
