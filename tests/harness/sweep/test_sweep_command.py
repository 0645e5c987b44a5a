"""``adagrpo sweep``: begun, interrupted, continued, shown, handed over, confirmed."""

import json
import os
import shlex
import shutil
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
import pandas as pd
import pytest
from landscape import height, make_sweep, study_of, write_sweep
from optuna.trial import TrialState

from harness.cli import main
from harness.experiments import runs as experiment_runs
from harness.experiments.jobs.runner import Outcome
from harness.experiments.sweep import STORAGE_VARIABLE
from harness.experiments.sweep import study as study_module
from harness.experiments.sweep.definition import load_sweep
from harness.experiments.sweep.study import open_storage
from harness.runs import directory as runs
from harness.runs.directory import RunDirectory

SECRET = "postgresql://me:secret@host/study"


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["sweep", *arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """File and storage of a sweep whose study has its two trials, too few for figures."""
    sweep = make_sweep(tmp_path_factory.mktemp("complete"), trials=2, seeds=[1000])
    url = f"sqlite:///{sweep.path.with_name('study.db')}"
    study_of(sweep, url)
    return str(sweep.path), url


@pytest.fixture
def complete(study: tuple[str, str], tmp_path: Path) -> list[str]:
    """Arguments of the command for that study."""
    return [study[0], "--storage", study[1], "--output", str(tmp_path / "out")]


@pytest.fixture
def own_name() -> Iterator[str]:
    """Name of a study whose runs are removed after the test."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    yield name
    shutil.rmtree(runs.RUNS / f"sweep-{name}", ignore_errors=True)


def test_a_complete_sweep_is_only_reported(
    complete: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*complete) == 0  # nothing is left to execute
    said = capsys.readouterr().out
    assert "2 of 2 trials are finished: 2 complete" in said
    assert f"optuna-dashboard '{complete[2]}'" in said
    first = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert tmp_path / "out" / "report.html" in first
    assert exit_code("show", *complete) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == first


def test_trials_of_other_code_or_several_processors_are_said_to_be(
    complete: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    config = (
        "{experiment: a, seed: 1, iterations: 1, selection: a, fusion: {enabled: 1}, method: {kernel: a}, reward: {}}"
    )
    for name in ("Xeon", "EPYC"):
        folder = tmp_path / "sweep-landscape" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(config)
        (folder / "environment.json").write_text(json.dumps({"code_sha256": "0", "packages": {}, "processor": name}))
    assert exit_code("show", *complete) == 0
    said = capsys.readouterr().out
    assert "other code (2)" in said
    assert "EPYC; Xeon" in said


def test_a_password_is_not_printed(
    complete: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, _, url, *output = complete
    monkeypatch.setenv(STORAGE_VARIABLE, SECRET)
    monkeypatch.setattr(study_module, "open_storage", lambda given: open_storage(url))
    assert exit_code("show", file, *output) == 0
    said = capsys.readouterr()
    assert "optuna-dashboard 'postgresql://me:***@host/study'" in said.out
    assert "secret" not in said.out + said.err


def test_workers_are_handed_over_and_a_password_goes_with_the_environment_alone(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_name: str
) -> None:
    """Each printed command is a worker; without the variable it says so, and makes no database."""
    file = str(write_sweep(tmp_path, trials=2, seeds=[1000]))
    monkeypatch.setattr(study_module, "open_storage", lambda url: open_storage(sqlite_url) if url == SECRET else None)
    with monkeypatch.context() as patch:
        patch.setenv(STORAGE_VARIABLE, SECRET)
        assert exit_code(file, "--name", own_name, "--on", "print", "--slots", "2", "fusion.enabled=true") == 0
    said = capsys.readouterr().out
    assert "secret" not in said
    assert "2 of 2 workers handed over (print), 2 jobs" in said
    notes = {path.parent.name for path in (runs.RUNS / f"sweep-{own_name}").glob("*/job.json")}
    assert notes == {"worker-0", "worker-1"}
    command, _ = (shlex.split(line) for line in said.splitlines() if "harness.cli" in line)
    words = command[command.index("sweep") + 1 :]
    assert words[words.index("--slots") + 1] == "1"
    monkeypatch.delenv(STORAGE_VARIABLE, raising=False)
    assert exit_code(*words) == 2
    assert f"its password is to come in {STORAGE_VARIABLE}" in capsys.readouterr().err
    # With it the command is a worker of the same study, which has its trials already.
    monkeypatch.setenv(STORAGE_VARIABLE, SECRET)
    study_of(load_sweep(file, own_name, ["fusion.enabled=true"]), sqlite_url)
    assert exit_code(*words) == 0
    assert "2 of 2 trials are finished" in capsys.readouterr().out


def test_a_sweep_that_is_interrupted_in_the_middle_is_continued_by_the_same_command(
    tmp_path: Path, own_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything is real: a worker's process, which takes its time to import torch, training, the storage."""
    settings = {
        "selection": "curriculum",
        "fusion.enabled": True,
        "iterations": 4,
        "model.execution.compile": "never",
        "reward": {"colour": 1},
        "evaluation": {"interval": 2, "validation_prompts": 2, "gallery": 0, "judges": ["colour"]},
        "rollout": {"candidates": 3, "group_size": 2, "branch_indices": [1]},
    }
    file = write_sweep(tmp_path, settings=settings, trials=1, seeds=[1000])
    words = [str(file), "--name", own_name, "--output", str(tmp_path / "out"), "--trials"]
    more_than_can_end = "500"
    folder, ended = runs.RUNS / f"sweep-{own_name}", threading.Event()

    def interrupt_in_the_middle() -> None:
        states: Counter[str] = Counter()
        while not (states["finished"] and states["running"]) and not ended.wait(0.05):
            states = Counter(RunDirectory(path.parent).status()["state"] for path in folder.glob("*/status.json"))
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    def finished() -> dict[int, float | None]:
        study = optuna.load_study(study_name=own_name, storage=f"sqlite:///{folder / 'study.db'}")
        return {trial.number: trial.value for trial in study.get_trials(states=(TrialState.COMPLETE,))}

    watcher = threading.Thread(target=interrupt_in_the_middle)
    watcher.start()
    try:
        assert exit_code(*words, more_than_can_end) == 130
    finally:
        ended.set()
        watcher.join()
    assert "the same command continues" in capsys.readouterr().out
    before = finished()
    assert before
    total = len(before) + 2  # one was at work and is continued, the other is new
    assert exit_code(*words, str(total)) == 0
    assert f"{total} of {total} trials are finished: {total} complete" in capsys.readouterr().out
    assert before.items() <= finished().items()
    # One run per trial: what was interrupted has been continued.
    assert len(list(folder.glob("*/config.yaml"))) == len(finished()) == total


def test_the_best_and_the_reference_are_run_on_fresh_seeds_in_all_slots_there_are(
    complete: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[RunDirectory] = []

    def run_all(given: Sequence[RunDirectory], slots: int | None, say: object) -> Outcome:
        assert slots is None  # as many as cores or GPUs suffice for
        begun.extend(given)
        for run in given:
            test = {"ocr": height(run.config), "colour": 0.9}
            lines = [
                {"iteration": 0, "split": "validation", "metrics": {"ocr": 0.0}},
                {"iteration": 8, "split": "validation", "metrics": {"ocr": test["ocr"] + 0.1}},
                {"iteration": 8, "split": "test", "metrics": test},
            ]
            (run.folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            run.set_status("failed" if run == given[-1] else "finished", 8, 8)
        return Outcome([])

    prepare = runs.prepare_run
    monkeypatch.setattr(runs, "prepare_run", lambda config: prepare(config, tmp_path / "runs"))
    monkeypatch.setattr(experiment_runs, "run_all", run_all)
    assert exit_code("confirm", *complete, "--top", "1", "--seeds", "0-2") == 0
    assert [run.config.seed for run in begun] == [0, 0, 1, 1, 2, 2]
    assert {run.config.fusion.weight for run in begun[::2]} == {1}  # the reference's
    said = capsys.readouterr().out
    assert "The reference is decay 0.8, weight 1" in said
    assert "too good by" in said
    table = pd.read_csv(tmp_path / "out" / "confirmation.csv")
    assert set(table["metric"]) == {"training_reward", "ocr", "colour"}
    rewards = table[table["metric"] == "training_reward"]
    expected = [
        (own == 0, run.config.capability.decay, run.config.seed, split, height(run.config) + shift)
        for own in (0, 1)
        for run in begun[own:5:2]  # the last one has not finished
        for split, shift in (("validation", 0.1), ("test", 0.0))
    ]
    columns = ["is_reference", "decay", "seed", "split", "value"]
    assert [tuple(row) for row in rewards[columns].values] == [(*row[:4], pytest.approx(row[4])) for row in expected]
