"""``adagrpo compare``: which runs its cells are."""

from pathlib import Path

import pytest

from harness import cli
from harness.config import ConfigError, RunConfig, compose, dump
from harness.experiments.compare import configs_of


def compared(*cells: str, common: tuple[str, ...] = ()) -> list[list[RunConfig]]:
    return configs_of(cells, [0, 3], "smoke", common)


def test_cells_are_settings_rules_and_run_folders(tmp_path: Path) -> None:
    file = tmp_path / "my.py"
    file.write_text("def Mine(candidates):\n    return 0\n")
    base, fused, mine = compared(
        "base", "selection=curriculum,fusion.enabled=true,rollout.branch_indices=[0, 1]", f"{file}:Mine"
    )
    assert base == [compose("smoke", overrides=[f"seed={seed}"]) for seed in (0, 3)]
    assert (fused[1].seed, fused[1].fusion.enabled, fused[1].rollout.branch_indices) == (3, True, (0, 1))
    assert mine[0].selection == "Mine"
    (tmp_path / "run").mkdir()
    kept = compose("smoke", overrides=["seed=9", "experiment=other", "iterations=7"])
    (tmp_path / "run" / "config.yaml").write_text(dump(kept))
    [[named], _] = configs_of([f"selection={file}:Mine", "base"], [0], "smoke")
    assert named == mine[0]
    run, changed = compared(str(tmp_path / "run"), "selection=medium", common=("method.eta=0.5",))
    assert run[0] == compose("smoke", overrides=["seed=0", "experiment=other", "iterations=7", "method.eta=0.5"])
    assert (changed[0].experiment, changed[0].iterations, changed[0].selection) == ("other", 7, "medium")


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["base", "nowhere"], "cell 'nowhere': is no run's folder; write settings"),
        (["base", "reward={colour: 1}"], "cells train on different rewards, colour and ocr"),
        (["base", "selection=curriculm"], "the nearest is 'curriculum'"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(cells: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compared(*cells)


def test_a_plan_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "base", "selection=medium", "--profile", "smoke", "--seeds", "71-72", "--plan"]
    with pytest.raises(SystemExit, match="0"):
        cli.main(words)
    assert "4 runs in 2 cells" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compare", "base", "--plan"])
