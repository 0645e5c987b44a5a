"""Workers: the same trials twice, continued by name, and complete whatever is killed, interrupted or silent."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import landscape
import optuna
import pytest
from landscape import execute, make_sweep, write_sweep
from optuna.trial import FrozenTrial, TrialState

from harness.config import ROOT, RunConfig
from harness.experiments.sweep import STORAGE_VARIABLE
from harness.experiments.sweep.definition import Sweep, load_sweep
from harness.experiments.sweep.study import (
    GRACE_SECONDS,
    MAX_FAILURES,
    MAX_RETRIES,
    find_study,
    open_storage,
    open_study,
)
from harness.experiments.sweep.summary import summary
from harness.experiments.sweep.supervise import run_workers
from harness.experiments.sweep.tables import listed_trials
from harness.experiments.sweep.trial import ExecuteRun, OnValidation, RunResult
from harness.experiments.sweep.worker import work


def study_of(sweep: Sweep, url: str, execute_run: ExecuteRun = execute, grace: int = GRACE_SECONDS) -> optuna.Study:
    """Begin or continue a study in this process, to its end."""
    storage = open_storage(url, heartbeat_seconds=1, grace_seconds=grace)
    study = open_study(sweep, storage, "identity")
    work(sweep, storage, execute_run, lambda line: None, poll_seconds=0.1)
    return study


def outcomes(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [(trial.state, trial.params, trial.values) for trial in study.get_trials()]


def finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(states=(TrialState.COMPLETE,))


@pytest.mark.parametrize(
    "sampler",
    [
        {"kind": "tpe", "seed": 1, "startup_trials": 3},
        {"kind": "random", "seed": 1},
        {"kind": "gp", "seed": 1, "startup_trials": 3},
    ],
)
def test_one_worker_and_one_seed_give_the_same_trials_twice(tmp_path: Path, sampler: dict[str, Any]) -> None:
    sweep = make_sweep(tmp_path, sampler=sampler, trials=6, seeds=[1000], pruner={"kind": "median"})
    first, second = (outcomes(study_of(sweep, f"sqlite:///{tmp_path / name}.db")) for name in ("one", "two"))
    assert first == second
    assert first[0][1] == {"capability.decay": 0.8, "fusion.weight": 1}
    other = make_sweep(tmp_path, sampler=sampler | {"seed": 2}, trials=6, seeds=[1000])
    points = [params for _, params, _ in outcomes(study_of(other, f"sqlite:///{tmp_path}/other.db"))]
    assert not [params for _, params, _ in first[1:] if params in points]


def test_a_second_call_of_the_same_name_continues_as_if_there_had_been_one(tmp_path: Path, sqlite_url: str) -> None:
    sampler = {"kind": "tpe", "seed": 1, "startup_trials": 2}
    whole = outcomes(study_of(make_sweep(tmp_path, sampler=sampler, trials=5), f"sqlite:///{tmp_path}/whole.db"))
    study_of(make_sweep(tmp_path, sampler=sampler, trials=3), sqlite_url)
    assert outcomes(study_of(make_sweep(tmp_path, sampler=sampler, trials=5), sqlite_url)) == whole


def test_all_points_of_a_grid_are_tried_once(tmp_path: Path, sqlite_url: str) -> None:
    space = {
        "capability.decay": {"low": 0.5, "high": 0.8, "points": 2},
        "fusion.weight": {"low": 1, "high": 4, "step": 3},
    }
    study = study_of(make_sweep(tmp_path, sampler={"kind": "grid"}, space=space, trials=100, seeds=[1000]), sqlite_url)
    points = [(trial.params["capability.decay"], trial.params["fusion.weight"]) for trial in finished(study)]
    assert points[0] == (0.8, 1)
    assert sorted(points) == [(0.5, 1), (0.5, 4), (0.8, 1), (0.8, 4)]


def test_an_interrupted_trial_goes_back_into_the_queue(tmp_path: Path, sqlite_url: str) -> None:
    calls = 0

    def interrupted(config: RunConfig, on_validation: OnValidation) -> RunResult:
        nonlocal calls
        calls += 1
        if calls in (2, 6):
            raise KeyboardInterrupt
        return execute(config, on_validation)

    sweep = make_sweep(tmp_path, trials=4)
    whole = study_of(sweep, f"sqlite:///{tmp_path}/whole.db")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            study_of(sweep, sqlite_url, interrupted)
    study = study_of(sweep, sqlite_url, interrupted)
    listed = listed_trials(study)
    assert [trial.state for trial in listed] == [TrialState.COMPLETE] * 4
    assert listed[0].params == finished(whole)[0].params  # the reference, although it was interrupted
    assert listed[0].user_attrs["origin"] == "reference"
    assert len(study.get_trials()) == 6


def test_an_interruption_after_a_trial_s_end_repeats_nothing(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimize = optuna.Study.optimize

    def interrupted_late(study: optuna.Study, *arguments: Any, **keywords: Any) -> None:
        optimize(study, *arguments, **keywords)
        raise KeyboardInterrupt

    monkeypatch.setattr(optuna.Study, "optimize", interrupted_late)
    sweep = make_sweep(tmp_path, trials=3)
    with pytest.raises(KeyboardInterrupt):
        study_of(sweep, sqlite_url)
    study = find_study(sweep, open_storage(sqlite_url))
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE]


def test_a_point_that_fails_is_given_up_after_some_attempts_and_holds_up_no_other(
    tmp_path: Path, sqlite_url: str
) -> None:
    attempts = 0

    def failing(config: RunConfig, on_validation: OnValidation) -> RunResult:
        nonlocal attempts
        if config.capability.decay == 0.8:
            attempts += 1
            raise MemoryError("too large")
        return execute(config, on_validation)

    study = study_of(make_sweep(tmp_path, trials=2), sqlite_url, failing)
    assert attempts == MAX_RETRIES + 1
    assert [trial.state for trial in listed_trials(study)] == [TrialState.FAIL, *[TrialState.COMPLETE] * 2]
    # What was planned is tried once more when it is asked for once more: the cause may be gone.
    study = study_of(make_sweep(tmp_path, trials=3), sqlite_url)
    assert [trial.state for trial in listed_trials(study)] == [TrialState.FAIL, *[TrialState.COMPLETE] * 3]
    assert finished(study)[-1].user_attrs["origin"] == "reference"


def test_a_worker_in_which_everything_fails_ends(tmp_path: Path, sqlite_url: str) -> None:
    attempts = 0

    def failing(config: RunConfig, on_validation: OnValidation) -> RunResult:
        nonlocal attempts
        attempts += 1
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        study_of(make_sweep(tmp_path, trials=9), sqlite_url, failing)
    assert attempts == MAX_FAILURES


def test_a_grid_begun_with_a_smaller_budget_or_another_sampler_gets_all_its_points(
    tmp_path: Path, sqlite_url: str
) -> None:
    space = {
        "capability.decay": {"low": 0.6, "high": 0.8, "step": 0.1},  # the sampler's .7 is not the grid's, by rounding
        "fusion.weight": {"low": 1, "high": 4, "step": 3},
    }
    common: dict[str, Any] = {"space": space, "seeds": [1000]}
    study_of(make_sweep(tmp_path, **common, sampler={"kind": "random"}, trials=2), sqlite_url)
    study_of(make_sweep(tmp_path, **common, sampler={"kind": "grid"}, trials=4), sqlite_url)
    study = study_of(make_sweep(tmp_path, **common, sampler={"kind": "grid"}, trials=6), sqlite_url)
    points = {(round(trial.params["capability.decay"], 2), trial.params["fusion.weight"]) for trial in finished(study)}
    assert len(finished(study)) == 6
    assert points == {(decay, weight) for decay in (0.6, 0.7, 0.8) for weight in (1, 4)}


def test_a_worker_whose_trial_was_given_to_another_stops_the_run_and_goes_on(tmp_path: Path, sqlite_url: str) -> None:
    sweep = make_sweep(tmp_path, trials=3)
    reached: list[int] = []

    def silent(config: RunConfig, on_validation: OnValidation) -> RunResult:
        """As after a machine slept: another worker has declared the first trial dead."""
        if not reached:
            study = find_study(sweep, open_storage(sqlite_url))
            (running,) = study.get_trials(states=(TrialState.RUNNING,))
            study.tell(running.number, state=TrialState.FAIL)
            study.enqueue_trial(running.params)

        def watch(iteration: int, metrics: Any) -> None:
            reached.append(iteration)
            on_validation(iteration, metrics)

        return execute(config, watch)

    study = study_of(sweep, sqlite_url, silent)
    assert reached[:3] == [0, 2, 0]  # stopped at the first report, and begun anew
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL, *[TrialState.COMPLETE] * 3]
    assert finished(study)[0].params == {"capability.decay": 0.8, "fusion.weight": 1}


def test_a_trial_whose_worker_died_before_its_first_heartbeat_is_not_waited_for_for_ever(
    tmp_path: Path, sqlite_url: str
) -> None:
    sweep = make_sweep(tmp_path, trials=2)
    study = open_study(sweep, open_storage(sqlite_url), "identity")
    with pytest.warns(UserWarning, match="Heartbeat"):
        study.ask()
    study = study_of(sweep, sqlite_url, grace=1)
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL, *[TrialState.COMPLETE] * 2]
    assert [trial.params for trial in finished(study) if trial.user_attrs.get("origin") == "reference"] == [
        {"capability.decay": 0.8, "fusion.weight": 1}
    ]


def test_no_trial_begins_after_the_deadline(tmp_path: Path, sqlite_url: str) -> None:
    sweep = make_sweep(tmp_path)
    storage = open_storage(sqlite_url)
    study = open_study(sweep, storage, "identity")
    work(sweep, storage, execute, lambda line: None, deadline=time.time() - 1)
    assert [trial.state for trial in study.get_trials()] == [TrialState.WAITING]


def test_a_budget_of_time_alone_ends_with_the_deadline(tmp_path: Path, sqlite_url: str) -> None:
    sweep = make_sweep(tmp_path, trials=None, hours=1, seeds=[1000])
    storage = open_storage(sqlite_url)
    study = open_study(sweep, storage, "identity")
    num_before, deadline = 3, time.time() + 3600

    def last_at_the_deadline(config: RunConfig, on_validation: OnValidation) -> RunResult:
        if len(finished(study)) == num_before:
            monkeypatch.setattr(time, "time", lambda: deadline + 1)
        return execute(config, on_validation)

    with pytest.MonkeyPatch.context() as monkeypatch:
        work(sweep, storage, last_at_the_deadline, lambda line: None, deadline)
    assert len(finished(study)) == num_before + 1  # one that was begun before it is finished
    assert "4 trials (4 complete)" in summary(sweep, study)[0]


def test_killed_workers_lose_no_finished_trial_and_the_study_ends_complete(tmp_path: Path, storage_url: str) -> None:
    num_trials = 10
    file, log = write_sweep(tmp_path, trials=num_trials), tmp_path / "begun.txt"
    sweep = load_sweep(str(file))
    study = open_study(sweep, open_storage(storage_url), "identity")
    before: dict[int, Any] = {}
    said: list[str] = []

    def kill_one() -> None:
        begun = log.read_text().splitlines() if log.exists() else []
        # The fifth run killed its own process in the middle; the tenth is in the middle until this kills it.
        if len(begun) >= 10 and not before:
            before.update({trial.number: trial.values for trial in finished(study)})
            os.kill(int(begun[9]), signal.SIGKILL)

    command = [sys.executable, str(Path(landscape.__file__)), str(file), str(log)]
    environment = {STORAGE_VARIABLE: storage_url, "PYTHONPATH": str(ROOT)}
    failures = run_workers(command, [environment] * 2, tmp_path, kill_one, said.append)
    assert failures == []
    assert sum("was killed by SIGKILL" in line for line in said) == 2
    after = {trial.number: trial.values for trial in finished(study)}
    assert len(after) == num_trials
    assert len(before) >= 2
    assert before.items() <= after.items()
    assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    # What was killed was tried again at the same point, and every value is what its point gives.
    listed = listed_trials(study)
    assert [trial.state for trial in listed] == [TrialState.COMPLETE] * num_trials
    again = [trial for trial in study.get_trials() if trial.system_attrs.get("retry_history")]
    assert len(again) >= 1
    for trial in listed:
        (value,) = trial.values
        heights = [landscape.height(config) for config in sweep.configs(trial.params, sweep.file.seeds)]
        assert value == pytest.approx(sum(heights) / 2)
