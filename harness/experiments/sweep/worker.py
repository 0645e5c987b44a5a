"""A sweep's worker: one trial after another until the study has all that it is to have.

``python -m harness.experiments.sweep.worker SWEEP`` is what the command starts; the storage's URL comes in the
environment, where no list of processes shows its password.
"""

import argparse
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Literal

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState, create_trial

from harness.config import ConfigError
from harness.experiments.sweep import STORAGE_VARIABLE
from harness.experiments.sweep.definition import Sweep, load_sweep
from harness.experiments.sweep.study import (
    MAX_FAILURES,
    RETRY,
    find_study,
    lost_storage_is_one_line,
    make_pruner,
    make_sampler,
    open_storage,
)
from harness.experiments.sweep.supervise import INTERRUPTED_CODE
from harness.experiments.sweep.trial import INTERRUPTED, ExecuteRun, Objective, SurplusTrial
from harness.output import never_failing

_POLL_SECONDS = 1.0

Say = Callable[[str], None]


def work(
    sweep: Sweep,
    storage: RDBStorage,
    execute: ExecuteRun,
    say: Say,
    deadline: float | None = None,
    poll_seconds: float = _POLL_SECONDS,
) -> None:
    """Execute trials until the study is complete, or until the deadline; beside other workers, here and elsewhere.

    Args:
        sweep: the sweep.
        storage: holds its study.
        execute: executes a run.
        say: receives lines of progress.
        deadline: seconds since the epoch after which no trial is begun.
        poll_seconds: how often to look whether other workers have ended their trials, when there is nothing else to do.

    Raises:
        KeyboardInterrupt: on Ctrl-C and SIGTERM; the trial goes back into the queue.
        Exception: of a trial that failed, if it is the last of ``study.MAX_FAILURES`` one after another. Each point is
            tried again ``study.MAX_RETRIES`` times.
    """
    study = find_study(sweep, storage)
    study.sampler, study.pruner = make_sampler(sweep), make_pruner(sweep)
    objective = Objective(sweep, execute, say)
    not_begun: dict[int, float] = {}
    failures = 0
    while deadline is None or time.time() < deadline:
        recover(study, storage, not_begun)
        match next_step(study, sweep):
            case "done":
                return
            case "wait":
                time.sleep(poll_seconds)
            case "run":
                is_last_try = failures + 1 >= MAX_FAILURES
                failures = 0 if _run_trial(study, objective, say, is_last_try) else failures + 1


def next_step(study: optuna.Study, sweep: Sweep) -> Literal["done", "wait", "run"]:
    """Whether there is a trial to begin, or others' to wait for: one of them may come back into the queue."""
    counts = Counter(trial.state for trial in study.get_trials(deepcopy=False))
    finished = counts[TrialState.COMPLETE] + counts[TrialState.PRUNED]
    if sweep.is_full(finished):
        return "done"
    is_free = not sweep.is_full(finished + counts[TrialState.RUNNING])
    # A grid's points are in the queue; there are no others.
    if is_free and (counts[TrialState.WAITING] or sweep.file.sampler.kind != "grid"):
        return "run"
    return "wait" if counts[TrialState.RUNNING] else "done"


def _run_trial(study: optuna.Study, objective: Objective, say: Say, is_last_try: bool) -> bool:
    """Execute a trial; False if it failed and is to be tried again. The last try's failure is raised."""
    objective.number, objective.was_taken_over = None, False
    try:
        study.optimize(objective, n_trials=1, catch=(SurplusTrial,))
    except KeyboardInterrupt:
        failed = _failed_trial(study, objective)
        if failed is not None:
            requeue(study, failed)
        raise
    except Exception as error:
        if objective.was_taken_over:
            say(f"trial {objective.number}: this worker was silent for too long, and another has it now")
            return True
        failed = _failed_trial(study, objective)
        if failed is not None:
            RETRY(study, failed)
        if failed is None or is_last_try or isinstance(error, ConfigError):
            raise
        traceback.print_exc()
        say(f"trial {objective.number} failed: {type(error).__name__}: {error}")
        return False
    return True


def _failed_trial(study: optuna.Study, objective: Objective) -> FrozenTrial | None:
    """The trial that was broken off; none if that was before it began or after it had ended."""
    if objective.number is None:
        return None
    trial = study.get_trials()[objective.number]
    return trial if trial.state == TrialState.FAIL else None


def requeue(study: optuna.Study, trial: FrozenTrial) -> None:
    """Put the point of a trial that was interrupted back into the queue, as if it had never been begun."""
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=trial.user_attrs | {INTERRUPTED: trial.number},
            system_attrs=trial.system_attrs,
        )
    )


def recover(study: optuna.Study, storage: RDBStorage, not_begun: dict[int, float]) -> None:
    """Put the trials of workers that are silent back into the queue.

    Args:
        study: whose trials.
        storage: where it is; has the seconds of silence that are too many.
        not_begun: when this worker first saw each trial that had no heartbeat yet, by number; added to. The hosts'
            clocks need not agree.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        fail_stale_trials(study)
    # A worker that died between asking for a trial and its first heartbeat has left one that Optuna waits for for ever.
    now = time.monotonic()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        has_begun = trial.user_attrs.get("begun") == trial.number
        if not has_begun and now - not_begun.setdefault(trial.number, now) > (storage.grace_period or 0):
            # Another worker that saw the same was faster.
            with suppress(ValueError, UpdateFinishedTrialError):
                study.tell(trial.number, state=TrialState.FAIL)
                RETRY(study, trial)


def _end_with_command() -> None:
    """End this process when the command does, however that ends: it holds the other end of standard input."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    # A second signal must not interrupt what the first one has set going: the trial's way back into the queue.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 2 for a ConfigError, whose message is the last line of standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.experiments.sweep.worker", description="Execute trials of a sweep."
    )
    parser.add_argument("sweep", help="file in experiments/sweeps/, or a path")
    parser.add_argument("--name", required=True, help="of the study")
    parser.add_argument("--trials", type=int, help="instead of the file's")
    parser.add_argument("--deadline", type=float, help="seconds since the epoch")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt_once)
    signal.signal(signal.SIGINT, _interrupt_once)
    _end_with_command()
    try:
        sweep = load_sweep(options.sweep, options.name, options.overrides, options.trials)
        url = os.environ[STORAGE_VARIABLE]
        storage = open_storage(url)
        from harness.experiments.sweep.execute import execute_run

        with lost_storage_is_one_line(url):
            work(sweep, storage, execute_run, lambda line: print(line, flush=True), options.deadline)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED_CODE
    return 0


if __name__ == "__main__":
    with never_failing():
        sys.exit(main())
