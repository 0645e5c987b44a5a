"""Names of other trainers: one table, of which the page and the command are made."""

from pathlib import Path

import pytest

from harness.config import ROOT, ConfigError, compose, fields_at
from harness.config.composition import read_yaml
from harness.config.dictionary import DICTIONARY, convert, page

SCRIPT = """#!/bin/bash
touch {marker}
torchrun --nproc_per_node=8 \\
    train.py \\
    --seed 42 \\
    --batch_size 10 \\
    --mixed_precision "bf16" \\
    --train_mode "full" \\
    --sde_stepidx 0 2 4 6 \\
    --reward_name "hpsv3" \\
    --learning_rate 2e-6 \\
    --dataloader_num_workers 4 \\
    --ema_alpha 0.8

"""
PYTHON = """
import missing_package

raise RuntimeError("executed")

def base():
    config = missing_package.ConfigDict()
    config.sample = sample = missing_package.ConfigDict()
    sample.num_steps = 40
    config.sample.num_steps = 10
    sample.global_std = True
    config.use_lora = True
    config.reward_fn = {"pickscore": 1.0}
    config.sample.num_batches_per_epoch = int(48 / 8)
    config.train.adam_beta1 = 0.9
"""


def test_a_script_is_read_and_not_executed(tmp_path: Path) -> None:
    script, marker = tmp_path / "train.sh", tmp_path / "marker"
    script.write_text(SCRIPT.format(marker=marker))
    settings, left = convert(script)
    assert settings == {
        "method": {"kernel": "flow_grpo"},
        "seed": 42,
        "capability": {"decay": 0.8},
        "model": {"precision": "bf16"},
        "reward": {"hpsv3": 1.0},
        "rollout": {"candidates": 10, "branch_indices": [0, 2, 4, 6]},
        "optimizer": {"tuning": "full", "learning_rate": 2e-6},
    }
    assert left == {"dataloader_num_workers": "4 has no setting here that means the same"}
    assert not marker.exists()


def test_a_python_file_is_read_and_not_executed(tmp_path: Path) -> None:
    file = tmp_path / "grpo.py"
    file.write_text(PYTHON)
    settings, left = convert(file, "FlowCPS")
    assert settings["method"] == {"kernel": "flow_cps"}
    assert settings["model"] == {"num_steps": 10}
    assert settings["objective"] == {"normalisation": "batch_std"}
    assert settings["optimizer"] == {"tuning": "lora"}
    assert settings["reward"] == {"pickscore": 1.0}
    assert left["sample.num_batches_per_epoch"] == "is computed, int(48 / 8), and nothing is executed"
    assert "train.adam_beta1" in left
    with pytest.raises(ConfigError, match="--function other is unknown; the nearest is 'base'"):
        convert(file, function="other")
    file.write_text("x = (")
    with pytest.raises(ConfigError, match="is no Python"):
        convert(file)


def test_every_row_names_a_setting_and_the_page_has_the_table() -> None:
    for key in read_yaml(DICTIONARY)["settings"]:
        *sections, last = key.split(".")
        assert last in fields_at(sections), key
    assert page() in (ROOT / "docs" / "dictionary.md").read_text(encoding="utf-8")


def test_what_is_converted_is_a_method_file(tmp_path: Path) -> None:
    script = tmp_path / "dance.sh"
    script.write_text(
        "torchrun x.py --num_generations 12 --eta 0.3 --timestep_fraction 0.6 --use_hpsv2 --init_same_noise\n"
    )
    settings, left = convert(script)
    assert left == {}
    config = compose("native-flux", method="dance_grpo_flux", settings=settings)
    assert (config.rollout.group_size, config.rollout.trained_share, config.reward) == (12, 0.6, {"hpsv2": 1.0})
