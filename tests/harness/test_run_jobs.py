"""A worker: runs leave nothing behind for the next one, and a failed one stops no other."""

import errno
import os
import shutil
import signal
import subprocess
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config import ConfigError
from harness.experiments import runs as experiment_runs
from harness.experiments.jobs import worker
from harness.experiments.jobs.job import State, claim_next, reset
from harness.experiments.runs import RunJob
from harness.foundation import files
from harness.foundation.errors import CollectiveError, FileError, TrainingError
from harness.runs import checkpoints
from harness.runs.checkpoints import folder_of
from harness.runs.directory import RunDirectory, prepare_run
from harness.training.trainer import Trainer
from tests.harness.conftest import begin, finish, numbers

LONGER = [
    "iterations=2",
    "model.num_steps=4",
    "rollout.candidates=3",
    "evaluation.interval=2",
    "selection=curriculum",
    "fusion.enabled=true",
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDirectory]:
    """A run of each kind of tuning, each finished with nothing else at work."""
    folder = tmp_path_factory.mktemp("alone")
    return {tuning: finish(folder, *LONGER, f"optimizer.tuning={tuning}") for tuning in ("lora", "full")}


def test_a_run_after_others_equals_the_same_run_alone(alone: dict[str, RunDirectory], tmp_path: Path) -> None:
    other = begin(tmp_path, "seed=1", "reward={ocr: 1}")
    broken = begin(tmp_path, "iterations=2", "optimizer.learning_rate=1e30", "optimizer.tuning=full")
    last = [begin(tmp_path / "last", *LONGER, f"optimizer.tuning={tuning}") for tuning in alone]
    torch.manual_seed(7)
    torch.set_num_threads(2)
    assert worker.work([RunJob(run) for run in (other, broken, *last)], tmp_path / "current")
    assert [run.status()["state"] for run in (other, broken, *last)] == ["finished", "failed", "finished", "finished"]
    for run, same in zip(last, alone.values(), strict=True):
        assert numbers(run) == numbers(same)
        ours, theirs = run.load_checkpoint(), same.load_checkpoint()
        assert ours is not None
        assert theirs is not None
        assert all(torch.equal(ours["parameters"][name], value) for name, value in theirs["parameters"].items())


