"""The best of a study measured again, on seeds and prompts of its own."""

from pathlib import Path

import pytest
from landscape import BASE, PEAK_DECAY, PEAK_WEIGHT, execute, make_sweep

from analysis.sweep.tables import SweepStudy
from harness.config import ConfigError, RunConfig
from harness.experiments.sweep.confirm import candidates, confirmation_configs
from harness.experiments.sweep.study import open_storage, open_study
from harness.experiments.sweep.trial import Objective, OnValidation, RunResult

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


def test_the_reference_and_the_best_other_points_that_did_not_collapse_are_measured_again(
    tmp_path: Path, sqlite_url: str
) -> None:
    sweep = make_sweep(tmp_path, seeds=[1000])
    opened = open_study(sweep, open_storage(sqlite_url))
    for point in (PEAK, BROKEN, PEAK, HILL):
        opened.enqueue_trial(point)
    opened.optimize(Objective(sweep, breaking), n_trials=5)
    study = SweepStudy(opened)
    assert candidates(sweep, study, top=2) == [(0, REFERENCE), (1, PEAK), (4, HILL)]  # trial 3 is trial 1's point
    assert len(candidates(sweep, study, top=1)) == 2
    configs = confirmation_configs(sweep, PEAK, [0, 1])
    assert [config.seed for config in configs] == [0, 1]
    assert all(config.evaluation.test and config.capability.decay == PEAK_DECAY for config in configs)
    for seeds, expected in (([1, 1000], "1000 chose the best trials already"), ([1], "at least 2")):
        with pytest.raises(ConfigError, match=expected):
            confirmation_configs(sweep, REFERENCE, seeds)
