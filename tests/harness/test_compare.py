"""``adagrpo compare``: which runs its cells are."""

from functools import partial
from pathlib import Path

import pytest

from harness import cli
from harness.config import ConfigError, RunConfig, compose, dump
from harness.experiments import compare
from harness.experiments.compare import configs_of, execute, is_kept
from harness.experiments.jobs.runner import Outcome
from harness.experiments.plan import plan
from harness.runs.directory import RunDirectory


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
    [_, cps] = compared("base", "method=flow_cps,method.eta=0.5")
    assert (cps[0].method.kernel, cps[0].method.eta) == ("flow_cps", 0.5)
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
        (["base", "seed=5"], "both set seed"),
        (["base", "experiment=own"], "cells are of different experiments, own and smoke"),
        (["selection=random,selection=medium", "base"], "both set selection"),
        (["method=flow_cps,method=dance_grpo", "base"], "both set use_method"),
        (["selection=medium", "method.eta=0.4"], "both set method.eta"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(cells: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compared(*cells, common=("method.eta=0.5",))


def test_a_plan_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "base", "selection=medium", "--profile", "smoke", "--seeds", "71-72", "--plan"]
    with pytest.raises(SystemExit, match="0"):
        cli.main(words)
    assert "4 runs in 2 cells" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compare", "base", "--plan"])


def test_a_run_that_is_kept_beside_the_page_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executed: list[RunDirectory] = []

    def run_all(runs: list[RunDirectory], *rest: object, on_finished: object = None) -> Outcome:
        executed.extend(runs)
        return Outcome()

    monkeypatch.setattr(compare, "run_all", run_all)
    monkeypatch.setattr(compare, "RUNS", tmp_path / "runs")
    cells = compared("base", "selection=medium")
    [[first, _], _], _ = execute(cells, None, None, print, rerun_changed=False)
    assert len(executed) == 4
    shard = tmp_path / "out" / "runs" / "smoke" / f"{first.run_id}.parquet"
    shard.parent.mkdir(parents=True)
    shard.touch()
    executed.clear()
    monkeypatch.setattr("harness.experiments.plan._state", lambda run: "new")
    planned = plan([run for cell in cells for run in cell], 1, partial(is_kept, output=tmp_path / "out"))
    assert any(line.startswith("4 runs in 2 cells; 3 runs and") for line in planned)
    execute(cells, tmp_path / "out", None, print, rerun_changed=False)
    assert len(executed) == 3
    assert first not in executed
    executed.clear()
    monkeypatch.setattr(compare.PlannedRun, "changes", [])
    execute(cells, tmp_path / "out", None, print, rerun_changed=True)
    assert first not in executed
    monkeypatch.setattr(compare.PlannedRun, "changes", ["other code"])
    execute(cells, tmp_path / "out", None, print, rerun_changed=True)
    assert first in executed
