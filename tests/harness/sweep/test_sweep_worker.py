"""Workers: the same trials twice, continued by name, and complete whatever is killed, interrupted or silent."""

import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import landscape
import optuna
import pytest
from landscape import deadly_work, execute, make_sweep, study_of, write_sweep
from optuna.trial import FrozenTrial, TrialState

from analysis.sweep.tables import SweepStudy
from harness.config import ROOT, RunConfig
from harness.experiments.jobs.job import Job
from harness.experiments.jobs.runner import run_jobs
from harness.experiments.jobs.slots import Slot, local_slots
from harness.experiments.sweep import STORAGE_VARIABLE, worker
from harness.experiments.sweep.definition import load_sweep
from harness.experiments.sweep.study import MAX_RETRIES, RETRY, find_study, open_storage, open_study
from harness.experiments.sweep.trial import OnValidation, RunResult
from harness.experiments.sweep.worker import SweepWorker, tell_share, work


def finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(states=(TrialState.COMPLETE,))


def states(study: optuna.Study) -> list[TrialState]:
    """States of all trials but those that were tried again."""
    return [trial.state for trial in SweepStudy(study).trials]


@pytest.mark.parametrize("sampler", [{"kind": "tpe", "seed": 1, "startup_trials": 2}, {"kind": "random", "seed": 1}])
def test_one_worker_and_one_seed_give_the_same_trials_in_one_call_and_in_two(
    tmp_path: Path, sqlite_url: str, sampler: dict[str, Any]
) -> None:
    def outcomes(url: str, trials: int, **changes: Any) -> list[tuple[Any, ...]]:
        common = {"sampler": sampler, "seeds": [1000], "pruner": {"kind": "median"}, "trials": trials}
        study = study_of(make_sweep(tmp_path, **common | changes), url)
        return [(trial.state, trial.params, trial.values) for trial in study.get_trials()]

    whole = outcomes(f"sqlite:///{tmp_path}/whole.db", 4)
    outcomes(sqlite_url, 2)
    assert outcomes(sqlite_url, 4) == whole
    assert whole[0][1] == {"capability.decay": 0.8, "fusion.weight": 1}
    other = outcomes(f"sqlite:///{tmp_path}/other.db", 4, sampler=sampler | {"seed": 2})
    points = [params for _, params, _ in other]
    assert not [params for _, params, _ in whole[1:] if params in points]


def test_all_points_of_a_grid_are_tried_once_over_all_calls(tmp_path: Path, sqlite_url: str) -> None:
    space = {"capability.decay": {"low": 0.7, "high": 0.8, "step": 0.1}, "fusion.weight": [1, 4]}
    common: dict[str, Any] = {"sampler": {"kind": "grid"}, "space": space, "seeds": [1000]}
    study_of(make_sweep(tmp_path, **common, trials=2), sqlite_url)
    study = study_of(make_sweep(tmp_path, **common, trials=100), sqlite_url)
    points = [(trial.params["capability.decay"], trial.params["fusion.weight"]) for trial in finished(study)]
    assert points[0] == (0.8, 1)
    assert sorted(points) == [(decay, weight) for decay in (0.7, 0.8) for weight in (1, 4)]


def test_an_interrupted_trial_goes_back_into_the_queue(tmp_path: Path, sqlite_url: str) -> None:
    calls = 0

    def interrupted(config: RunConfig, on_validation: OnValidation) -> RunResult:
        nonlocal calls
        calls += 1
        if calls in (2, 6):
            raise KeyboardInterrupt
        return execute(config, on_validation)

    sweep = make_sweep(tmp_path, trials=2)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            study_of(sweep, sqlite_url, interrupted)
    study = study_of(sweep, sqlite_url, interrupted)
    assert states(study) == [TrialState.COMPLETE] * 2
    assert SweepStudy(study).reference is not None  # although it was interrupted
    assert len(study.get_trials()) == 4


def test_a_point_that_fails_is_given_up_and_holds_up_no_other_and_a_worker_in_which_all_fail_ends(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = Counter[bool]()

    def failing(config: RunConfig, on_validation: OnValidation) -> RunResult:
        is_reference = config.capability.decay == 0.8
        attempts[is_reference] += 1
        if is_reference or config.seed == 7:
            raise MemoryError("too large")
        return execute(config, on_validation)

    study = study_of(make_sweep(tmp_path, trials=2), sqlite_url, failing)
    assert attempts[True] == MAX_RETRIES + 1
    assert sorted(states(study)) == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL]
    attempts.clear()
    monkeypatch.setattr(worker, "MAX_FAILURES", MAX_RETRIES + 2)
    with pytest.raises(MemoryError, match="too large"):
        study_of(make_sweep(tmp_path, seeds=[7], trials=9), f"sqlite:///{tmp_path}/other.db", failing)
    assert attempts.total() == MAX_RETRIES + 2


