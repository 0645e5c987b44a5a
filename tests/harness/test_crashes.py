"""Crashes of the machine: what the disk has of a run is enough to go on."""

import os
import shutil
from pathlib import Path

import pytest

from harness.config import ConfigError, dump
from harness.foundation import files
from harness.runs import checkpoints
from harness.runs.directory import RunDirectory, prepare_run
from tests.harness.test_damage import FINAL, LOGS, contents, lines_of, resume


def test_after_a_crash_that_lost_a_line_of_the_log_the_checkpoint_before_it_is_taken(
    lora_run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = lora_run.config.model_copy(update={"iterations": 3})
    config = config.model_copy(update={"runtime": config.runtime.model_copy(update={"checkpoint_interval": 1})})
    run = prepare_run(config, tmp_path)
    resume(run)
    whole, path = {name: lines_of(run, name) for name in LOGS}, run.folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    run.set_status("running", 3, 3)
    path.write_text("".join(lines[:2]), encoding="utf-8")
    resume(run)
    assert "iteration-0000003: metrics.jsonl ends at iteration 2; the one before is taken" in capsys.readouterr().err
    assert {name: lines_of(run, name) for name in LOGS} == whole
    # Nothing goes on without the lines before any checkpoint, or with a hole.
    for name, left in (("metrics.jsonl ends", []), ("metrics.jsonl: iteration 2", [lines[0], lines[2]])):
        path.write_text("".join(left), encoding="utf-8")
        before = contents(run)
        with pytest.raises(ConfigError, match=name):
            resume(run)
        assert contents(run) == before


def test_logs_are_on_the_disk_before_a_checkpoint_and_everything_before_checkpoints_go(
    lora_run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, synced = RunDirectory(Path(shutil.copytree(lora_run.folder, tmp_path / "run"))), list[int]()
    monkeypatch.setattr(files.os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    node = lambda name: (run.folder / name).stat().st_ino  # noqa: E731
    run.save_checkpoint({"iteration": 1})
    assert max(map(synced.index, map(node, LOGS))) < synced.index(node("checkpoints"))
    synced.clear()
    config = run.config
    runtime = config.runtime.model_copy(update={"checkpoints_of_finished": "remove"})
    files.write_atomically(run.folder / "config.yaml", dump(config.model_copy(update={"runtime": runtime})))
    forget = checkpoints.forget_after
    monkeypatch.setattr(checkpoints, "forget_after", lambda *of: (synced.append(0), forget(*of)))
    run.remove_unneeded()
    assert not checkpoints.saved(run.checkpoints)
    assert {node(name) for name in (*LOGS, FINAL, "status.json", "checkpoints", "")} <= set(synced[: synced.index(0)])
