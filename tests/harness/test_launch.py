"""The launcher, with workers that are quick to start: skipping, failing, dying, interrupting."""

import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from harness.config import compose
from harness.experiments.jobs import local, process
from harness.experiments.jobs.progress import state_of
from harness.runs.directory import RunDirectory, prepare_run

Launch = Callable[..., local.Outcome]

WORKER = """
import os, signal, sys
from pathlib import Path
from harness.experiments.jobs.queue import claim_next, read_queue
from harness.experiments.jobs.streams import end_with_input
current = Path(sys.argv[2])
runs = read_queue(Path(sys.argv[1]))
end_with_input()
while claim := claim_next(runs):
    run, seed = claim.run, int(claim.run.run_id.split("seed")[1][0])
    current.write_text(run.run_id)
    run.append("attempts", {"threads": os.environ["OMP_NUM_THREADS"]})
    BEHAVIOUR
    if run.status()["state"] == "running":
        run.set_status("finished", 12, 12)
    claim.lock.close()
    current.unlink()
"""


@pytest.fixture
def runs(tmp_path: Path) -> list[RunDirectory]:
    every = "runtime.device=cpu"
    return [prepare_run(compose("smoke", overrides=[f"seed={seed}", every]), tmp_path) for seed in range(3)]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def launch(runs: list[RunDirectory], said: list[str], monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Launches the runs; a line of Python says what a worker does with a run."""

    def launched(behaviour: str, slots: int = 2, worker: str = WORKER) -> local.Outcome:
        def command(placement: object, module: str, arguments: Sequence[str]) -> list[str]:
            return [sys.executable, "-c", worker.replace("BEHAVIOUR", behaviour), *arguments]

        monkeypatch.setattr(process, "worker_command", command)
        monkeypatch.setattr(local, "_POLL_SECONDS", 0.05)
        return local.run_all(runs, slots, said.append)

    return launched


def attempts(run: RunDirectory) -> int:
    path = run.folder / "attempts"
    return path.read_text().count("\n") if path.exists() else 0


def test_finished_runs_are_skipped_and_all_others_are_executed_once(
    launch: Launch, runs: list[RunDirectory], said: list[str], tmp_path: Path
) -> None:
    runs[1].set_status("finished", 12, 12)
    outcome = launch("pass")
    assert {run.run_id for run in outcome.finished} == {run.run_id for run in runs}
    assert outcome.failed == {}
    assert [attempts(run) for run in runs] == [1, 0, 1]
    assert said[0] == "1 of 3 runs are finished already"
    assert '"threads": "1"' in (runs[0].folder / "attempts").read_text()
    assert list(tmp_path.rglob(".workers*")) == []


def test_a_failed_run_is_named_and_stops_nothing(launch: Launch, runs: list[RunDirectory], said: list[str]) -> None:
    runs[0].set_status("failed", 4, 12, "of an earlier launch")
    outcome = launch("if seed == 1: run.set_status('failed', 3, 12, 'ValueError: the reward broke')", slots=1)
    assert outcome.failed == {runs[1].run_id: "ValueError: the reward broke"}
    assert outcome.finished == [runs[0], runs[2]]
    assert any(re.match(r"FAILED .*seed1.*: ValueError: the reward broke \(log: .*log\.txt\)", line) for line in said)


def test_a_run_whose_worker_is_killed_is_resumed_by_a_new_one(
    launch: Launch, runs: list[RunDirectory], said: list[str], tmp_path: Path
) -> None:
    outcome = launch("if seed == 1 and claim.attempt == 1: os.kill(os.getpid(), signal.SIGKILL)", slots=1)
    assert outcome.finished == runs
    assert [attempts(run) for run in runs] == [1, 2, 1]
    assert any(line.startswith(f"the worker at {runs[1].run_id} died: SIGKILL") for line in said)
    assert len(list(tmp_path.rglob(".workers*/worker-0.log"))) == 1  # kept, for whoever asks why it died


def test_a_run_that_kills_every_worker_fails_and_loses_no_other(launch: Launch, runs: list[RunDirectory]) -> None:
    outcome = launch("if seed == 0: os.kill(os.getpid(), signal.SIGKILL)")
    assert list(outcome.failed) == [runs[0].run_id]
    assert "died in each of 3 attempts: killed from outside" in outcome.failed[runs[0].run_id]
    assert {run.run_id for run in outcome.finished} == {run.run_id for run in runs[1:]}
    assert [attempts(run) for run in runs] == [3, 1, 1]


def test_workers_that_cannot_start_end_the_launch_with_their_reason(
    launch: Launch, runs: list[RunDirectory], said: list[str]
) -> None:
    outcome = launch("", worker="raise ImportError('no module named flux')")
    assert set(outcome.failed) == {run.run_id for run in runs}
    assert "no worker could start: ImportError: no module named flux (log: " in outcome.failed[runs[0].run_id]
    assert sum("could not start" in line for line in said) == 6  # three attempts in each of two slots


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Tests that were started in the background inherit an interrupt that is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_terminated_launcher_ends_its_workers_and_leaves_runs_resumable(
    launch: Launch, runs: list[RunDirectory], said: list[str], number: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        launch(f"if seed == 1: os.kill(os.getppid(), signal.{number}); signal.pause()", slots=1)
    assert [state_of(run) for run in runs] == ["finished", "interrupted", "waiting"]
    assert said[-1] == "interrupted: the same command continues where the runs stopped"
    assert len(launch("pass").finished) == 3
    assert [attempts(run) for run in runs] == [1, 2, 1]


def test_progress_says_what_is_done_and_the_standings_come_now_and_then(
    launch: Launch, runs: list[RunDirectory], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_STANDINGS_SECONDS", 0.0)
    runs[0].append("eval.jsonl", {"iteration": 4, "split": "validation", "metrics": {"ocr": 0.25}})
    launch("pass", slots=1)
    assert said[0] == "0% done, 0 running, 3 waiting"
    assert said.count("  flow_grpo random  0.250  seeds 1, iteration 4") > 1
    assert said[-1] == "flow_grpo random  0.250  seeds 1, iteration 4"


def test_a_run_is_prepared_into_the_same_directory_each_time(runs: list[RunDirectory], tmp_path: Path) -> None:
    assert prepare_run(compose("smoke", overrides=["seed=2", "runtime.threads=2"]), tmp_path) == runs[2]


def test_a_run_is_claimed_by_one_process_at_a_time(runs: list[RunDirectory]) -> None:
    lock = runs[0].lock()
    with pytest.raises(ValueError, match="another process is training this run"):
        runs[0].lock()
    lock.close()
    runs[0].lock().close()
