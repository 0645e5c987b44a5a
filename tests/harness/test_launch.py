"""The launcher: command lines, skipping, resuming, and failures that do not stop the others."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness.config import compose
from harness.launch import local
from harness.runs import RunDirectory, prepare_run


def prepared(folder: Path, count: int) -> list[RunDirectory]:
    return [prepare_run(compose("smoke", overrides=[f"seed={seed}"]), folder) for seed in range(count)]


def test_one_process_is_plain_python_and_several_are_torchrun(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    train = ["-m", "harness.cli", "train", "--resume", str(tmp_path)]
    assert local.worker_command(run, 1) == [sys.executable, *train]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=8"]
    assert local.worker_command(run, 8) == [*torchrun, *train]


def test_finished_runs_are_skipped_and_a_failure_is_named_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = prepared(tmp_path, 3)
    runs[0].set_status("finished", 12, 12)
    started = []

    def start(run: RunDirectory) -> subprocess.Popen[bytes]:
        started.append(run)
        fails = run is runs[1]
        run.set_status("failed" if fails else "finished", 5 if fails else 12, 12, "the reward broke" if fails else None)
        return subprocess.Popen([sys.executable, "-c", f"raise SystemExit({int(fails)})"])

    monkeypatch.setattr(local, "_start", start)
    said: list[str] = []
    outcome = local.run_all(runs, slots=1, say=said.append)
    assert started == runs[1:]
    assert outcome.failed == {runs[1].run_id: "the reward broke"}
    assert outcome.finished == [runs[0], runs[2]]
    assert any("FAILED" in line and "the reward broke" in line for line in said)


def test_a_worker_that_dies_without_a_word_is_a_failure_with_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = prepared(tmp_path, 1)
    monkeypatch.setattr(local, "_start", lambda run: subprocess.Popen([sys.executable, "-c", "raise SystemExit(9)"]))
    outcome = local.run_all([run], slots=2, say=lambda line: None)
    assert outcome.failed == {run.run_id: "the worker ended with exit code 9"}
    assert run.status()["state"] == "failed"


def test_a_run_is_prepared_into_the_same_directory_each_time(tmp_path: Path) -> None:
    assert prepared(tmp_path, 1) == prepared(tmp_path, 1)


def test_a_run_is_claimed_by_one_process_at_a_time(tmp_path: Path) -> None:
    (run,) = prepared(tmp_path, 1)
    lock = run.lock()
    with pytest.raises(ValueError, match="another process is training this run"):
        run.lock()
    lock.close()
    run.lock().close()
