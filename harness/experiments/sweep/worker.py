"""Worker of a sweep: executes one trial after another until the study has all of its trials."""

import os
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import TrialState

from harness.config import ConfigError
from harness.experiments.jobs.interruption import interruption_heard, sigterm_interrupts
from harness.experiments.jobs.job import Job, State
from harness.experiments.sweep import STORAGE_VARIABLE
from harness.experiments.sweep.definition import Sweep
from harness.experiments.sweep.study import RETRY, find_study, make_pruner, make_sampler, open_storage, storage_errors
from harness.experiments.sweep.trial import ExecuteRun, Objective, SurplusTrial
from harness.foundation.errors import FileError
from harness.foundation.files import read_text, write_atomically

MAX_FAILURES = 10
"""Number of consecutive failures that ends a worker: more than two points cause."""


def work(
    sweep: Sweep,
    storage: RDBStorage,
    execute: ExecuteRun,
    deadline: float | None = None,
    poll_seconds: float = 1.0,
    on_finished: Callable[[int], object] = lambda num_finished: None,
) -> None:
    """Execute trials until the study is complete or the deadline has passed, beside other workers on any machine.

    Args:
        sweep: the sweep.
        storage: storage of its study.
        execute: function that executes a run.
        deadline: time in seconds since the epoch after which no trial begins.
        poll_seconds: time between looks at other workers' trials, when there is nothing else to do.
        on_finished: called with the number of finished trials, before each trial and at the end.

    Raises:
        KeyboardInterrupt: on Ctrl-C; the trial goes back into the queue.
        Exception: error of a trial, if it is a ConfigError or the last of ``MAX_FAILURES`` consecutive failures. Each
            point is tried again ``study.MAX_RETRIES`` times.
    """
    study = find_study(sweep, storage)
    study.sampler, study.pruner = make_sampler(sweep), make_pruner(sweep)
    objective = Objective(sweep, execute)
    failures = 0
    while deadline is None or time.time() < deadline:
        _recover(study, storage)
        states = Counter(trial.state for trial in study.get_trials(deepcopy=False))
        finished = states[TrialState.COMPLETE] + states[TrialState.PRUNED]
        on_finished(finished)
        if not sweep.is_full(finished + states[TrialState.RUNNING]):
            is_last_try = failures + 1 >= MAX_FAILURES
            failures = 0 if _run_trial(study, objective, is_last_try) else failures + 1
        elif states[TrialState.RUNNING] and not sweep.is_full(finished):
            time.sleep(poll_seconds)  # a running trial may come back into the queue
        else:
            return


def _run_trial(study: optuna.Study, objective: Objective, is_last_try: bool) -> bool:
    """Execute a trial. Returns False if it failed and is to be tried again; the last try's error is raised."""
    objective.number = None
    try:
        study.optimize(objective, n_trials=1, catch=(SurplusTrial,))
    except KeyboardInterrupt:
        interruption_heard()
        _queue_again(study, objective.number, RetryHeartbeatStaleTrialCallback())
        raise
    except Exception as error:
        if not _queue_again(study, objective.number, RETRY):
            print(f"trial {objective.number}: this worker was silent for too long, and another has it now", flush=True)
            return True
        if objective.number is None or is_last_try or isinstance(error, ConfigError):
            raise
        traceback.print_exc()
        return False
    return True


def _queue_again(study: optuna.Study, number: int | None, retry: RetryHeartbeatStaleTrialCallback) -> bool:
    """Put a failed trial's point back into the queue. Returns False if another worker has done so already."""
    trials = study.get_trials()
    if any(number in retry.retry_history(trial) for trial in trials):
        return False
    if number is not None and trials[number].state == TrialState.FAIL:  # else it ended before the error
        retry(study, trials[number])
    return True


def _recover(study: optuna.Study, storage: RDBStorage) -> None:
    """Put the trials of silent workers back into the queue."""
    fail_stale_trials(study)
    # A trial whose worker died between asking for it and its first heartbeat is never recovered by Optuna itself.
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        seconds = (datetime.now() - (trial.datetime_start or datetime.now())).total_seconds()
        if trial.user_attrs.get("begun") != trial.number and seconds > (storage.grace_period or 0):
            # Another worker that noticed the same may be faster.
            with suppress(ValueError, UpdateFinishedTrialError):
                study.tell(trial.number, state=TrialState.FAIL)
                RETRY(study, trial)


class SweepWorker(Job):
    """A worker of a sweep on this machine; its work is that of all workers, the trials of the study."""

    def state(self) -> State:
        state, share = super().state(), _share_of(self.done)
        return state._replace(share=float(read_text(share))) if state.name == "waiting" and share.exists() else state


def tell_share(done: Path, sweep: Sweep, num_finished: int) -> None:
    """Record which fraction of a sweep's trials is finished, for the worker that will write the file ``done``."""
    if sweep.num_trials:
        with suppress(FileError):  # a full disk must not end the work
            write_atomically(_share_of(done), str(min(1.0, num_finished / sweep.num_trials)))


def _share_of(done: Path) -> Path:
    return done.with_name(f"{done.name}.share")


def execute_trials(sweep: Sweep, deadline: float | None, done: Path) -> None:
    """Job for ``run_jobs``: execute ``work``, then create the file ``done``.

    The storage's URL is read from the environment, so that no file and no list of processes shows its password.
    """
    from harness.experiments.sweep.execute import execute_run

    url = os.environ[STORAGE_VARIABLE]
    with sigterm_interrupts(), storage_errors(url):
        work(sweep, open_storage(url), execute_run, deadline, on_finished=partial(tell_share, done, sweep))
    done.touch()
