"""Where files are found: what a user names in the working directory, and what comes with the code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.config import EXPERIMENTS, ROOT, ConfigError, compose, located_overrides, parse_overrides
from harness.experiments.grid import expand_grid
from harness.experiments.study import read_study
from harness.foundation.places import process_environment
from harness.prompts.lists import read_prompts

SHIPPED = "experiments/prompts/letters/train.txt"


def test_own_prompts_and_profiles_are_those_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").write_text("a red fox\n")
    text = (EXPERIMENTS / "profiles" / "smoke.yaml").read_text()
    (tmp_path / "own.yaml").write_text(f"{text}prompts: {{train: mine.txt}}\n")
    monkeypatch.chdir(tmp_path)
    configs = [compose("miniature", overrides=["prompts.train=mine.txt"]), compose("own.yaml")]
    monkeypatch.chdir(ROOT)
    assert [read_prompts(config.prompts.train).prompts for config in configs] == [("a red fox",)] * 2


def test_what_an_own_file_names_is_beside_it_or_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / "beside"
    beside.mkdir()
    for file in (beside / "mine.txt", tmp_path / "mine.txt", tmp_path / "here.txt"):
        file.write_text("a red fox\n")
    (beside / "my.py").write_text("def Mine(candidates):\n    return 0\n")
    (beside / "model.yaml").write_text((EXPERIMENTS / "models" / "miniature.yaml").read_text())
    profile = (EXPERIMENTS / "profiles" / "smoke.yaml").read_text().replace("miniature\n", "model.yaml\n", 1)
    (beside / "own.yaml").write_text(f"{profile}prompts: {{train: mine.txt, validation: here.txt}}\n")
    cell = "{selection: [random, my.py:Mine], prompts.test: mine.txt}"
    (beside / "grid.yaml").write_text(f"profile: own.yaml\nseeds: [0]\ncells: [{cell}]\n")
    monkeypatch.chdir(tmp_path)
    [config] = expand_grid("beside/grid.yaml", only="selection=my.py:Mine")
    assert config.plugins["Mine"].source == f"{beside}/my.py:Mine"
    lists = config.prompts.train, config.prompts.validation, config.prompts.test
    assert lists == (str(beside / "mine.txt"), str(tmp_path / "here.txt"), str(beside / "mine.txt"))
    typed = compose("beside/own.yaml", overrides=["prompts.train=mine.txt"])
    assert typed.prompts.train == str(tmp_path / "mine.txt")


def test_overrides_that_are_handed_over_name_files_wherever_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my rule.py", "mine.txt"):
        (tmp_path / name).touch()
    typed = ["selection=my rule.py:Rule", "prompts.train=mine.txt", "reward={colour: 1}", "fusion.weight=1e-3"]
    rule, prompts, *rest = located_overrides(typed)
    assert parse_overrides([rule, prompts]) == {
        "selection": f"{tmp_path}/my rule.py:Rule",
        "prompts": {"train": f"{tmp_path}/mine.txt"},
    }
    assert rest == typed[2:]


def test_the_study_names_its_own_files_wherever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments" / "study").mkdir(parents=True)
    (tmp_path / "experiments" / "study" / "shuffled.py").write_text("another one")
    [source] = {config.plugins["Shuffled"].source for config in read_study().configs("shuffled")}
    assert source == f"{EXPERIMENTS}/study/shuffled.py:Shuffled"


def test_what_a_shipped_file_names_comes_with_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / SHIPPED).parent.mkdir(parents=True)
    (tmp_path / SHIPPED).write_text("another list\n")
    monkeypatch.chdir(tmp_path)
    assert compose("miniature").prompts.train == SHIPPED
    assert compose("miniature", overrides=[f"prompts.train={SHIPPED}"]).prompts.train == str(tmp_path / SHIPPED)


def test_a_list_that_is_nowhere_is_said_to_be_in_neither_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"prompt list none\.txt: no such file in {tmp_path}, nor in {ROOT}"):
        read_prompts(compose("miniature", overrides=["prompts.train=none.txt"]).prompts.train)


def test_a_folder_of_the_users_called_analysis_is_not_imported_by_workers(tmp_path: Path) -> None:
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "__init__.py").write_text("raise RuntimeError('not ours')")
    command = [sys.executable, "-c", "import analysis"]
    subprocess.run(command, cwd=tmp_path, env=process_environment(), check=True)
    alone = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    assert subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, check=False).returncode != 0
