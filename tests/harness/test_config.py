"""Configuration: composition, identity, and errors in one line."""

from pathlib import Path

import pytest
import yaml

from harness import config as configuration
from harness.cli import main
from harness.config import EXPERIMENTS, ConfigError, compose, run_id
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


FRUGAL = ["model.execution={gradient_checkpointing: true, text_encoders: free, max_train_batch: 2}"]


def test_identity_counts_numerics_and_nothing_else() -> None:
    fingerprints = {"model": "a"}
    name = run_id(compose("miniature-luck"), fingerprints)
    same = compose(
        "miniature-luck", overrides=["logging.wandb=offline", "runtime.threads=2", "experiment=other", *FRUGAL]
    )
    assert run_id(same, fingerprints) == name
    for change in ("seed=1", "fusion.enabled=true", "evaluation.interval=10", "optimizer.learning_rate=1e-4"):
        assert run_id(compose("miniature-luck", overrides=[change]), fingerprints) != name
    assert run_id(compose("miniature-luck"), {"model": "b"}) != name


@pytest.mark.parametrize(("sync", "is_same"), [("shared", True), ("per_rank", False)])
def test_the_number_of_processes_counts_where_each_has_a_capability_of_its_own(sync: str, is_same: bool) -> None:
    settings = ["selection=curriculum", "rollout.prompts_per_iteration=2", f"capability.sync={sync}"]
    alone, together = (compose("miniature-luck", overrides=[*settings, f"runtime.processes={n}"]) for n in (1, 2))
    assert (run_id(alone, {}) == run_id(together, {})) is is_same


@pytest.mark.parametrize("word", ["off", '"off"', "offline"])
def test_off_is_off_on_the_command_line_and_in_yaml(word: str, tmp_path: Path) -> None:
    assert compose("smoke", overrides=[f"logging.wandb={word}"]).logging.wandb == word.strip('"')
    path = tmp_path / "profile.yaml"
    path.write_text((EXPERIMENTS / "profiles" / "smoke.yaml").read_text().replace("wandb: offline", f"wandb: {word}"))
    assert compose(str(path)).logging.wandb == word.strip('"')
    with pytest.raises(ConfigError, match=r"logging\.wandb='on' is unknown; the nearest is"):
        compose("smoke", overrides=["logging.wandb=on"])


def test_reward_weights_replace_the_profile_s_and_a_single_one_is_added() -> None:
    assert compose("miniature-luck", overrides=["reward={colour: 0.5}"]).reward == {"colour": 0.5}
    assert compose("miniature-luck", overrides=["reward.colour=0.5"]).reward == {"ocr": 1.0, "colour": 0.5}
    both = ["reward.colour=0.5", "reward.ocr=2"]
    assert compose("miniature-luck", overrides=both).reward == {"ocr": 2.0, "colour": 0.5}
    assert compose("miniature-luck", reward="ocr_colour", overrides=["reward.colour=2"]).reward == {
        "ocr": 1.0,
        "colour": 2.0,
    }


def test_single_reward_weights_are_added_in_grids_and_sweeps_too(tmp_path: Path) -> None:
    cells = "[{reward.colour: [0.25, 0.5], selection: random}]"
    grid = tmp_path / "grid.yaml"
    grid.write_text(f"profile: smoke\nseeds: [0]\ncells: {cells}\n")
    assert [run.reward for run in expand_grid(str(grid))] == [{"ocr": 1.0, "colour": 0.25}, {"ocr": 1.0, "colour": 0.5}]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["fusion.wieght=2"], "unknown key 'fusion.wieght'; the nearest is 'fusion.weight'"),
        (["selektion=random"], "the nearest is 'selection'"),
        (["selection=curiculum"], "selection='curiculum' is unknown; the nearest is 'curriculum'"),
        (["rollout.branch_indices=[0,7]"], "7 is past the trainable steps of model.num_steps=8; use 0 to 6"),
        (["rollout.branch_indices=[2,1]"], "in increasing order"),
        (["capability.decay=1"], "capability.decay=1: input should be less than 1"),
        (["runtime.processes=2"], "prompts_per_iteration: 1 does not divide"),
        (["method.kernel=flow_cps", "method.eta=1.2"], "out of range for flow_cps"),
        (["fusion.kind=rescaled"], "fusion.kind: rescaled has no effect without fusion"),
        (["fusion.enabled=true", "fusion.kind=rescale"], "the nearest is 'rescaled'"),
        (["seed="], "null"),
        (["fusion..weight=1"], "key=value"),
        (["seed=010"], "010"),
        (["iterations=1:30"], "1:30"),
        (["objective.kl_beta=on"], "objective.kl_beta"),
        (["rollout={group_size: 4, group_size: 8}"], "twice"),
        (["fusion.enabled=1"], "fusion.enabled"),
        (["fusion.weight='2'"], "fusion.weight"),
        (["rollout.group_size=8.0"], "rollout.group_size"),
        (["rollout.branch_indices=[true]"], "rollout.branch_indices"),
        (["fusion.weight=.inf"], "inf"),
        (["seed=99999999999999999999999999"], "seed"),
        (["rollout.group_size=1000000000"], "rollout.group_size"),
        (["model.height=1000000000"], "model.height"),
        (["runtime.timeout_seconds=1e300"], "runtime.timeout_seconds"),
        (["reward={}"], "reward"),
        (["reward.ocr=0"], "reward.ocr"),
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
    content = {"extends": "smoke", "experiment": name}
    uses = [{"experiment": name}, {"use_model": name}, {"use_method": name}, {"use_reward": name}, {"extends": name}]
    for use in uses:
        profile = tmp_path / "profile.yaml"
        (tmp_path / "smoke.yaml").write_text((EXPERIMENTS / "profiles" / "smoke.yaml").read_text())
        profile.write_text(yaml.safe_dump(content | {"experiment": "good"} | use))
        with pytest.raises(ConfigError):
            compose(str(profile))
    for call in (compose, expand_grid, load_sweep, lambda name: compose("smoke", method=name)):
        with pytest.raises(ConfigError):
            call(name)
    with pytest.raises(ConfigError, match="--name"):
        load_sweep("smoke", name=name)


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


def test_a_saved_configuration_with_settings_of_before_is_read(tmp_path: Path) -> None:
    config = compose("miniature-luck", overrides=["rollout.window={size: 1}"])
    old = config.model_dump(mode="json")
    old["rollout"] |= {"latent_precision": "fp32", "window": old["rollout"]["window"] | {"interval": 1}}
    old["model"]["vae_tiling"], old["optimizer"]["warmup_iterations"] = False, 0
    old["logging"]["wandb_project"] = "adagrpo"
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(old))
    assert configuration.load(path) == config
    path.write_text(yaml.safe_dump(old | {"optimizer": old["optimizer"] | {"warmup_iterations": 3}}))
    with pytest.raises(ConfigError, match=r"unknown key 'optimizer\.warmup_iterations'"):
        configuration.load(path)
