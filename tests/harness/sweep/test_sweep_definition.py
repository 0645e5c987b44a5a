"""Sweep files: composed into paired runs, and refused in one line where they cannot be executed."""

from pathlib import Path
from typing import Any

import pytest
from landscape import FILE, make_sweep

from harness.config import ConfigError
from harness.experiments.sweep.definition import load_sweep

SPACE = FILE["space"]


@pytest.mark.parametrize("name", ["ema_fusion", "cost", "smoke"])
def test_shipped_sweeps_load_and_tune_on_seeds_and_prompts_of_their_own(name: str) -> None:
    sweep = load_sweep(name)
    assert min(sweep.file.seeds) >= 1000
    assert not sweep.base.evaluation.test
    assert sweep.planned_points()[0] == {p.path: sweep.reference_values[p.path] for p in sweep.parameters}


def test_the_paper_s_setting_is_the_reference_of_the_committed_sweep() -> None:
    assert load_sweep("ema_fusion").reference_values == {"capability.decay": 0.8, "fusion.weight": 1}
    assert load_sweep("ema_fusion").file.trials == 60


def test_runs_of_a_trial_differ_in_seed_alone_and_trials_in_the_space_alone(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    first, second = sweep.configs({"capability.decay": 0.9, "fusion.weight": 3}, [4, 5])
    assert first.model_copy(update={"seed": 5}) == second
    other = sweep.configs({"capability.decay": 0.6, "fusion.weight": 3}, [4])[0]
    assert other.capability.decay == 0.6
    assert other.model_copy(update={"capability": first.capability}) == first
    assert (first.experiment, first.evaluation.test) == ("sweep-landscape", False)
    again = sweep.configs({"capability.decay": 0.9, "fusion.weight": 3}, [4], test=True)[0]
    assert (again.experiment, again.evaluation.test) == ("sweep-landscape-confirm", True)


def test_one_weight_of_several_rewards_can_be_searched_and_so_can_the_method(tmp_path: Path) -> None:
    space = {"reward.colour": {"low": 0.1, "high": 1}, "method": ["flow_grpo", "flow_cps"]}
    sweep = make_sweep(tmp_path, space=space, reference=None)
    (config,) = sweep.configs({"reward.colour": 0.3, "method": "flow_cps"}, [0])
    assert config.reward == {"ocr": 1.0, "colour": 0.3}
    assert config.method.kernel == "flow_cps"


def test_a_grid_has_the_reference_first_and_no_point_twice(tmp_path: Path) -> None:
    space = {
        "capability.decay": {"low": 0.5, "high": 0.95, "points": 4},
        "fusion.weight": {"low": 0.1, "high": 10, "log": True, "points": 3},
    }
    grid = {"sampler": {"kind": "grid"}, "space": space}
    points = make_sweep(tmp_path, **grid, trials=100).planned_points()
    assert points[0] == {"capability.decay": 0.8, "fusion.weight": 1.0}
    assert len({tuple(point.values()) for point in points}) == len(points) == 12
    assert make_sweep(tmp_path, **grid, trials=100).num_trials == 12
    assert make_sweep(tmp_path, **grid, trials=5).num_trials == 5
    assert make_sweep(tmp_path, **grid, trials=None, hours=1).num_trials == 12


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"space": {"fusion.wieght": {"low": 1, "high": 2}}}, "the nearest is 'fusion.weight'"),
        ({"space": SPACE | {"capability.decay": {"low": 0.5, "high": 1}}}, "space: capability.decay: "),
        ({"space": SPACE | {"selection": ["random", "curiculum"]}, "settings": {}, "reference": None}, "'curriculum'"),
        ({"seeds": [1, 1]}, "must differ"),
        ({"seeds": []}, "seeds"),
        ({"trials": 0}, "trials=0"),
        ({"trials": None}, "a sweep needs a budget: set trials, hours or both"),
        ({"triels": 3}, "unknown key 'triels'; the nearest is 'trials'"),
        ({"objectives": {"training_rewrad": "maximize"}}, "the nearest is 'training_reward'"),
        ({"objectives": {"training_reward": "maximise"}}, "the nearest is 'maximize'"),
        ({"reference": {"capability.decay": 0.8}}, "reference: fusion.weight is missing"),
        ({"reference": {"capability.decya": 0.8}}, "the nearest is 'capability.decay'"),
        ({"reference": {"capability.decay": 0.1, "fusion.weight": 1}}, "0.1 is outside the range"),
        ({"settings": {"fusion.weight": 2}}, "settings fusion.weight: the sweep itself sets fusion.weight"),
        ({"settings": {"fusion": {"weight": 2}}}, "settings fusion.weight: the sweep itself sets fusion.weight"),
        ({"settings": {"seed": 2}}, "the sweep itself sets seed"),
        ({"settings": {"evaluation.test": True}}, "the sweep itself sets evaluation.test"),
        ({"settings": {"rollout.group_size": 1}}, "rollout.group_size=1"),
        ({"sampler": {"kind": "tep"}}, "the nearest is 'tpe'"),
        ({"sampler": {"kind": "random", "startup_trials": 3}}, "sampler.startup_trials: the kind random does not"),
        ({"pruner": {"kind": "hyperband", "warmup_iterations": 3}}, "pruner.warmup_iterations: the kind hyperband"),
        ({"pruner": {"kind": "median"}, "objectives": {"compute": "minimize"}}, "needs one objective that is measured"),
        (
            {"pruner": {"kind": "median"}, "objectives": {"training_reward": "maximize", "compute": "minimize"}},
            "needs one objective",
        ),
        (
            {"pruner": {"kind": "median"}, "settings": {"evaluation.interval": 100}},
            "leaves no validation before the end",
        ),
        (
            {
                "pruner": {"kind": "median"},
                "space": {"iterations": {"low": 50, "high": 90}},
                "settings": {},
                "reference": None,
            },
            "compares trials of equal iterations",
        ),
        ({"settings": {"runtime.processes": 2, "rollout.prompts_per_update": 2}}, "executed in one process"),
        ({"profile": "minature"}, "miniature"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_sweep(tmp_path, **changes)
    assert expected in str(error.value)
    assert "landscape.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_override_cannot_silence_the_search(tmp_path: Path) -> None:
    make_sweep(tmp_path)
    with pytest.raises(ConfigError, match=r"override fusion\.weight: the sweep itself sets"):
        load_sweep(str(tmp_path / "landscape.yaml"), overrides=["fusion.weight=2"])


def test_an_unknown_sweep_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="ema_fusion"):
        load_sweep("ema_fussion")
