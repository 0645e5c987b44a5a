"""The command: bad input is one clear line and exit code 2, and makes nothing."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from harness import cli
from harness.config import ROOT
from harness.experiments import runs as jobs
from harness.experiments.jobs.runner import Outcome
from harness.runs import directory as runs

BAD_INPUT = [
    ("train selection=curiculum", "the nearest is 'curriculum'"),
    ("train prompts.train=missing.txt", "no such file"),
    ("train --resume no/such/run", "no run directory"),
    ("train --resume {} seed=1", "belong to a new run"),
    ("launch --resume {} --profile paper", "belong to a new run"),
    ("train prompts.test={}/cat.txt", "has no word to read"),
    ("grid smoke --seeds 0 fusion.wieght=2 --plan iterations=3", "the nearest is 'fusion.weight'"),
    ("grid smoke --plan --sed 3", "unrecognized arguments: --sed 3"),
    ("grid smoke --plan seed=3", "the grid's seeds (--seeds) and 'seed=3': both set seed"),
    ("grid smoke --plan --seeds=", "write numbers and ranges"),
    ("grid smoke --plan fusion.weight=nan", "error: override fusion.weight=nan: fusion.weight"),
    ("grid smoke --list --plan", "--list lists all grids"),
    ("compare base selection=random --profile smoke --plan", "2 cells have this run"),
    ("compare base selection=medium --profile smoke --plan --json", "--plan makes none"),
    ("compare base selection=medium --profile smoke --plan --set seed=5", "both set seed"),
    ("serve-reward ocr batch_size=4 batch_size=8", "both set batch_size"),
    ("watch {} --every nan", "--every: nan must be a number below"),
    ("watch {} --every inf", "--every: inf must be a number below"),
    ("sample base --prompt a --output {}/out --seed 99999999999999999999", "must be a number below"),
    ("prompts import {}/cat.txt --output {}/out --shares 90,nan,10", "must add up to 100"),
    ("prompts import {}/cat.txt --output {}/cat.txt --shares 100,0,0", "cannot be written: "),
    ("status --runs {} seed=3", "unrecognized arguments: seed=3"),
    ("probe --noises 1", "--noises: 1 must be at least 2"),
    ("probe --prompts 100000 --output {}/out", "100000"),
    ("probe --models letrs", "letters"),
    ("shards {}/nowhere --output {}/out", "nowhere: no such folder of runs"),
    ("shards {}/broken --output {}/out", "broken/run/config.yaml: cannot be read"),
    ("shards . --output {}/out --pictures -1", "--pictures: -1 must be at least 0"),
    ("report --runs {}/nowhere --output {}/out", "nowhere: no such folder"),
    ("report --runs {}/empty --output {}/out", "empty: holds no run"),
    ("report --runs {} --output {}/out --readme {}/cat.txt", "needs the line '<!-- claims: written by adagrpo report"),
    ("report --runs {} --output {}/out --readme {}/missing.md", "missing.md: cannot be read"),
    ("study selektion", "unknown experiment 'selektion'; the nearest is 'selection'"),
    ("study --only selection=random", "--only and --seeds choose among the runs of one experiment"),
    ("study selection --seeds x", "--seeds x: write numbers"),
    ("study --study nowhere.yaml", "nowhere.yaml: cannot be read"),
    ("oracle --checkpoint no/such/run", "is neither 'base' nor a run directory"),
    ("oracle selection=curriculum", "selection=curriculum: only random can be measured"),
    ("oracle --prompts 8", "must be above rollout.candidates=8"),
    ("oracle rollout.kind=full_sde", "only anchor_branch can be measured"),
    ("sweep no-such-sweep", "files there: cost, ema_fusion, "),
    ("sweep smoke --slots 1 fusion.weight=2", "the sweep itself sets fusion.weight"),
    ("sweep show", "name a sweep"),
    ("sweep show smoke --slots 2", "--slots: not an option of adagrpo sweep show"),
    ("sweep smoke --slots 0", "--slots: 0 must be at least 1"),
    ("sweep smoke --storage sqlite:////no/such/folder/x.db", "unable to open database file"),
    ("sweep show smoke --name not-begun", "not begun"),
    ("sweep show smoke --storage sqlite:///{}/out", "not begun"),
    ("sweep confirm smoke --seeds 4-2", "the range 4-2 is empty"),
]


def run(*words: str) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a broken run, and a list of prompts that the miniature's reward cannot read."""
    folder = tmp_path_factory.mktemp("bad input")
    (folder / "empty").mkdir()
    (folder / "broken" / "run").mkdir(parents=True)
    (folder / "broken" / "run" / "config.yaml").write_text("seed: [")
    (folder / "config.yaml").write_text("{}")
    (folder / "cat.txt").write_text("a cat\n")
    return folder


@pytest.mark.parametrize(("arguments", "expected"), BAD_INPUT, ids=[arguments for arguments, _ in BAD_INPUT])
def test_bad_input_is_one_line_and_makes_nothing(
    arguments: str, expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*(word.replace("{}", str(folder)) for word in arguments.split())) == 2
    said = capsys.readouterr()
    assert expected in said.err
    assert said.err.startswith("adagrpo: error: ")
    assert (said.err.count("\n"), said.out) == (1, "")
    assert not (folder / "out").exists()


def test_characters_unknown_to_the_model_are_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "prepare_run", partial(runs.prepare_run, root=tmp_path))
    (tmp_path / "prompts.txt").write_text('die "katze" in rot\n')
    assert run("train", f"prompts.test={tmp_path / 'prompts.txt'}", "evaluation.judges=[ocr]") == 2
    assert "has characters or words that" in capsys.readouterr().err


def test_a_rank_that_is_no_number_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "abc")
    assert run("train") == 2
    assert "RANK=abc: is no number" in capsys.readouterr().err


def test_a_grid_with_a_failed_run_names_it_and_has_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "prepare_run", lambda config, rerun_changed: config)
    monkeypatch.setattr(jobs, "run_all", lambda runs, slots, say: Outcome([], {"seed1": "ValueError: broken"}))
    assert run("grid", "smoke", "runtime.device=cpu") == 1
    assert capsys.readouterr().err == "failed: seed1: ValueError: broken\n"


def test_a_folder_without_runs_gives_no_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("shards", str(tmp_path), "--output", str(tmp_path / "out")) == 0
    assert "0 finished runs" in capsys.readouterr().out


LOOKS = """
import sys
from harness.cli import parse
parse(["grid", "smoke"])
print(*sys.modules)
import harness.experiments.runs, harness.experiments.jobs.worker
from harness.experiments.sweep.definition import load_sweep
load_sweep("smoke")
print(*sys.modules)
"""


def test_help_looking_and_launching_are_quick_since_they_import_nothing_heavy() -> None:
    loaded = subprocess.run([sys.executable, "-c", LOOKS], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    for_help, for_launching = (set(line.split()) for line in loaded.splitlines())
    assert not {"torch", "numpy", "pydantic", "yaml", "pandas", "harness.config"} & for_help
    assert "torch" not in for_launching