def test_a_worker_whose_trial_was_given_to_another_stops_the_run_and_goes_on(tmp_path: Path, sqlite_url: str) -> None:
    sweep = make_sweep(tmp_path, trials=2)
    reached: list[int] = []

    def silent(config: RunConfig, on_validation: OnValidation) -> RunResult:
        """As after a machine slept: another worker has declared the first trial dead."""
        if not reached:
            study = find_study(sweep, open_storage(sqlite_url))
            (running,) = study.get_trials(states=(TrialState.RUNNING,))
            study.tell(running.number, state=TrialState.FAIL)
            RETRY(study, study.get_trials()[running.number])

        def watch(iteration: int, metrics: Any) -> None:
            reached.append(iteration)
            on_validation(iteration, metrics)

        return execute(config, watch)

    study = study_of(sweep, sqlite_url, silent)
    assert reached[:3] == [0, 2, 0]  # stopped at the first report, and begun anew
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL, *[TrialState.COMPLETE] * 2]
    assert finished(study)[0].params == {"capability.decay": 0.8, "fusion.weight": 1}


def test_a_trial_whose_worker_died_before_its_first_heartbeat_is_not_waited_for_for_ever(
    tmp_path: Path, sqlite_url: str
) -> None:
    sweep = make_sweep(tmp_path, trials=2)
    study = open_study(sweep, open_storage(sqlite_url))
    with pytest.warns(UserWarning, match="Heartbeat"):
        study.ask()
    study = study_of(sweep, sqlite_url, grace=1)
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL, *[TrialState.COMPLETE] * 2]
    assert SweepStudy(study).reference is not None


def test_the_progress_of_a_worker_is_that_of_the_studys_trials(tmp_path: Path, sqlite_url: str) -> None:
    sweep, shares = make_sweep(tmp_path, trials=4, seeds=[1000]), []
    job = SweepWorker(id="worker", call=print, done=tmp_path / "done", log=tmp_path / "log", config=sweep.base)

    def watched(config: RunConfig, on_validation: OnValidation) -> RunResult:
        shares.append(job.state().share)
        return execute(config, on_validation)

    storage = open_storage(sqlite_url)
    open_study(sweep, storage)
    work(sweep, storage, watched, on_finished=partial(tell_share, job.done, sweep))
    assert [*shares, job.state().share] == [0, 0.25, 0.5, 0.75, 1]


def test_a_budget_of_time_alone_ends_with_the_deadline(tmp_path: Path, sqlite_url: str) -> None:
    sweep = make_sweep(tmp_path, trials=None, hours=1, seeds=[1000])
    storage = open_storage(sqlite_url)
    study = open_study(sweep, storage)
    work(sweep, storage, execute, deadline=time.time() - 1)
    assert [trial.state for trial in study.get_trials()] == [TrialState.WAITING]
    deadline = time.time() + 3600

    def second_at_the_deadline(config: RunConfig, on_validation: OnValidation) -> RunResult:
        if finished(study):
            monkeypatch.setattr(time, "time", lambda: deadline + 1)
        return execute(config, on_validation)

    with pytest.MonkeyPatch.context() as monkeypatch:
        work(sweep, storage, second_at_the_deadline, deadline)
    assert len(finished(study)) == 2  # one that was begun before it is finished


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_killed_workers_lose_no_finished_trial_and_the_study_ends_complete(
    tmp_path: Path, database: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(f"{database}_url")
    file, log = write_sweep(tmp_path, trials=6), tmp_path / "begun.txt"
    sweep = load_sweep(str(file))
    study = open_study(sweep, open_storage(url))
    variables = {STORAGE_VARIABLE: url, "PYTHONPATH": f"{ROOT}:{Path(landscape.__file__).parent}"}
    slots = [Slot(slot.placement, slot.environment | variables) for slot in local_slots([sweep.base.runtime], 2)]
    jobs = []
    for index in range(2):
        done, log_of_job = tmp_path / str(index), tmp_path / f"{index}.log"
        call = partial(deadly_work, str(file), log, done)
        jobs.append(Job(id=f"worker {index}", call=call, done=done, log=log_of_job, config=sweep.base))
    said: list[str] = []
    assert run_jobs(jobs, slots, tmp_path, said.append).failed == {}
    assert sum("died" in line for line in said) == 1
    # What was killed was put back into the queue at the same point, and every value is what its point gives.
    assert len(finished(study)) == 6
    assert set(states(study)) <= {TrialState.COMPLETE, TrialState.WAITING}
    assert [trial for trial in study.get_trials() if trial.system_attrs.get("retry_history")]
    for trial in finished(study):
        heights = [landscape.height(config) for config in sweep.configs(trial.params, sweep.file.seeds)]
        assert trial.values == [pytest.approx(sum(heights) / 2)]
