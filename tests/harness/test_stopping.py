"""Stopping a run from outside, runs without a test, and policies that diverge."""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.config import compose
from harness.foundation.errors import Preempted, StopRun, TrainingError
from harness.runs.directory import RunDirectory, prepare_run
from harness.training.mirror import Mirror
from harness.training.preemption import Preemption
from harness.training.session import Session
from tests.harness.conftest import SHORT, numbers

FAST = [
    *SHORT,
    "iterations=2",
    "model.num_steps=4",
    "rollout.candidates=3",
    "evaluation={interval: 1, test: false, base_test: false}",
    "prompts.test=there/is/none.txt",
]


def prepared(folder: Path, *overrides: str) -> RunDirectory:
    return prepare_run(compose("miniature-luck", overrides=[*FAST, *overrides]), folder)


def execute(run: RunDirectory, **options: Any) -> None:
    Session(run, say=lambda line: None, **options).execute()


def what_it_left(run: RunDirectory) -> tuple[list[dict[str, Any]], bytes]:
    """Evaluations but for their seconds, and final weights."""
    final = run.folder / "checkpoints/final/pytorch_lora_weights.safetensors"
    return numbers(run, "eval.jsonl"), final.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that was not interrupted."""
    run = prepared(tmp_path_factory.mktemp("whole"))
    execute(run)
    return run


@pytest.mark.parametrize("stopped_at", [0, 1])
def test_a_stopped_run_loses_nothing_and_continues_as_if_it_had_not_been_stopped(
    whole: RunDirectory, tmp_path: Path, stopped_at: int
) -> None:
    run, seen = prepared(tmp_path), []

    def watch(iteration: int, metrics: Mapping[str, float]) -> None:
        seen.append((iteration, metrics["colour"]))
        if iteration == stopped_at:
            raise StopRun("seen enough")

    with pytest.raises(StopRun):
        execute(run, on_validation=watch)
    status, checkpoint = run.status(), run.load_checkpoint()
    assert (status["state"], status["iteration"], status["reason"]) == ("waiting", stopped_at, "seen enough")
    assert (checkpoint or {"iteration": 0})["iteration"] == stopped_at
    execute(run)
    assert what_it_left(run) == what_it_left(whole)
    evaluations, _ = what_it_left(whole)
    assert [(record["split"], record["iteration"]) for record in evaluations] == [("validation", i) for i in range(3)]
    assert seen == [(record["iteration"], record["metrics"]["colour"]) for record in evaluations[: len(seen)]]


@pytest.mark.parametrize("asked_at", [0, 1, 3])
def test_a_preempted_run_saves_and_continues_as_if_it_had_not_been(
    whole: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_at: int
) -> None:
    """Asked during the first evaluation, after an iteration, and during the last evaluation."""
    left: list[str] = []
    monkeypatch.setattr(Mirror, "__exit__", lambda mirror, *_: left.append(mirror._directory.status()["state"]))
    run = prepared(tmp_path)
    answers = iter([*[None] * asked_at, "SIGUSR1"])
    with pytest.raises(Preempted, match="SIGUSR1 received, saved at iteration") as error, run.failure_noted():
        execute(run, asked_to_end=lambda: next(answers))
    status = run.status()
    assert error.value.exit_code == 75
    assert (status["state"], status["iteration"]) == ("preempted", (asked_at + 1) // 2)
    assert left == ["preempted"]  # saved before wandb is waited for
    execute(run)
    assert what_it_left(run) == what_it_left(whole)
    measured = {record["iteration"]: record["metrics"]["colour"] for record in what_it_left(run)[0]}
    manifests = [json.loads(path.read_text()) for path in run.checkpoints.glob("iteration-*/manifest.json")]
    assert 2 in [manifest["iteration"] for manifest in manifests]
    assert all(manifest["validation"] == measured[manifest["iteration"]] for manifest in manifests)


def test_a_signal_is_an_answer_and_too_slow_a_run_ends_all_the_same(tmp_path: Path) -> None:
    run = prepared(tmp_path, "runtime.preemption_seconds=0.3")
    with Preemption(run) as asked:
        assert asked() is None
        signal.raise_signal(signal.SIGUSR1)
        assert asked() == "SIGUSR1"
    script = (
        "import os, signal, sys, time; from pathlib import Path; from harness.runs.directory import RunDirectory\n"
        "from harness.training.preemption import Preemption\n"
        "with Preemption(RunDirectory(Path(sys.argv[1]))): os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
    )
    assert subprocess.run([sys.executable, "-c", script, run.folder], check=False, timeout=50).returncode == 75
    assert run.status()["state"] == "preempted"
    assert "no time to save" in run.status()["reason"]


def test_a_signal_leaves_a_run_alone_that_has_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, codes = prepared(tmp_path), list[int]()
    monkeypatch.setattr("os._exit", codes.append)
    Preemption(run)._end()
    assert (run.status()["state"], codes) == ("preempted", [75])
    run._write_status({"state": "finished", "iteration": 2, "iterations": 2, "reason": None})
    Preemption(run)._end()
    assert (run.status()["state"], codes) == ("finished", [75])


def test_a_policy_that_diverges_is_a_training_error_at_its_iteration(tmp_path: Path) -> None:
    run = prepared(tmp_path, "optimizer.learning_rate=1e12", "evaluation.interval=2")
    with pytest.raises(TrainingError, match="pictures are not finite at iteration 2: lower the learning rate"):
        execute(run)
