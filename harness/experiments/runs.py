"""Training runs as jobs."""

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from harness.config import ConfigError, dump
from harness.experiments.jobs.job import Job, State
from harness.experiments.jobs.launchers import Task, hand_over, read_resources, run_command
from harness.experiments.jobs.runner import Outcome, Say, run_jobs
from harness.experiments.status import latest_validation, standings
from harness.foundation.errors import FileError
from harness.foundation.files import is_full, wait_for_space, write_atomically
from harness.foundation.leases import watch
from harness.foundation.records import LOGS
from harness.runs import checkpoints
from harness.runs.directory import RunDirectory
from harness.runs.identity import changes_of, note_on_code

_SPARE = 16 * 2**20
"""Bytes of free space for what a run writes beside its checkpoints until the next one, and more."""


class RunJob(Job):
    """A prepared run; its state is in status.json."""

    def __init__(self, run: RunDirectory) -> None:
        done, log = run.folder / "status.json", run.folder / "log.txt"
        super().__init__(id=run.run_id, call=partial(_train, run.folder), done=done, log=log, config=run.config)
        self.run = run

    def state(self) -> State:
        """State according to status.json alone."""
        status = self.run.status()
        # A damaged status has no number of iterations; the run is begun again, and has one then.
        share = status["iteration"] / (status["iterations"] or 1)
        match status["state"]:
            case "finished" | "failed" as name:
                return State(name, share, status["reason"])
            case "incomplete" | "damaged" if self.run.loss() is not None:
                return State("failed", share, status["reason"])
        return State("waiting", share)

    def try_lock(self) -> IO[bytes] | None:
        """Take the run's own lock, which ``adagrpo train`` takes, too; None if another process holds it."""
        try:
            return None if self.is_locked() else self.run.lock()
        except ConfigError:
            return None  # another process was quicker

    def is_locked(self) -> bool:
        """Whether a process is training the run."""
        return self.run.is_locked()

    def traces(self) -> Sequence[Path]:
        """Logs of training and evaluations, and the folder, which is touched by a run that waits for disk space."""
        return [self.log, self.run.folder, *(self.run.folder / name for name in LOGS)]

    def begin(self) -> None:
        """Record that the run is running, and remove the reason of an earlier failure."""
        self._set_status("running")

    def reset(self) -> None:
        """Record that the run is waiting, at the iteration that it has reached, unless it cannot be resumed."""
        if self.run.loss() is None:
            self._set_status("waiting")

    def fail(self, reason: str) -> None:
        """Record that the run has failed; a reason recorded by one of its processes is appended."""
        known = self.run.status()["reason"]
        self._set_status("failed", reason if known is None else f"{reason} ({known})")

    def note(self, error: Exception) -> None:
        """Do nothing: the process of the run that failed first has recorded the error itself."""

    def result(self) -> str:
        """Trained reward of the latest validation; empty before the first one."""
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
    """Execute runs on this machine by ``run_jobs``; finished runs are skipped, unfinished ones resumed."""
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


def hand_over_all(runs: Iterable[RunDirectory], cluster: str, say: Say) -> int:
    """Submit runs to a launcher, except those that are finished, at work or queued already. Returns the exit code.

    Args:
        runs: runs, which may be prepared one by one: none is before the file has been read.
        cluster: name of a file in experiments/clusters/, or a path to one.
        say: called with each line of output.

    Raises:
        ConfigError, PluginError: there is no such file or launcher, or it refuses; or a run cannot be resumed.
    """
    resources, tasks = read_resources(cluster), list[Task]()
    runs = list(dict.fromkeys(runs))
    left = [run for run in runs if run.status()["state"] != "finished"]
    watch([run.folder / "lock" for run in left if run.is_locked()], say)
    for run in left:
        if not run.is_locked():
            run.require_resumable()
            runtime = run.config.runtime
            command = run_command(run.folder, runtime.processes)
            tasks.append(Task(run.folder, command, runtime, partial(_reset, run, run.status())))
    return hand_over(tasks, resources, say, f"{len(runs)} runs")


def _reset(run: RunDirectory, before: Mapping[str, Any]) -> None:
    """Record that a submitted run is waiting, unless its job has changed the status already."""
    if run.status() == before:
        RunJob(run).reset()


def _train(folder: Path) -> None:
    run = RunDirectory(folder)
    patiently(run, lambda: _execute(run))


def patiently(run: RunDirectory, execute: Callable[[], object]) -> None:
    """Execute a run: if memory does not suffice for an update, again with half as many samples per forward pass, down
    to one; if the disk is full, from its checkpoint once there is space for two more and what else it may write.

    Several processes cannot agree on either in the middle of a run.

    Args:
        run: the run; an error that stops it for good is recorded there, and raised.
        execute: executes the run from its checkpoint.

    Raises:
        ConfigError: the run is finished but has lost a file, and no checkpoint is saved; nothing is recorded.
    """
    run.require_resumable()
    size = 0  # of a checkpoint
    with run.failure_noted():
        from torch import OutOfMemoryError, cuda

        while True:
            try:
                execute()
                return
            except Exception as error:
                if run.config.runtime.processes > 1:
                    raise
                is_waiting = is_full(error)
                if is_waiting:
                    reason = f"{error}; waits for it"
                    failed = error.size if isinstance(error, FileError) else 0
                    size = max(size, failed, checkpoints.size_of_newest(run.checkpoints))
                elif isinstance(error, OutOfMemoryError) and _halve(run):
                    count = run.config.model.execution.max_train_batch
                    reason = f"out of memory: tried again with model.execution.max_train_batch={count}"
                else:
                    raise
                print(reason, flush=True)
            # Only here, since the error that is being handled holds the model of the execution that failed.
            gc.collect()
            cuda.empty_cache()
            if is_waiting:
                status = run.status()
                with suppress(FileError):
                    run.set_status("running", status["iteration"], status["iterations"], reason)
                wait_for_space(run.folder, _SPARE + 2 * size)


def _execute(run: RunDirectory) -> None:
    from harness.training.preemption import Preemption
    from harness.training.session import Session

    with Preemption(run) as asked:
        Session(run, say=lambda line: print(line, flush=True), asked_to_end=asked).execute()


def _halve(run: RunDirectory) -> bool:
    """Halve the samples per forward pass of an update, which is not part of a run's identity; False at one sample."""
    config = run.config
    count = (config.model.execution.max_train_batch or config.model.max_batch) // 2
    if count:
        execution = config.model.execution.model_copy(update={"max_train_batch": count})
        model = config.model.model_copy(update={"execution": execution})
        write_atomically(run.folder / "config.yaml", dump(config.model_copy(update={"model": model})))
    return count > 0
