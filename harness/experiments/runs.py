"""Training runs as jobs."""

import gc
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

from harness.config import ConfigError, dump
from harness.experiments.jobs.job import Job, State
from harness.experiments.jobs.launchers import Task, hand_over, read_resources, run_command
from harness.experiments.jobs.runner import Outcome, Say, run_jobs
from harness.experiments.status import latest_validation, standings
from harness.foundation.errors import FileError
from harness.foundation.files import is_full, wait_for_space, write_atomically
from harness.foundation.records import LOGS
from harness.runs import checkpoints
from harness.runs.directory import RunDirectory
from harness.runs.identity import changes_of, note_on_code

_SPARE = 16 * 2**20
"""Bytes that a run may write beside its checkpoints until the next one, and more."""


class RunJob(Job):
    """A run that has been prepared; its status.json says where it stands."""

    def __init__(self, run: RunDirectory) -> None:
        done, log = run.folder / "status.json", run.folder / "log.txt"
        super().__init__(id=run.run_id, call=partial(_train, run.folder), done=done, log=log, config=run.config)
        self.run = run

    def state(self) -> State:
        """From status.json alone."""
        status = self.run.status()
        # A damaged status knows no iterations; the run is begun again, and has another one then.
        share = status["iteration"] / (status["iterations"] or 1)
        match status["state"]:
            case "finished" | "failed" as name:
                return State(name, share, status["reason"])
        return State("waiting", share)

    def try_lock(self) -> IO[bytes] | None:
        """The run's own lock, which ``adagrpo train`` takes, too."""
        try:
            return None if self.is_locked() else self.run.lock()
        except ConfigError:
            return None  # another process was quicker

    def is_locked(self) -> bool:
        """Whether a process is training it."""
        return self.run.is_locked()

    def traces(self) -> Sequence[Path]:
        """Of training and evaluations; the folder is touched by a run that waits for space."""
        return [self.log, self.run.folder, *(self.run.folder / name for name in LOGS)]

    def begin(self) -> None:
        """Note that it is running, and forget what an earlier attempt has noted."""
        self._set_status("running")

    def reset(self) -> None:
        """Have it wait, from the iteration that it has reached."""
        self._set_status("waiting")

    def fail(self, reason: str) -> None:
        """Have it fail; what one of its processes noted is part of the reason."""
        known = self.run.status()["reason"]
        self._set_status("failed", reason if known is None else f"{reason} ({known})")

    def note(self, error: Exception) -> None:
        """Nothing: it has noted that itself, in whichever of its processes failed first."""

    def result(self) -> str:
        """What it reached."""
        reached = latest_validation(self.run, self.config)
        return "" if reached is None else f"trained reward on validation prompts {reached[0]:.3f}"

    def _set_status(self, state: str, reason: str | None = None) -> None:
        status = self.run.status()
        self.run.set_status(state, status["iteration"], status["iterations"] or self.config.iterations, reason)


def run_all(
    runs: Sequence[RunDirectory],
    slots: int | None,
    say: Say,
    on_finished: Callable[[RunDirectory], object] = lambda run: None,
) -> Outcome:
    """Execute runs on this machine; finished ones are skipped, unfinished ones resumed.

    Args:
        runs: in the order in which they are wanted.
        slots: runs at a time; None for as many as the machine suffices for.
        say: receives lines of progress.
        on_finished: called with each run that finishes meanwhile, soon after it does.

    Raises:
        ConfigError, KeyboardInterrupt: as ``run_jobs``.
    """
    given, runs = len(runs), list(dict.fromkeys(runs))
    if len(runs) < given:
        say(f"{given - len(runs)} runs differ from others in settings without effect, and are the same run")
    for line in note_on_code(changes_of(run.folder) for run in runs):
        say(line)
    return run_jobs(
        [RunJob(run) for run in runs],
        slots,
        runs[0].folder.parent,
        say,
        on_finished=lambda job: on_finished(RunDirectory(job.done.parent)),
        standings=lambda: standings(runs),
    )


def hand_over_all(runs: Sequence[RunDirectory], cluster: str, say: Say) -> int:
    """Hand runs to a launcher, but those that are finished, at work, or in a queue already; the exit code.

    Args:
        runs: that have been prepared.
        cluster: a file in experiments/clusters/.
        say: receives a line each.

    Raises:
        ConfigError: there is no such file or launcher, or it refuses.
    """
    resources, tasks = read_resources(cluster), list[Task]()
    for run in dict.fromkeys(runs):
        if run.status()["state"] != "finished" and not run.is_locked():
            runtime = run.config.runtime
            command = run_command(run.folder, runtime.processes)
            tasks.append(Task(run.folder, command, runtime.machines, RunJob(run).reset))
    return hand_over(tasks, resources, say, f"{len(runs)} runs")


def _train(folder: Path) -> None:
    run = RunDirectory(folder)
    patiently(run, lambda: _execute(run))


def patiently(run: RunDirectory, execute: Callable[[], object]) -> None:
    """Execute a run: where memory does not suffice for an update, with half as many samples at a time, down to one;
    where the disk is full, from its checkpoint when there is space for two more and what else it may write.

    Args:
        run: what stops it for good is noted there, and raised.
        execute: does it, from its checkpoint.
    """
    with run.failure_noted():
        from torch import OutOfMemoryError

        while True:
            try:
                execute()
            except OutOfMemoryError:
                count = _halved(run)
                if count is None:
                    raise
                print(f"out of memory: tried again with model.execution.max_train_batch={count}", flush=True)
            except Exception as error:
                if not is_full(error):
                    raise
                print(f"{error}; waits for it", flush=True)
                _note_waiting(run, str(error))
                wait_for_space(run.folder, _SPARE + 2 * checkpoints.size_of_newest(run.checkpoints))
            else:
                return


def _note_waiting(run: RunDirectory, reason: str) -> None:
    """For who asks for the status, if it can be written."""
    status = run.status()
    with suppress(FileError):
        run.set_status("running", status["iteration"], status["iterations"], f"{reason}; waits for it")


def _execute(run: RunDirectory) -> None:
    from harness.training.preemption import Preemption
    from harness.training.session import Session

    with Preemption(run) as asked:
        Session(run, say=lambda line: print(line, flush=True), asked_to_end=asked).execute()


def _halved(run: RunDirectory) -> int | None:
    """Halve how many samples go through the network in an update, which is no part of what a run is; None at one.

    Several processes cannot agree on it in the middle.
    """
    from torch import cuda

    config = run.config
    count = (config.model.execution.max_train_batch or config.model.max_batch) // 2
    if count < 1 or config.runtime.processes > 1:
        return None
    execution = config.model.execution.model_copy(update={"max_train_batch": count})
    model = config.model.model_copy(update={"execution": execution})
    write_atomically(run.folder / "config.yaml", dump(config.model_copy(update={"model": model})))
    gc.collect()
    cuda.empty_cache()
    return count
