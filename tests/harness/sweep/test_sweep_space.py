"""The search space: what a sweep file may say of a config path."""

import math
from typing import Any

import pytest

from harness.config import ConfigError
from harness.experiments.sweep.space import Choice, Range, grid_points, parse_space

RANGE = {"low": 0.5, "high": 0.9}


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({"fusion.wieght": RANGE}, "unknown key 'fusion.wieght'; the nearest is 'fusion.weight'"),
        ({"selektion": ["random", "medium"]}, "the nearest is 'selection'"),
        ({"iterations.more": RANGE}, "iterations is a value and has no keys"),
        ({"seed": {"low": 0, "high": 9}}, "seed: is set by the sweep"),
        ({"runtime.threads": {"low": 1, "high": 2}}, "does not change what training does"),
        ({"capability.decay": {"low": 0.9, "high": 0.5}}, "the range from 0.9 to 0.5 is empty"),
        ({"capability.decay": {"low": 0.5, "high": 0.5}}, "is empty"),
        ({"fusion.weight": {"low": 0, "high": math.inf}}, "fusion.weight: high=inf: input should be a finite number"),
        ({"fusion.weight": {"low": 0, "high": 15, "log": True}}, "a logarithmic range cannot begin at 0"),
        ({"fusion.weight": {"low": 0, "hihg": 15}}, "unknown key 'hihg'; the nearest is 'high'"),
        ({"fusion.weight": {"low": 0}}, "key 'high' is missing"),
        ({"fusion.weight": 3}, "write a range"),
        ({"selection": RANGE}, "selection: takes no range of numbers; list the choices"),
        ({"fusion.enabled": {"low": 0, "high": 1}}, "fusion.enabled: takes no range of numbers"),
        ({"selection": ["random"]}, "at least two different choices"),
        ({"selection": ["random", "random"]}, "at least two different choices"),
        ({"rollout.group_size": {"low": 4, "high": 8.5}}, "takes whole numbers"),
        ({"rollout.group_size": {"low": 4, "high": 9, "step": 2}}, "step=2 does not lead from 4 to 9"),
        ({"fusion.weight": {"low": 1, "high": 9, "log": True, "step": 2}}, "step goes with neither log nor points"),
        ({"fusion.weight": {"low": 1, "high": 9, "points": 3}}, "points belong to the grid sampler"),
    ],
)
def test_a_wrong_space_is_one_line_that_names_the_path(space: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_space(space, "tpe")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_numbers_are_whole_where_the_configuration_takes_whole_ones() -> None:
    space = {"rollout.group_size": {"low": 4, "high": 8}, "model.shift": {"low": 1, "high": 5}, "reward.base": RANGE}
    group, shift, weight = parse_space(space, "tpe")
    assert isinstance(group, Range)
    assert group.is_int
    assert group.extremes() == (4, 8)
    assert isinstance(shift, Range)
    assert not shift.is_int  # a number or "dynamic"
    # A short name that is no other column's, or the whole path.
    assert [parameter.column for parameter in (group, shift, weight)] == ["group_size", "shift", "reward.base"]


def test_choices_of_any_kind_survive_the_study() -> None:
    (indices,) = parse_space({"rollout.branch_indices": [[0, 1], [0, 1, 2, 3]]}, "tpe")
    assert isinstance(indices, Choice)
    assert indices.labels == ["[0, 1]", "[0, 1, 2, 3]"]
    assert indices.config_value("[0, 1]") == [0, 1]
    assert indices.suggested([0, 1, 2, 3]) == "[0, 1, 2, 3]"
    with pytest.raises(ConfigError, match="is none of the choices"):
        indices.suggested([3])
    (clip,) = parse_space({"objective.clip_range": [None, 0.2]}, "tpe")
    assert clip.config_value(clip.suggested(None)) is None


def test_a_grid_is_all_combinations_once_in_an_order_of_its_seed() -> None:
    space = {
        "capability.decay": {"low": 0.5, "high": 0.8, "points": 4},
        "fusion.weight": {"low": 0.1, "high": 10, "log": True, "points": 3},
        "rollout.group_size": {"low": 2, "high": 6, "step": 2},
        "selection": ["random", "medium"],
    }
    parameters = parse_space(space, "grid")
    assert [parameter.grid() for parameter in parameters] == [
        [0.5, 0.6, 0.7, 0.8],
        [0.1, 1.0, 10.0],
        [2, 4, 6],
        ["random", "medium"],
    ]
    points = grid_points(parameters, seed=1)
    assert len({tuple(point.values()) for point in points}) == len(points) == 4 * 3 * 3 * 2
    assert points == grid_points(parameters, seed=1)
    assert points != grid_points(parameters, seed=2)


def test_a_grid_must_say_how_fine_it_is() -> None:
    (decay,) = parse_space({"capability.decay": RANGE}, "grid")
    with pytest.raises(ConfigError, match="the grid sampler needs points or step"):
        decay.grid()


@pytest.mark.parametrize(
    ("value", "expected"), [(0.4, "outside the range"), (True, "is no number"), ("much", "is no number")]
)
def test_a_value_must_lie_in_its_range(value: object, expected: str) -> None:
    (decay,) = parse_space({"capability.decay": RANGE}, "tpe")
    assert decay.suggested(0.5) == 0.5
    with pytest.raises(ConfigError, match=expected):
        decay.suggested(value)


def test_a_value_must_be_a_step_of_its_range() -> None:
    (group,) = parse_space({"rollout.group_size": {"low": 2, "high": 8, "step": 2}}, "tpe")
    assert group.suggested(4) == 4
    with pytest.raises(ConfigError, match="5 is no step of the range"):
        group.suggested(5)
