"""``adagrpo status``: states, failures and standings, from directories alone."""

import re
from pathlib import Path

import pytest

from harness.config import ConfigError, compose
from harness.experiments.status import standings, state_of, status_lines
from harness.runs.directory import RunDirectory, prepare_run


def prepared(folder: Path, *overrides: str) -> RunDirectory:
    return prepare_run(compose("smoke", overrides=list(overrides)), folder)


def validated(run: RunDirectory, iteration: int, ocr: float, **others: float) -> None:
    record = {"iteration": iteration, "split": "validation", "metrics": {"ocr": ocr, **others}}
    run.append("eval.jsonl", record)


def test_a_run_that_says_running_but_that_nobody_holds_is_interrupted(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    assert state_of(run) == "waiting"
    assert not (run.folder / "lock").exists()  # looking claims nothing
    run.set_status("running", 3, 12)
    assert state_of(run) == "interrupted"
    with run.lock():
        assert state_of(run) == "running"
    run.set_status("finished", 12, 12)
    assert state_of(run) == "finished"


def test_standings_are_means_over_seeds_of_the_latest_validation_best_first(tmp_path: Path) -> None:
    runs = [prepared(tmp_path, f"seed={seed}") for seed in (0, 1)]
    better = prepared(tmp_path, "selection=curriculum", "fusion.enabled=true")
    unmeasured = prepared(tmp_path, "selection=medium")
    validated(runs[0], 0, 0.1)
    validated(runs[0], 10, 0.5)
    validated(runs[1], 20, 0.7)
    validated(better, 10, 0.65)
    (better.folder / "eval.jsonl").open("a").write('{"iteration": 20, "spl')
    first, second = standings([*runs, better, unmeasured])
    assert first.split() == ["flow_grpo", "curriculum", "+", "fusion", "1", "0.650", "seeds", "1,", "iteration", "10"]
    assert second.split() == ["flow_grpo", "random", "0.600", "seeds", "2,", "iteration", "10-20"]


def test_standings_never_pool_runs_that_differ_by_more_than_their_seed(tmp_path: Path) -> None:
    runs = [prepared(tmp_path, f"seed={seed}") for seed in (0, 1)]
    runs += [prepared(tmp_path, "rollout.group_size=15"), prepared(tmp_path, "reward={ocr-v4: 1.0}")]
    runs += [prepared(tmp_path, "model.path=harness/models/miniature/weak")]
    for run, value in zip(runs, (0.5, 0.7, 0.8, 0.1, 0.2), strict=True):
        validated(run, 10, value, **{"ocr-v4": 0.9})
    lines = [re.sub(r" +", " ", line) for line in standings(runs)]
    assert [re.search(r"0\.\d+  ?seeds \d", line)[0] for line in lines] == [
        "0.800 seeds 1",
        "0.600 seeds 2",
        "0.200 seeds 1",
        "0.900 seeds 1",
    ]
    assert lines[1].startswith("flow_grpo random 0.600")  # what most have is not named
    assert "G 15" in lines[0]
    assert "model weak" in lines[2]
    assert "random, ocr-v4" in lines[3]


def test_standings_never_pool_runs_of_two_lists(tmp_path: Path) -> None:
    lists = [tmp_path / "a.txt", tmp_path / "b.txt"]
    runs = []
    for words, path in zip((["harbor", "dog"], ["zebra", "dog"]), lists, strict=True):
        path.write_text("".join(f'the word "{word}" in red on yellow\n' for word in words), encoding="utf-8")
        runs.append(prepared(tmp_path, f"prompts.test={path}"))
    for run, value in zip(runs, (0.2, 0.8), strict=True):
        # As of runs made before identities were kept, too.
        (run.folder / "identity.json").unlink(missing_ok=True)
        validated(run, 1, value)
    lines = standings(runs)
    assert len(lines) == 2
    assert all(run.run_id.rpartition("-")[2] in "".join(lines) for run in runs)


def test_status_names_failures_with_their_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no runs there"):
        status_lines(tmp_path)
    prepared(tmp_path).set_status("failed", 4, 12, "the reward broke")
    prepared(tmp_path, "seed=1").set_status("finished", 12, 12)
    lines = status_lines(tmp_path)
    assert lines[0] == "smoke: 2 runs, 1 failed, 1 finished"
    assert "4/12 saved" in lines[1]
    assert lines[1].endswith("the reward broke")