def test_a_worker_that_is_told_to_end_saves_its_run_and_the_next_one_continues_it(
    alone: dict[str, RunDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, iterate = begin(tmp_path, *LONGER, "optimizer.tuning=lora"), Trainer.iterate

    def told(trainer: Trainer) -> dict[str, Any]:
        signal.raise_signal(signal.SIGTERM)
        return iterate(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "iterate", told)
        assert not worker.work([RunJob(run)], tmp_path / "current")
    assert (run.status()["state"], run.status()["iteration"]) == ("preempted", 1)
    assert worker.work([RunJob(run)], tmp_path / "current")
    assert numbers(run) == numbers(alone["lora"])


def test_where_a_run_stands_and_what_a_launch_does_with_that(tmp_path: Path) -> None:
    run = begin(tmp_path)
    job = RunJob(run)
    run.set_status("running", 1, 2)  # as a worker that died leaves it
    assert job.state() == State("waiting", 0.5)
    run.set_status("running", 1, 2, "rank 1: RuntimeError: out of memory")
    job.fail("its worker died in each of 3 attempts")
    reason = "its worker died in each of 3 attempts (rank 1: RuntimeError: out of memory)"
    assert job.state() == State("failed", 0.5, reason)
    reset([job])
    assert (job.state(), run.status()["iteration"]) == (State("waiting", 0.5), 1)
    claim = claim_next([job])
    assert claim is not None
    assert run.status()["state"] == "running"
    assert claim_next([job]) is None
    with pytest.raises(ConfigError, match="another process is training this run"):
        run.lock()
    reset([job])
    assert run.status()["state"] == "running"
    claim[1].close()
    run.append("eval.jsonl", {"iteration": 2, "split": "validation", "metrics": {"colour": 0.25}})
    assert job.result() == "trained reward on validation prompts 0.250"


def test_of_several_processes_the_first_cause_is_kept_and_only_our_own_errors_are_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = begin(tmp_path)
    cause = "rank 1: RuntimeError: out of memory"
    for rank, error, known in (
        ("0", CollectiveError("nobody came"), "rank 0: CollectiveError: nobody came"),  # an echo, until more is known
        ("1", RuntimeError("out of memory"), cause),
        ("0", RuntimeError("connection closed by peer"), cause),
        ("1", TrainingError("the gradient is not finite"), "rank 1: TrainingError: the gradient is not finite"),
    ):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(type(error)), run.failure_noted():
            raise error
        state = "failed" if isinstance(error, TrainingError) else "waiting"
        assert (run.status()["state"], run.status()["reason"]) == (state, known)
    run.set_status("running", 1, 2, "rank 1: RuntimeError: out of memory")
    with pytest.raises(CollectiveError, match=r"^rank 1: RuntimeError: out of memory \(here: nobody came\)$"):  # noqa: SIM117
        with run.failure_noted():
            raise CollectiveError("nobody came")
    run.set_status("running", 1, 2, keep_failure=True)  # as by a main process that saves and has not noticed yet
    assert run.status()["reason"] == cause


def test_out_of_memory_is_tried_again_with_half_as_many_samples_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, tried = begin(tmp_path, "model.max_batch=4"), list[int]()

    def execute(run: Any, enough: int = 3) -> None:
        tried.append(run.config.model.execution.max_train_batch or run.config.model.max_batch)
        if tried[-1] > enough:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(experiment_runs, "_execute", execute)
    most = run.config.model.max_batch
    RunJob(run).call()
    assert tried == [most // 2**k for k in range(len(tried))]
    assert tried[-1] <= 3
    monkeypatch.setattr(experiment_runs, "_execute", lambda run: execute(run, 0))
    with pytest.raises(torch.OutOfMemoryError):
        RunJob(run).call()
    assert run.status()["state"] == "failed"
    assert prepare_run(run.config, run.folder.parents[1]).folder == run.folder


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), OSError(errno.ENOSPC, "full")])
def test_a_model_is_gone_before_its_run_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run, sessions, Model = begin(tmp_path), list[Any](), type("Model", (), {})
    monkeypatch.setattr(experiment_runs, "wait_for_space", lambda folder, size: None)

    def execute() -> None:
        assert [session() for session in sessions] == [None] * len(sessions)
        session = Model()
        session.callback = lambda: session  # a cycle, as in a session
        sessions.append(weakref.ref(session))
        if len(sessions) < 3:
            raise type(error)(*error.args)

    experiment_runs.patiently(run, execute)
    assert len(sessions) == 3


def test_a_run_whose_first_checkpoint_does_not_fit_waits_for_twice_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, waited = begin(tmp_path), list[int]()
    monkeypatch.setattr(experiment_runs, "wait_for_space", lambda folder, size: waited.append(size))

    def execute() -> None:
        if len(waited) < 2:
            if waited:
                raise FileError("log: cannot be written") from OSError(errno.ENOSPC, "full")
            with checkpoints.completing(folder_of(run.checkpoints, 1), None) as folder:
                (folder / "state.pt").write_bytes(bytes(3_000_000))
                raise OSError(errno.ENOSPC, "full")

    experiment_runs.patiently(run, execute)
    assert len(waited) == 2
    assert min(waited) >= 6_000_000 + experiment_runs._SPARE
    assert not list(run.folder.rglob("*partial*"))


def test_of_several_processes_none_waits_for_space_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(tmp_path, "runtime.processes=2", "rollout.prompts_per_iteration=2")
    monkeypatch.setattr(experiment_runs, "wait_for_space", lambda folder, size: pytest.fail("waits"))

    def execute() -> None:
        raise FileError("log: cannot be written") from OSError(errno.ENOSPC, "full")

    with pytest.raises(FileError):
        experiment_runs.patiently(run, execute)
    assert run.status()["state"] == "failed"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_run_on_a_full_disk_says_so_waits_for_space_and_ends_as_without(
    alone: dict[str, RunDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", disk], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        run = begin(disk / "runs", *LONGER, "optimizer.tuning=lora", "runtime.checkpoint_interval=1")
        filler = disk / "filler"
        room = shutil.disk_usage(disk).free - 300_000  # for logs, not for a checkpoint
        with filler.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, room)
        polls: list[str] = []

        def sleep(seconds: float) -> None:
            polls.append(run.status()["reason"] or "")
            filler.unlink(missing_ok=True)

        monkeypatch.setattr(files.time, "sleep", sleep)
        RunJob(run).call()
        assert polls
        assert run.status()["state"] == "finished"
        assert numbers(run) == numbers(alone["lora"])
        assert "No space left on device; free some space" in capsys.readouterr().out
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
