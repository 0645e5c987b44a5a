"""Executes a list of runs on this machine: a worker in each slot, replaced when it ends before the queue is empty."""

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness.experiments.jobs.process import QUEUE_NAME, WorkerProcess
from harness.experiments.jobs.progress import Progress, latest_validation, standings
from harness.experiments.jobs.queue import give_up, is_settled, reset, write_queue
from harness.experiments.jobs.slots import Slot, local_slots
from harness.files import lock
from harness.runs.directory import RunDirectory
from harness.runs.identity import changes_of, note_on_code

_FOLDER = f".workers-{socket.gethostname()}-"
_POLL_SECONDS = 0.5
_STANDINGS_SECONDS = 300.0
_MAX_FALSE_STARTS = 3
"""How often in a row a slot's worker may die before it has claimed a run."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """How a list of runs ended."""

    finished: list[RunDirectory] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Reason by run id."""


def run_all(
    runs: Sequence[RunDirectory],
    slots: int | None,
    say: Say,
    on_finished: Callable[[RunDirectory], object] = lambda run: None,
) -> Outcome:
    """Execute runs; finished ones are skipped, unfinished ones resumed. Call it from the main thread.

    A failed run does not stop the others, nor does a worker that dies: a new one resumes its run, in at most
    ``queue.MAX_ATTEMPTS`` attempts. Ctrl-C and SIGTERM end the workers; the same call goes on where they stopped.

    Args:
        runs: in the order in which they are wanted.
        slots: runs at a time; None for as many as the machine suffices for.
        say: receives lines of progress.
        on_finished: called with each run that finishes meanwhile, soon after it does.

    Raises:
        ConfigError: the machine cannot give the slots, or the runs need different ones.
        KeyboardInterrupt: on Ctrl-C and SIGTERM, after the workers have ended.
    """
    if runs:
        _remove_left_behind(runs[0].folder.parent)
    given, runs = len(runs), list(dict.fromkeys(runs))
    if len(runs) < given:
        say(f"{given - len(runs)} runs differ from others in settings without effect, and are the same run")
    for line in note_on_code(changes_of(run.folder) for run in runs):
        say(line)
    finished = [run for run in runs if run.status()["state"] == "finished"]
    outcome = Outcome(finished)
    if finished:
        say(f"{len(finished)} of {len(runs)} runs are finished already")
    if len(finished) < len(runs):
        rooms = local_slots([run.config.runtime for run in runs if run not in finished], slots)
        reset(runs)
        _Launch(runs, rooms, outcome, say, on_finished).execute()
    for line in standings(runs):
        say(line)
    return outcome


def _remove_left_behind(folder: Path) -> None:
    """Remove what launches of this machine that have ended, or were killed, left in an experiment's folder."""
    for left in folder.glob(f"{_FOLDER}*"):
        with suppress(OSError):
            held = lock(left / "lock")
            if held is not None:
                held.close()
                shutil.rmtree(left)


class _Launch:
    """Workers at the runs of one call of ``run_all``."""

    def __init__(
        self,
        runs: Sequence[RunDirectory],
        slots: Sequence[Slot],
        outcome: Outcome,
        say: Say,
        on_finished: Callable[[RunDirectory], object],
    ) -> None:
        self.runs, self.outcome, self.say, self.on_finished = runs, outcome, say, on_finished
        self.progress = Progress(runs)
        self.folder = runs[0].folder.parent / f"{_FOLDER}{os.getpid()}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = lock(self.folder / "lock", wait=True)  # until this process ends, however it does
        write_queue(self.folder / QUEUE_NAME, runs)
        self.workers = [WorkerProcess(slot, self.folder, f"worker-{index}") for index, slot in enumerate(slots)]
        self.false_starts = dict.fromkeys(self.workers, 0)
        self.has_died = False
        self.last_percent, self.standings_time = "", time.monotonic()
        if self.progress.running:
            say(f"{self.progress.running} runs are at work under another command; this one waits for them")

    def execute(self) -> None:
        """Supervise until every run is settled. The workers end with it in any case: with the queue, or by force."""
        try:
            with sigterm_interrupts():
                while self.progress.unsettled:
                    self._step()
                    time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            self.say("interrupted: the same command continues where the runs stopped")
            raise
        finally:
            if self.progress.unsettled:
                for worker in self.workers:
                    worker.tell_to_end()
            for worker in self.workers:
                worker.wait()
            if self.lock is not None:
                self.lock.close()
            # Workers' own logs are of interest only if one died: each run has its log. The next launch removes them.
            if not self.has_died:
                shutil.rmtree(self.folder, ignore_errors=True)

    def _step(self) -> None:
        for worker in self.workers:
            self._bury(worker)
        # Counted before the runs are looked at: one that is claimed in between must not look unserved.
        starting = sum(worker.is_running and worker.run_id is None for worker in self.workers)
        for run in self.progress.refresh():
            self._settle(run)
        usable = [worker for worker in self.workers if self.false_starts[worker] < _MAX_FALSE_STARTS]
        if not usable:
            give_up(self.progress.unsettled, f"no worker could start: {self.workers[-1].cause_of_death()}")
            return
        free = [worker for worker in usable if not worker.is_running]
        for worker in free[: max(0, self.progress.waiting - starting)]:
            worker.start()
        self._report()

    def _bury(self, worker: WorkerProcess) -> None:
        """Notice a worker that has ended, and say so unless it has done its work."""
        code = worker.ended()
        if code is None:
            return
        if code == 0 or worker.run_id is not None:
            self.false_starts[worker] = 0
        if code == 0:
            return
        if worker.run_id is None:
            self.false_starts[worker] += 1
            self.has_died = True
            self.say(f"a worker could not start: {worker.cause_of_death()}")
            return
        run = next(run for run in self.runs if run.run_id == worker.run_id)
        if not is_settled(run):
            self.has_died = True
            self.say(f"the worker at {run.run_id} died: {worker.cause_of_death()}")

    def _settle(self, run: RunDirectory) -> None:
        status = run.status()
        if status["state"] == "finished":
            self.outcome.finished.append(run)
            reached = latest_validation(run)
            value = "" if reached is None else f": trained reward on validation prompts {reached[0]:.3f}"
            self.say(f"finished {run.run_id}{value}")
            self.on_finished(run)
        else:
            self.outcome.failed[run.run_id] = status["reason"]
            self.say(f"FAILED {run.run_id}: {status['reason']} (log: {run.folder / 'log.txt'})")

    def _report(self) -> None:
        percent = f"{self.progress.share:.0%}"
        if percent != self.last_percent and self.progress.unsettled:
            self.last_percent = percent
            self.say(str(self.progress))
        if time.monotonic() - self.standings_time > _STANDINGS_SECONDS:
            self.standings_time = time.monotonic()
            for standing in standings(self.runs):
                self.say(f"  {standing}")


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within: SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
