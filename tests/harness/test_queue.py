"""The queue: a run belongs to one process at a time, whatever happens to that process."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness.config import ROOT, compose
from harness.experiments.jobs.queue import MAX_ATTEMPTS, claim_next, give_up, read_queue, reset, write_queue
from harness.runs.directory import RunDirectory, prepare_run


@pytest.fixture
def runs(tmp_path: Path) -> list[RunDirectory]:
    prepared = [prepare_run(compose("smoke", overrides=[f"seed={seed}"]), tmp_path) for seed in range(3)]
    reset(prepared)
    return prepared


def test_runs_are_claimed_in_order_and_once(runs: list[RunDirectory], tmp_path: Path) -> None:
    write_queue(tmp_path / "queue", runs)
    queue = read_queue(tmp_path / "queue")
    claims = [claim_next(queue) for _ in range(4)]
    assert [claim and claim.run for claim in claims] == [*runs, None]
    assert [run.status()["state"] for run in runs] == ["running"] * 3


def test_settled_runs_are_not_claimed(runs: list[RunDirectory]) -> None:
    runs[0].set_status("finished", 12, 12)
    runs[1].set_status("failed", 3, 12, "ValueError: broken")
    claim = claim_next(runs)
    assert claim is not None
    assert claim.run == runs[2]


def test_a_run_whose_worker_died_is_claimed_again_a_bounded_number_of_times(runs: list[RunDirectory]) -> None:
    for attempt in range(1, MAX_ATTEMPTS + 1):
        claim = claim_next(runs[:1])
        assert claim is not None
        assert claim.attempt == attempt
        claim.lock.close()  # as the operating system does for a dead process
    assert claim_next(runs[:1]) is None
    status = runs[0].status()
    assert status["state"] == "failed"
    assert status["reason"] == "its worker died in each of 3 attempts: killed from outside, or out of memory"
    reset(runs[:1])
    assert claim_next(runs[:1]) is not None


def test_a_reset_keeps_what_was_reached_and_leaves_runs_at_work_alone(runs: list[RunDirectory]) -> None:
    runs[0].set_status("failed", 8, 12, "ValueError: broken", attempts=2)
    runs[1].set_status("finished", 12, 12)
    claim = claim_next(runs[2:])
    assert claim is not None
    reset(runs)
    status = runs[0].status()
    assert (status["state"], status["iteration"], status["reason"], status["attempts"]) == ("waiting", 8, None, 0)
    assert [run.status()["state"] for run in runs[1:]] == ["finished", "running"]


def test_runs_that_no_worker_can_execute_are_given_up_except_those_at_work(runs: list[RunDirectory]) -> None:
    claim = claim_next(runs)
    assert claim is not None
    give_up(runs, "no worker could start")
    assert [run.status()["state"] for run in runs] == ["running", "failed", "failed"]


def test_workers_that_compete_execute_every_run_once(tmp_path: Path) -> None:
    runs = [prepare_run(compose("smoke", overrides=[f"seed={seed}"]), tmp_path) for seed in range(12)]
    reset(runs)
    write_queue(tmp_path / "queue", runs)
    script = (
        "import sys; from pathlib import Path; from harness.experiments.jobs.queue import claim_next, read_queue\n"
        "runs = read_queue(Path(sys.argv[1]))\n"
        "while claim := claim_next(runs):\n"
        "    claim.run.append('executions', {})\n"
        "    claim.run.set_status('finished', 12, 12)\n"
        "    claim.lock.close()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "queue")]
    workers = [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    assert [(run.folder / "executions").read_text().count("\n") for run in runs] == [1] * 12
