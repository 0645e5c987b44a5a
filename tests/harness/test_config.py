"""Configuration: composition, identity, and errors in one line."""

from pathlib import Path

import pytest
import yaml

from harness import config as configuration
from harness.config import EXPERIMENTS, ConfigError, compose, run_id
from harness.launch.grid import expand_grid


def test_base_and_adagrpo_cells_differ_only_in_selection_and_fusion() -> None:
    base, ada = (run.model_dump() for run in expand_grid("smoke"))
    assert {key for key in base if base[key] != ada[key]} == {"selection", "fusion"}


def test_resolved_config_round_trips_through_yaml() -> None:
    config = compose("miniature", overrides=["objective.clip_range=1e-4", "rollout.branch_indices=[1,3]"])
    assert configuration.validate(yaml.safe_load(configuration.dump(config)), "test") == config
    assert config.objective.clip_range == 1e-4
    assert config.rollout.branch_indices == (1, 3)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("fusion.wieght=2", "unknown key 'fusion.wieght'; the nearest is 'fusion.weight'"),
        ("selektion=random", "the nearest is 'selection'"),
        ("selection=curiculum", "selection='curiculum' is unknown; the nearest is 'curriculum'"),
        ("rollout.group_size=1", "rollout.group_size=1: input should be greater than or equal to 2"),
        ("rollout.branch_indices=[0,7]", "7 is past the trainable steps of model.num_steps=8; use 0 to 6"),
        ("rollout.branch_indices=[2,1]", "in increasing order"),
        ("capability.decay=1", "capability.decay=1: input should be less than 1"),
        ("runtime.processes=2", "prompts_per_update: 1 does not divide"),
        ("nonsense", "write key=value"),
    ],
)
def test_bad_input_is_one_line_that_names_the_key(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose("miniature", overrides=[override])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_eta_of_flow_cps_above_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="out of range for flow_cps"):
        compose("miniature", method="flow_cps", overrides=["method.eta=1.2"])


def test_unknown_profile_names_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="miniature"):
        compose("minature")


def test_identity_counts_numerics_and_nothing_else() -> None:
    fingerprints = {"model": "a"}
    name = run_id(compose("miniature"), fingerprints)
    same = compose("miniature", overrides=["logging.wandb=offline", "runtime.threads=2", "experiment=other"])
    assert run_id(same, fingerprints) == name
    for change in ("seed=1", "fusion.weight=2", "evaluation.interval=10", "optimizer.learning_rate=1e-4"):
        assert run_id(compose("miniature", overrides=[change]), fingerprints) != name
    assert run_id(compose("miniature"), {"model": "b"}) != name


@pytest.mark.parametrize(("sync", "is_same"), [("shared", True), ("per_rank", False)])
def test_the_number_of_processes_counts_where_each_has_a_capability_of_its_own(sync: str, is_same: bool) -> None:
    settings = ["rollout.prompts_per_update=2", f"capability.sync={sync}"]
    alone, together = (compose("miniature", overrides=[*settings, f"runtime.processes={n}"]) for n in (1, 2))
    assert (run_id(alone, {}) == run_id(together, {})) is is_same


@pytest.mark.parametrize("word", ["off", '"off"', "offline"])
def test_off_is_off_on_the_command_line_and_in_yaml(word: str, tmp_path: Path) -> None:
    assert compose("smoke", overrides=[f"logging.wandb={word}"]).logging.wandb == word.strip('"')
    path = tmp_path / "profile.yaml"
    path.write_text((EXPERIMENTS / "profiles" / "smoke.yaml").read_text().replace("wandb: offline", f"wandb: {word}"))
    assert compose(str(path)).logging.wandb == word.strip('"')
    with pytest.raises(ConfigError, match=r"logging\.wandb=True is unknown; the nearest is"):
        compose("smoke", overrides=["logging.wandb=on"])


def test_reward_weights_replace_the_profile_s() -> None:
    assert compose("miniature", overrides=["reward={colour: 0.5}"]).reward == {"colour": 0.5}


def test_grid_is_the_product_of_its_lists_seed_by_seed() -> None:
    runs = expand_grid("methods")
    assert [run.seed for run in runs] == [0] * 4 + [1] * 4 + [2] * 4
    assert [run.method.kernel for run in runs[:4]] == ["flow_grpo", "dance_grpo", "flow_cps", "flow_grpo"]
