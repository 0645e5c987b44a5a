"""Sweep files: composed into paired runs, and refused in one line where they cannot be executed."""

from pathlib import Path
from typing import Any

import pytest
from landscape import FILE, make_sweep
from optuna.distributions import FloatDistribution, IntDistribution

from harness.config import ConfigError
from harness.experiments.sweep.definition import load_sweep
from harness.experiments.sweep.space import as_point, parse_space

SPACE = FILE["space"]
MEDIAN = {"pruner": {"kind": "median"}}


def of_space(path: str, content: Any) -> dict[str, Any]:
    first = content[0] if isinstance(content, list) else content["low"] if isinstance(content, dict) else content
    return {"space": {path: content}, "settings": {}, "reference": {path: first}}


@pytest.mark.parametrize("name", ["ema_fusion", "cost", "smoke"])
def test_shipped_sweeps_load_and_tune_on_seeds_and_prompts_of_their_own(name: str) -> None:
    sweep = load_sweep(name)
    assert min(sweep.file.seeds) >= 1000
    assert not sweep.base.evaluation.test
    # Where the paper's setting is searched around, it is the reference.
    assert name == "cost" or sweep.reference == {"capability.decay": 0.8, "fusion.weight": 1}


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
    sweep = make_sweep(tmp_path, space=space, reference={"reward.colour": 1, "method": "flow_grpo"})
    (config,) = sweep.configs({"reward.colour": 0.3, "method": "flow_cps"}, [0])
    assert config.reward == {"ocr": 1.0, "colour": 0.3}
    assert config.method.kernel == "flow_cps"


@pytest.mark.parametrize(("trials", "expected"), [(100, 15), (5, 5), (None, 15)])
def test_a_grid_has_as_many_trials_as_points_or_fewer(tmp_path: Path, trials: int | None, expected: int) -> None:
    space = {"capability.decay": {"low": 0.5, "high": 0.9, "step": 0.1}, "fusion.weight": [0.1, 1, 10]}
    assert make_sweep(tmp_path, sampler={"kind": "grid"}, space=space, trials=trials).num_trials == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"space": {"fusion.wieght": {"low": 1, "high": 2}}}, "the nearest is 'fusion.weight'"),
        ({"space": SPACE | {"capability.decay": {"low": 0.5, "high": 1}}}, "space: capability.decay: "),
        (of_space("selection", ["random", "curiculum"]), "'curriculum'"),
        (of_space("seed", {"low": 0, "high": 9}), "seed: is set by the sweep"),
        (of_space("capability.decay", {"low": 0.9, "high": 0.5}), "space: capability.decay: "),
        (of_space("fusion.weight", {"low": 0, "hihg": 15}), "unknown key 'hihg'; the nearest is 'high'"),
        (of_space("fusion.weight", 3), "write a range"),
        (of_space("selection", {"low": 0, "high": 1}), "selection=0"),
        (of_space("selection", ["random", "random"]), "at least two different choices"),
        (of_space("method", {"low": 0, "high": 1}), "list names of files"),
        (of_space("rollout.group_size", {"low": 4, "high": 8.5}), "takes whole numbers"),
        (of_space("rollout.group_size", {"low": 4, "high": 9, "step": 2}), "is not divisible by `step`"),
        ({"sampler": {"kind": "grid"}}, "capability.decay: the grid sampler needs a step"),
        ({"seeds": [1, 1]}, "must differ"),
        ({"trials": None}, "a sweep needs a budget: set trials, hours or both"),
        ({"objectives": {"training_rewrad": "maximize"}}, "the nearest is 'training_reward'"),
        ({"reference": {"capability.decay": 0.8}}, "reference: needs a value of each path"),
        ({"reference": {"capability.decay": 0.1, "fusion.weight": 1}}, "reference: "),
        ({"settings": {"fusion.weight": 2}}, "fusion.weight: the sweep itself sets fusion.weight"),
        ({"settings": {"evaluation.test": True}}, "the sweep itself sets evaluation.test"),
        ({"settings": {"rollout.group_size": 1}}, "rollout.group_size=1"),
        (MEDIAN | {"objectives": {"compute": "minimize"}}, "needs one objective that is measured"),
        (MEDIAN | {"settings": {"evaluation.interval": 100}}, "leaves no validation before the end"),
        (MEDIAN | of_space("iterations", {"low": 50, "high": 90}), "compares trials of equal iterations"),
        ({"settings": {"runtime.processes": 2, "rollout.prompts_per_iteration": 2}}, "executed in one process"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_sweep(tmp_path, **changes)
    assert expected in str(error.value)
    assert "landscape.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_numbers_are_whole_where_the_configuration_takes_whole_ones() -> None:
    parameters = parse_space(
        {path: {"low": 1, "high": 5} for path in ("rollout.group_size", "model.shift", "reward.base")}
    )
    kinds = [type(parameter.distribution) for parameter in parameters]
    assert kinds == [IntDistribution, FloatDistribution, FloatDistribution]  # a shift is a number or "dynamic"
    # A short name that is no other column's, or the whole path.
    assert [parameter.column for parameter in parameters] == ["group_size", "shift", "reward.base"]


def test_choices_of_any_kind_survive_the_study() -> None:
    space = {"rollout.branch_indices": [[0, 1], [0, 1, 2, 3]], "objective.clip_range": [None, 0.2]}
    indices, clip = parse_space(space)
    point = as_point([indices, clip], {"rollout.branch_indices": [0, 1, 2, 3], "objective.clip_range": None})
    assert point == {"rollout.branch_indices": "[0, 1, 2, 3]", "objective.clip_range": None}
    assert indices.config_value("[0, 1]") == [0, 1]
    assert clip.config_value(None) is None


def test_a_value_must_lie_in_the_space() -> None:
    parameters = parse_space(
        {"rollout.group_size": {"low": 2, "high": 8, "step": 2}, "selection": ["random", "easiest"]}
    )
    good = {"rollout.group_size": 4, "selection": "easiest"}
    assert as_point(parameters, good) == good
    for path, value in (("rollout.group_size", 5), ("rollout.group_size", 10), ("selection", "x")):
        with pytest.raises(ConfigError, match="reference: "):
            as_point(parameters, good | {path: value})
