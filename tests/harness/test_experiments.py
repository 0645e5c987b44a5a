"""The files under experiments/: all compose, published values stand where they should, and the dry run runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.config import EXPERIMENTS, ConfigError, RunConfig, compose, grid_of
from harness.experiments.grid import expand_grid
from harness.foundation.names import REWARDS
from harness.runs.directory import prepare_run
from harness.training.session import Session

PROFILES = sorted(path.stem for path in (EXPERIMENTS / "profiles").glob("*.yaml"))
GRIDS = sorted(path.stem for path in (EXPERIMENTS / "grids").glob("*.yaml"))
METHODS = sorted(path.stem for path in (EXPERIMENTS / "methods").glob("*.yaml"))


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_composes_and_names_a_grid_that_it_can_run(profile: str) -> None:
    assert compose(profile).experiment
    assert expand_grid(grid_of(profile), profile=profile, seeds=[0])


@pytest.mark.parametrize("grid", GRIDS)
def test_no_grid_has_a_cell_twice(grid: str) -> None:
    runs = [run.model_dump_json() for run in expand_grid(grid)]
    assert len(set(runs)) == len(runs)


def having(config: RunConfig, section: str, **wanted: Any) -> bool:
    """Whether a section of a configuration has all of these values."""
    return {name: getattr(getattr(config, section), name) for name in wanted} == wanted


def test_adagrpo_s_release() -> None:
    config, lora = compose("paper"), compose("paper-lora")
    assert (config.selection, config.fusion.enabled, config.iterations) == ("curriculum", True, 300)
    assert having(config, "method", kernel="flow_grpo", eta=0.7)
    assert having(config, "model", num_steps=16, shift=3)
    assert having(config, "rollout", kind="anchor_branch", candidates=10, group_size=12, branch_indices=(0, 2, 4, 6))
    assert config.rollout.prompts_per_iteration == config.runtime.processes == 8
    assert having(config, "objective", updates_per_iteration=4, update_on="steps", is_on_policy=True)
    assert having(config, "optimizer", tuning="full", learning_rate=2e-6)
    assert having(lora, "optimizer", tuning="lora", learning_rate=1e-4)
    assert (lora.optimizer.lora.rank, lora.objective.updates_per_iteration) == (64, 1)
    assert lora.rollout == config.rollout


def test_flow_grpo_s_and_flow_cps_s_releases() -> None:
    flux, cps = (compose("native-flux", method) for method in ("flow_grpo_flux", "flow_cps_flux"))
    sd35 = compose("native-sd35", "flow_grpo_sd35")
    for config in (flux, cps, sd35):
        # The last step is never trained.
        steps = tuple(range(config.model.num_steps - 1))
        assert having(config, "rollout", group_size=24, prompts_per_iteration=48, branch_indices=steps)
        assert having(config, "objective", updates_per_iteration=2, update_on="prompts")
        assert having(config, "objective", clip_range=1e-4, normalisation="batch_std")
        assert having(config, "optimizer", weight_ema=0.9, weight_ema_interval=8, learning_rate=3e-4)
    assert having(flux, "model", num_steps=6, shift="dynamic")
    assert (flux.method.eta, flux.objective.kl_beta, flux.optimizer.lora.rank) == (0.9, 0, 64)
    assert cps.method.kernel == "flow_cps"
    assert cps.model_dump(exclude={"method"}) == flux.model_dump(exclude={"method"})
    assert having(sd35, "model", num_steps=10, guidance=4.5)
    assert (sd35.method.eta, sd35.objective.kl_beta, sd35.optimizer.lora.rank) == (0.7, 0.01, 32)
    assert (flux.evaluation.num_steps, sd35.evaluation.num_steps) == (28, 40)
    assert (flux.model.precision, sd35.model.precision) == ("bf16", "fp16")
    assert sd35.model.max_batch == sd35.model.execution.max_train_batch == 9


def test_dance_grpo_s_release() -> None:
    full, lora = (compose("native-flux", f"dance_grpo_flux{suffix}") for suffix in ("", "_lora"))
    assert (full.model.height, full.model.num_steps, lora.model.num_steps, full.method.eta) == (720, 16, 12, 0.3)
    assert having(full, "rollout", trained_share=0.6, trained_draw="sample", shared_noise=True)
    assert full.rollout.branch_indices == tuple(range(15))
    assert having(full, "optimizer", max_grad_norm=0.01, weight_ema=0.995, weight_ema_interval=2)
    assert having(lora, "optimizer", max_grad_norm=1.0, weight_ema=None)
    assert (full.model.max_sequence_length, lora.model.max_sequence_length) == (512, 512)
    adapters = lora.optimizer.lora
    assert (adapters.rank, adapters.init) == (128, "kaiming")
    assert adapters.target_modules == ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")


def test_published_cells_differ_from_their_base_in_selection_and_fusion_alone() -> None:
    runs = [run.model_dump() for run in expand_grid("published")]
    table = [run for run in runs if run["reward"] == {"hpsv3": 1.0} and run["method"]["kernel"] == "dance_grpo"]
    base, ada = table
    assert {key for key in base if base[key] != ada[key]} == {"selection", "fusion"}
    assert len(runs) == 3 * 3 * 2 + 4


def test_the_dry_run_has_every_paper_scale_method_and_both_models() -> None:
    content = (EXPERIMENTS / "grids" / "paper-dry.yaml").read_text()
    assert [m for m in METHODS if ("flux" in m or "sd35" in m) and m not in content] == []
    runs = expand_grid("paper-dry")
    assert {run.model.path for run in runs} == {"twin:flux", "twin:sd3"}
    # What is trained on in the published grid, and every reward that runs in this process.
    assert [run.reward for run in expand_grid("published") if run.reward not in [dry.reward for dry in runs]] == []
    judges = {name for run in runs for name in run.evaluation.judges}
    assert judges == {name for name, reward in REWARDS.items() if reward.path and "native" in reward.backends}


def test_files_extend_each_other_but_not_themselves(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "use_model: miniature-luck\nexperiment: base\nseed: 3\noptimizer: {learning_rate: 1.0e-3}\n"
    )
    (tmp_path / "child.yaml").write_text(
        "extends: base\nuse_method: flow_cps\nreward: {ocr: 1}\noptimizer: {tuning: full}\n"
    )
    config = compose(str(tmp_path / "child.yaml"))
    assert (config.seed, config.optimizer.learning_rate, config.optimizer.tuning) == (3, 1e-3, "full")
    (tmp_path / "base.yaml").write_text("extends: child\n")
    with pytest.raises(ConfigError, match="extends itself, by way of child, base"):
        compose(str(tmp_path / "child.yaml"))


@pytest.mark.parametrize(("method", "model"), [("adagrpo_flux_cps", "flux-twin"), ("flow_grpo_fast_sd35", "sd35-twin")])
def test_a_cell_of_the_dry_run_trains_evaluates_and_saves(tmp_path: Path, method: str, model: str) -> None:
    settings = {"iterations": 1, "evaluation": {"gallery": 1, "base_test": False, "test": False}}
    run = prepare_run(compose("paper-dry", method, settings, model=model), tmp_path)
    Session(run, say=lambda line: None).execute()
    record = json.loads((run.folder / "metrics.jsonl").read_text())
    assert record["grad_norm"] > 0
    assert record["reward_std"] > 0
    assert run.status()["state"] == "finished"
    assert any((run.folder / "checkpoints" / "final").rglob("*.safetensors"))
