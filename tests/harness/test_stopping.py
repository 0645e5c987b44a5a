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

FAST = [
    "rollout.candidates=3",
    "rollout.group_size=2",
    "rollout.branch_indices=[1]",
    "evaluation.validation_prompts=2",
    "evaluation.gallery=0",
    "evaluation.judges=[ocr]",
    "evaluation.test=false",
    "evaluation.base_test=false",
]


def prepared(folder: Path, *overrides: str) -> RunDirectory:
    return prepare_run(compose("miniature-luck", overrides=[*FAST, *overrides]), folder)


def evaluations(run: RunDirectory) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run.folder / "eval.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def test_a_stopped_run_loses_nothing_and_continues_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    settings = ["iterations=3", "evaluation.interval=1", "prompts.test=there/is/none.txt"]
    seen: list[tuple[int, float]] = []

    def watch(iteration: int, metrics: Mapping[str, float]) -> None:
        seen.append((iteration, metrics["ocr"]))
        if iteration == 1:
            raise StopRun("seen enough")

    whole, stopped = prepared(tmp_path / "whole", *settings), prepared(tmp_path / "stopped", *settings)
    Session(whole, say=lambda line: None).execute()
    with pytest.raises(StopRun):
        Session(stopped, say=lambda line: None, on_validation=watch).execute()
    status, checkpoint = stopped.status(), stopped.load_checkpoint()
    assert (status["state"], status["iteration"], status["reason"]) == ("waiting", 1, "seen enough")
    assert checkpoint is not None
    assert checkpoint["iteration"] == 1
    assert seen == [(record["iteration"], record["metrics"]["ocr"]) for record in evaluations(stopped)]
    Session(stopped, say=lambda line: None).execute()
    assert evaluations(stopped) == evaluations(whole)
    assert [(record["split"], record["iteration"]) for record in evaluations(whole)] == [
        ("validation", iteration) for iteration in range(4)
    ]


@pytest.mark.parametrize("asked_at", [0, 1, 3])
def test_a_preempted_run_saves_and_continues_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_at: int
) -> None:
    """Asked during the first evaluation, after an iteration, and during the last evaluation."""
    left: list[str] = []
    monkeypatch.setattr(Mirror, "__exit__", lambda mirror, *_: left.append(mirror._directory.status()["state"]))
    settings = ["iterations=2", "evaluation.interval=1"]
    whole, run = prepared(tmp_path / "whole", *settings), prepared(tmp_path / "run", *settings)
    Session(whole, say=lambda line: None).execute()
    answers = iter([*[None] * asked_at, "SIGUSR1"])
    with pytest.raises(Preempted, match="SIGUSR1 received, saved at iteration") as error, run.failure_noted():
        Session(run, say=lambda line: None, asked_to_end=lambda: next(answers)).execute()
    status = run.status()
    assert error.value.exit_code == 75
    assert (status["state"], status["iteration"]) == ("preempted", (asked_at + 1) // 2)
    assert left == ["running", "preempted"]  # saved before wandb is waited for
    Session(run, say=lambda line: None).execute()
    assert evaluations(run) == evaluations(whole)
    measured = {record["iteration"]: record["metrics"]["ocr"] for record in evaluations(run)}
    manifests = [json.loads(path.read_text()) for path in run.checkpoints.glob("iteration-*/manifest.json")]
    assert 2 in [manifest["iteration"] for manifest in manifests]
    assert all(manifest["validation"] == measured[manifest["iteration"]] for manifest in manifests)
    assert (run.folder / "checkpoints/final/pytorch_lora_weights.safetensors").read_bytes() == (
        whole.folder / "checkpoints/final/pytorch_lora_weights.safetensors"
    ).read_bytes()


def test_a_signal_is_an_answer_and_too_slow_a_run_ends_all_the_same(tmp_path: Path) -> None:
    run = prepared(tmp_path, "iterations=2", "runtime.preemption_seconds=0.3")
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
    run, codes = prepared(tmp_path, "iterations=2"), list[int]()
    monkeypatch.setattr("os._exit", codes.append)
    Preemption(run)._end()
    assert (run.status()["state"], codes) == ("preempted", [75])
    run._write_status({"state": "finished", "iteration": 2, "iterations": 2, "reason": None})
    Preemption(run)._end()
    assert (run.status()["state"], codes) == ("finished", [75])


def test_a_run_stopped_before_its_first_iteration_measures_the_untrained_model_once(tmp_path: Path) -> None:
    run = prepared(tmp_path, "iterations=1")

    def stop(iteration: int, metrics: Mapping[str, float]) -> None:
        raise StopRun("at once")

    with pytest.raises(StopRun):
        Session(run, say=lambda line: None, on_validation=stop).execute()
    Session(run, say=lambda line: None).execute()
    assert [record["iteration"] for record in evaluations(run)] == [0, 1]


def test_a_policy_that_diverges_is_a_training_error_at_its_iteration(tmp_path: Path) -> None:
    run = prepared(tmp_path, "iterations=3", "optimizer.learning_rate=1e12")
    with pytest.raises(TrainingError, match="pictures are not finite at iteration 2: lower the learning rate"):
        Session(run, say=lambda line: None).execute()
