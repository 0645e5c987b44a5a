"""Configuration: composition, identity, and errors in one line."""

import shutil
from pathlib import Path

import pytest
import yaml

from harness import config as configuration
from harness.cli import main
from harness.config import EXPERIMENTS, ConfigError, compose
from harness.experiments.grid import expand_grid
from harness.experiments.sweep.definition import load_sweep


def test_base_and_adagrpo_cells_differ_only_in_selection_and_fusion() -> None:
    base, ada = (run.model_dump() for run in expand_grid("smoke"))
    assert {key for key in base if base[key] != ada[key]} == {"selection", "fusion"}


def test_resolved_config_round_trips_through_yaml() -> None:
    config = compose("miniature-luck", overrides=["objective.clip_range=1e-4", "rollout.branch_indices=[1,3]"])
    assert configuration.validate(yaml.safe_load(configuration.dump(config)), "test") == config
    assert config.objective.clip_range == 1e-4
    assert config.rollout.branch_indices == (1, 3)


def test_unknown_profile_names_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="miniature"):
        compose("minature")


def test_off_is_off_on_the_command_line_and_in_yaml(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    for word in ("off", '"off"', "offline"):
        assert compose("smoke", overrides=[f"logging.wandb={word}"]).logging.wandb == word.strip('"')
        text = (EXPERIMENTS / "profiles" / "smoke.yaml").read_text()
        path.write_text(text.replace("wandb: offline", f"wandb: {word}"))
        assert compose(str(path)).logging.wandb == word.strip('"')


@pytest.mark.parametrize(
    ("reward", "overrides", "weights"),
    [
        (None, ["reward={colour: 0.5}"], {"colour": 0.5}),
        (None, ["reward.colour=0.5"], {"ocr": 1.0, "colour": 0.5}),
        (None, ["reward.colour=0.5", "reward.ocr=2"], {"ocr": 2.0, "colour": 0.5}),
        ("ocr_colour", ["reward.colour=2"], {"ocr": 1.0, "colour": 2.0}),
    ],
)
def test_reward_weights_replace_the_profile_s_and_a_single_one_is_added(
    reward: str | None, overrides: list[str], weights: dict[str, float]
) -> None:
    assert compose("miniature-luck", reward=reward, overrides=overrides).reward == weights


def test_single_reward_weights_are_added_in_a_grid_too(tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text("profile: smoke\nseeds: [0]\ncells: [{reward.colour: [0.25, 0.5], selection: random}]\n")
    assert [run.reward for run in expand_grid(str(grid))] == [{"ocr": 1.0, "colour": 0.25}, {"ocr": 1.0, "colour": 0.5}]


TWO = ["runtime.processes=2", "rollout.prompts_per_iteration=2"]


def test_a_process_that_is_alone_on_its_machine_may_name_a_gpu() -> None:
    compose("miniature-luck", overrides=["reward.clip=1", "rewards.clip.device=cuda:1", *TWO, "runtime.machines=2"])


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["fusion.wieght=2"], "unknown key 'fusion.wieght'; the nearest is 'fusion.weight'"),
        (["selektion=random"], "the nearest is 'selection'"),
        (["rollout.branch_indices=[0,7]"], "7 is past the trainable steps of model.num_steps=8; use 0 to 6"),
        (["rollout.branch_indices=[2,1]"], "in increasing order"),
        (["capability.decay=1"], "capability.decay=1: input should be less than 1"),
        (["runtime.processes=2"], "prompts_per_iteration: 1 does not divide"),
        (["method.kernel=flow_cps", "method.eta=1.2"], "out of range for flow_cps"),
        (["fusion.kind=rescaled"], "fusion.kind: rescaled has no effect without fusion"),
        (["seed="], "null"),
        (["fusion..weight=1"], "key=value"),
        (["seed=010"], "010"),
        (["fusion.enabled=1"], "fusion.enabled"),
        (["fusion.weight='2'"], "fusion.weight"),
        (["rollout.group_size=8.0"], "rollout.group_size"),
        (["rollout.branch_indices=[true]"], "rollout.branch_indices"),
        (["fusion.weight=.inf"], "inf"),
        (["seed=99999999999999999999999999"], "seed"),
        (["rollout.group_size=1000000000"], "rollout.group_size"),
        (["logging.wandb=on"], "logging.wandb='on' is unknown; the nearest is"),
        (["reward={}"], "reward"),
        (["rewards=3"], "rewards=3"),
        (["plugins=[1]"], "plugins="),
        (["reward.ocr=0"], "reward.ocr"),
        (["reward.clip=1", "rewards.clip.device=cuda:1", *TWO], "rewards.clip.device: all processes of a machine"),
    ],
)
def test_no_value_is_taken_for_another_one(overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose("miniature-luck", overrides=overrides)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["seed=1", "seed=2"], "seed"),
        (["seed=1", "seed=1"], "seed"),
        (["rollout={group_size: 4}", "rollout.group_size=2"], "rollout.group_size"),
        (["reward.colour=1", "reward={ocr: 1}"], "reward.colour"),
    ],
)
def test_a_command_sets_no_value_twice(overrides: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["train", "--profile", "smoke"], ["grid", "smoke"]):
        with pytest.raises(SystemExit) as exit_:
            main([*arguments, *overrides])
        assert exit_.value.code == 2
        assert f"both set {named}" in capsys.readouterr().err


NO_NAMES = ["..", "a.", ".a", "-a", "../a", "a b", "a\n", "", "x" * 101, "\u00e9", "a\\b", "nul\0"]


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_becomes_a_path_is_a_name(name: str, tmp_path: Path) -> None:
    shutil.copy(EXPERIMENTS / "profiles" / "smoke.yaml", tmp_path)
    profile = tmp_path / "profile.yaml"
    for key in ("experiment", "use_model", "use_method", "use_reward", "extends"):
        profile.write_text(yaml.safe_dump({"extends": "smoke", key: name}))
        with pytest.raises(ConfigError, match="is no name"):
            compose(str(profile))
    for call in (compose, expand_grid, load_sweep, lambda name: load_sweep("smoke", name=name)):
        with pytest.raises(ConfigError, match="is no name"):
            call(name)


def test_a_value_knows_where_it_was_written() -> None:
    config = compose("paper-dry", settings={"seed": 3}, overrides=["fusion.weight=2", "reward.clip=1"])
    origins = config.origins
    assert origins["fusion.weight"] == "override fusion.weight=2"
    assert origins["reward.clip"] == "override reward.clip=1"
    assert origins["reward.hpsv3"].startswith("experiments/rewards/hpsv3.yaml:")
    assert "cell" in origins["seed"]
    assert origins["model.precision"].startswith("experiments/models/flux-twin.yaml:")
    assert origins["model.num_steps"].startswith("experiments/methods/adagrpo_flux.yaml:")
    line = (EXPERIMENTS / "profiles" / "paper-dry.yaml").read_text().splitlines()
    assert line[int(origins["iterations"].rpartition(":")[2]) - 1] == "iterations: 2"
    assert "objective.kl_beta" not in origins
    assert config == compose("paper-dry", overrides=["fusion.weight=2", "reward.clip=1", "seed=3"])
