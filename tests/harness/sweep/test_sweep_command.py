"""``adagrpo sweep``: bad input is one line and exit code 2, before anything heavy is loaded."""

import contextlib
import json
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from landscape import execute, height, write_sweep

from harness.cli import main
from harness.commands import sweep as command
from harness.config import ROOT
from harness.experiments import runs as experiment_runs
from harness.experiments.jobs.runner import Outcome
from harness.experiments.sweep import STORAGE_VARIABLE
from harness.experiments.sweep import study as study_module
from harness.experiments.sweep.definition import load_sweep
from harness.experiments.sweep.study import open_storage, open_study
from harness.experiments.sweep.worker import work
from harness.runs import directory as runs
from harness.runs.directory import RunDirectory


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture
def complete(tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a sweep whose study has its three trials, too few for figures."""
    file = write_sweep(tmp_path, trials=3, seeds=[1000])
    sweep = load_sweep(str(file))
    storage = open_storage(sqlite_url)
    monkeypatch.setattr(command, "_identity", lambda sweep: "identity")
    open_study(sweep, storage, "identity")
    work(sweep, storage, execute, poll_seconds=0.1)
    return [str(file), "--storage", sqlite_url, "--output", str(tmp_path / "out")]


def test_a_complete_sweep_is_only_reported(
    complete: list[str], tmp_path: Path, sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("sweep", *complete) == 0  # nothing is left to execute
    said = capsys.readouterr().out
    assert "3 of 3 trials are finished: 3 complete" in said
    assert f"optuna-dashboard '{sqlite_url}'" in said
    first = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert tmp_path / "out" / "report.html" in first
    assert exit_code("sweep", "show", *complete) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == first


def test_a_password_is_not_printed(
    complete: list[str], sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, _, _, *output = complete
    monkeypatch.setenv(STORAGE_VARIABLE, "postgresql://me:secret@host/study")
    monkeypatch.setattr(study_module, "open_storage", lambda url: open_storage(sqlite_url))
    assert exit_code("sweep", "show", file, *output) == 0
    said = capsys.readouterr()
    assert "optuna-dashboard 'postgresql://me:***@host/study'" in said.out
    assert "secret" not in said.out + said.err


def test_workers_are_handed_over_and_a_password_goes_with_the_environment_alone(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_name: str
) -> None:
    """Each printed command is a worker; without the variable it says so, and makes no database."""
    file = str(write_sweep(tmp_path, trials=3, seeds=[1000]))
    monkeypatch.setattr(command, "_identity", lambda sweep: "identity")
    url = "postgresql://me:secret@host/study"
    with monkeypatch.context() as patch:
        patch.setenv(STORAGE_VARIABLE, url)
        patch.setattr(study_module, "open_storage", lambda url: open_storage(sqlite_url))
        assert exit_code("sweep", file, "--name", own_name, "--on", "print", "--slots", "2", "fusion.enabled=true") == 0
    said = capsys.readouterr().out
    assert "secret" not in said
    lines = [shlex.split(line) for line in said.splitlines() if "harness.cli" in line]
    assert len(lines) == 2
    assert "2 of 2 workers handed over (print), 2 jobs" in said
    notes = {path.parent.name for path in (runs.RUNS / f"sweep-{own_name}").glob("*/job.json")}
    assert notes == {"worker-0", "worker-1"}
    words = lines[0][lines[0].index("sweep") :]
    assert words[words.index("--slots") + 1] == "1"
    monkeypatch.delenv(STORAGE_VARIABLE, raising=False)
    assert exit_code(*words) == 2
    assert f"its password is to come in {STORAGE_VARIABLE}" in capsys.readouterr().err
    # With it the command is a worker of the same study, which has its trials already.
    monkeypatch.setenv(STORAGE_VARIABLE, url)
    monkeypatch.setattr(study_module, "open_storage", lambda given: open_storage(sqlite_url) if given == url else None)
    sweep = load_sweep(file, own_name, ["fusion.enabled=true"])
    work(sweep, open_storage(sqlite_url), execute, poll_seconds=0.1)
    assert exit_code(*words) == 0
    assert "3 of 3 trials are finished" in capsys.readouterr().out


@pytest.fixture
def own_name() -> Iterator[str]:
    """Name of a study whose runs are removed after the test."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    yield name
    shutil.rmtree(runs.RUNS / f"sweep-{name}", ignore_errors=True)


def test_a_sweep_that_is_interrupted_in_the_middle_is_continued_by_the_same_command(
    tmp_path: Path, own_name: str
) -> None:
    """Everything is real: two workers, training, the storage."""
    settings = {"selection": "curriculum", "fusion.enabled": True, "iterations": 4, "model.execution.compile": "never"}
    evaluation = {"interval": 2, "validation_prompts": 2, "gallery": 0, "judges": ["ocr"]}
    rollout = {"candidates": 3, "group_size": 2, "branch_indices": [1]}
    settings |= {"evaluation": evaluation, "rollout": rollout}
    file = write_sweep(tmp_path, settings=settings, trials=1, seeds=[1000])
    words = [sys.executable, "-m", "harness.cli", "sweep", str(file), "--name", own_name, "--slots", "2"]
    words += ["--output", str(tmp_path / "out")]
    more_than_can_end = "500"
    folder = runs.RUNS / f"sweep-{own_name}"

    def found(query: str) -> list[tuple[int, float]]:
        if not (folder / "study.db").exists():
            return []
        with contextlib.closing(sqlite3.connect(folder / "study.db")) as connection:
            with contextlib.suppress(sqlite3.OperationalError):  # its tables are not made yet
                return connection.execute(query).fetchall()
            return []

    def finished() -> dict[int, float]:
        query = "SELECT number, value FROM trials JOIN trial_values USING (trial_id) WHERE state = 'COMPLETE'"
        return dict(found(query))

    def are_all_at_work() -> bool:
        query = "SELECT number, 0 FROM trials JOIN trial_user_attributes USING (trial_id) WHERE state = 'RUNNING'"
        return len(found(query + " AND key = 'begun'")) == 2

    with subprocess.Popen(
        [*words, "--trials", more_than_can_end], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as begun:
        while begun.poll() is None and not (finished() and are_all_at_work()):
            time.sleep(0.05)
        begun.send_signal(signal.SIGTERM)
        said, _ = begun.communicate()
    assert begun.returncode == 130
    assert "the same command continues" in said
    before = finished()
    # Two were at work and are continued, the third is new.
    total = len(before) + 3
    assert len(list(folder.glob("*/config.yaml"))) in range(len(before), total)
    done = subprocess.run([*words, "--trials", str(total)], stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    assert f"{total} of {total} trials are finished: {total} complete" in done.stdout
    after = finished()
    assert before
    assert before.items() <= after.items()
    # One run per trial: what was interrupted has been continued.
    assert len(list(folder.glob("*/config.yaml"))) == len(after) == total


def test_the_best_and_the_reference_are_run_on_fresh_seeds_in_all_slots_there_are(
    complete: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[tuple[float, int]] = []

    def run_all(given: Sequence[RunDirectory], slots: int | None, say: object) -> Outcome:
        assert slots is None  # as many as cores or GPUs suffice for
        for run in given:
            begun.append((run.config.fusion.weight, run.config.seed))
            lines = [
                {"iteration": 8, "split": split, "metrics": {"ocr": height(run.config)}}
                for split in ("validation", "test")
            ]
            (run.folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            run.set_status("finished", 8, 8)
        return Outcome([])

    prepare = runs.prepare_run
    monkeypatch.setattr(runs, "prepare_run", lambda config: prepare(config, tmp_path / "runs"))
    monkeypatch.setattr(experiment_runs, "run_all", run_all)
    assert exit_code("sweep", "confirm", *complete, "--top", "1", "--seeds", "0-1") == 0
    assert [seed for _, seed in begun] == [0, 0, 1, 1]
    assert begun[0][0] == begun[2][0] == 1  # the reference's weight
    said = capsys.readouterr().out
    assert "The reference is decay 0.8, weight 1" in said
    assert "too good by" in said
