"""The best of a study measured again, on seeds and prompts of its own."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from landscape import BASE, PEAK_DECAY, PEAK_WEIGHT, execute, make_sweep

from analysis.sweep.tables import SweepStudy
from harness.config import ConfigError, RunConfig
from harness.experiments.sweep.confirm import candidates, confirmation_configs, write_confirmation
from harness.experiments.sweep.definition import Sweep
from harness.experiments.sweep.study import open_storage, open_study
from harness.experiments.sweep.trial import Objective, OnValidation, RunResult
from harness.runs.directory import RunDirectory

REFERENCE = {"capability.decay": 0.8, "fusion.weight": 1.0}
PEAK = {"capability.decay": PEAK_DECAY, "fusion.weight": PEAK_WEIGHT}
HILL = {"capability.decay": 0.85, "fusion.weight": 2.0}
BROKEN = {"capability.decay": 0.99, "fusion.weight": 15.0}


def breaking(config: RunConfig, on_validation: OnValidation) -> RunResult:
    if config.capability.decay != BROKEN["capability.decay"]:
        return execute(config, on_validation)
    on_validation(0, {"ocr": BASE})
    on_validation(2, {"ocr": 0.99})
    return RunResult("broken", 0.0, "pictures are not finite at iteration 3")


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return make_sweep(tmp_path)


@pytest.fixture
def study(sweep: Sweep, sqlite_url: str) -> SweepStudy:
    """Reference, peak twice, hill, and one that collapsed from the highest value."""
    study = open_study(sweep, open_storage(sqlite_url), "identity")
    for point in (PEAK, BROKEN, PEAK, HILL):
        study.enqueue_trial(point)
    study.optimize(Objective(sweep, breaking), n_trials=5)
    return SweepStudy(study)


def test_the_reference_and_the_best_other_points_are_measured_again(sweep: Sweep, study: SweepStudy) -> None:
    chosen = candidates(sweep, study, top=2)
    assert chosen == [(0, REFERENCE), (1, PEAK), (4, HILL)]  # trial 3 is the same point as trial 1
    assert len(candidates(sweep, study, top=1)) == 2
    configs = confirmation_configs(sweep, PEAK, [0, 1])
    assert [config.seed for config in configs] == [0, 1]
    assert all(config.evaluation.test and config.capability.decay == PEAK_DECAY for config in configs)


@pytest.mark.parametrize(
    ("seeds", "expected"), [([1, 1001], "1001 chose the best trials already"), ([1], "at least 2")]
)
def test_seeds_that_chose_the_best_cannot_judge_them(sweep: Sweep, seeds: list[int], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        confirmation_configs(sweep, REFERENCE, seeds)


def test_confirmation_holds_every_metric_of_finished_runs(sweep: Sweep, study: SweepStudy, tmp_path: Path) -> None:
    def written(seed: int, test: float, state: str = "finished") -> RunDirectory:
        folder = tmp_path / "runs" / f"run-{seed}-{test}"
        folder.mkdir(parents=True)
        (config,) = sweep.configs(PEAK, [seed], test=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        (folder / "status.json").write_text(json.dumps({"state": state, "iteration": 8, "files": {}}))
        lines: list[dict[str, Any]] = [
            {"iteration": 0, "split": "validation", "metrics": {"ocr": 0.1}},
            {"iteration": 8, "split": "validation", "metrics": {"ocr": test + 0.1}},
            {"iteration": 8, "split": "test", "metrics": {"ocr": test, "colour": 0.9}},
        ]
        (folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return RunDirectory(folder)

    reference, best = candidates(sweep, study, top=1)
    measured = [(reference, [written(0, 0.5), written(1, 0.6)]), (best, [written(0, 0.7), written(1, 0.8, "failed")])]
    write_confirmation(sweep, study, measured, tmp_path)
    table = pd.read_csv(tmp_path / "confirmation.csv")
    key = ["trial", "is_reference", "decay", "seed", "split", "value"]
    assert table.loc[table["metric"] == "training_reward", key].round(6).values.tolist() == [
        [0, True, 0.8, 0, "validation", 0.6],
        [0, True, 0.8, 0, "test", 0.5],
        [0, True, 0.8, 1, "validation", 0.7],
        [0, True, 0.8, 1, "test", 0.6],
        [1, False, 0.9, 0, "validation", 0.8],
        [1, False, 0.9, 0, "test", 0.7],
    ]
    assert set(table["metric"]) == {"training_reward", "ocr", "colour"}
