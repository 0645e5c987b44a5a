"""The files under experiments/: all compose, published values stand where they should, and the dry run runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.config import EXPERIMENTS, ConfigError, RunConfig, compose, grid_of
from harness.experiments.grid import expand_grid
from harness.foundation.names import REWARDS
from harness.runs.directory import RunDirectory, prepare_run
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


def native(method: str, model: str = "flux") -> RunConfig:
    return compose(f"native-{model}", method)


def test_adagrpo_s_release() -> None:
    config = compose("paper")
    assert config.selection == "curriculum"
    assert config.fusion.enabled
    assert (config.method.kernel, config.method.eta, config.model.num_steps, config.model.shift) == (
        "flow_grpo",
        0.7,
        16,
        3,
    )
    rollout, objective = config.rollout, config.objective
    assert (rollout.kind, rollout.candidates, rollout.group_size) == ("anchor_branch", 10, 12)
    assert rollout.branch_indices == (0, 2, 4, 6)
    assert rollout.prompts_per_update == config.runtime.processes == 8
    assert (objective.updates_per_iteration, objective.update_on, objective.is_on_policy) == (4, "steps", True)
    assert (config.optimizer.tuning, config.optimizer.learning_rate, config.iterations) == ("full", 2e-6, 300)
    lora = compose("paper-lora")
    assert (lora.optimizer.tuning, lora.optimizer.lora.rank, lora.optimizer.learning_rate) == ("lora", 64, 1e-4)
    assert lora.objective.updates_per_iteration == 1
    assert lora.rollout == rollout


def test_flow_grpo_s_and_flow_cps_s_releases() -> None:
    flux, cps, sd35 = native("flow_grpo_flux"), native("flow_cps_flux"), native("flow_grpo_sd35", "sd35")
    for config in (flux, cps, sd35):
        assert (config.rollout.group_size, config.rollout.prompts_per_update) == (24, 48)
        assert (config.objective.updates_per_iteration, config.objective.update_on) == (2, "prompts")
        assert (config.objective.clip_range, config.objective.normalisation) == (1e-4, "batch_std")
        assert (config.optimizer.weight_ema, config.optimizer.weight_ema_interval) == (0.9, 8)
        assert config.optimizer.learning_rate == 3e-4
        # The last step is never trained.
        assert config.rollout.branch_indices == tuple(range(config.model.num_steps - 1))
    assert (flux.model.num_steps, flux.model.shift, flux.method.eta, flux.objective.kl_beta) == (6, "dynamic", 0.9, 0)
    assert cps.method.kernel == "flow_cps"
    assert cps.model_dump(exclude={"method"}) == flux.model_dump(exclude={"method"})
    assert (sd35.model.num_steps, sd35.model.guidance, sd35.method.eta, sd35.objective.kl_beta) == (10, 4.5, 0.7, 0.01)
    assert (flux.evaluation.num_steps, sd35.evaluation.num_steps) == (28, 40)
    assert (flux.optimizer.lora.rank, sd35.optimizer.lora.rank) == (64, 32)


def test_dance_grpo_s_release() -> None:
    full, lora = native("dance_grpo_flux"), native("dance_grpo_flux_lora")
    assert (full.model.height, full.model.num_steps, lora.model.num_steps) == (720, 16, 12)
    assert (full.rollout.trained_share, full.rollout.trained_draw, full.rollout.shared_noise) == (0.6, "sample", True)
    assert full.method.eta == 0.3
    assert full.rollout.branch_indices == tuple(range(15))
    assert (full.optimizer.max_grad_norm, full.optimizer.weight_ema) == (0.01, 0.995)
    assert (lora.optimizer.lora.rank, lora.optimizer.max_grad_norm, lora.optimizer.weight_ema) == (128, 1.0, None)


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
    assert (
        judges
        == {"hpsv2", "hpsv3", "clip", "pickscore"}
        == {n for n, r in REWARDS.items() if r.path and "native" in r.backends}
    )


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


def dry(folder: Path, **cell: Any) -> RunDirectory:
    settings = {"iterations": 1, "evaluation": {"gallery": 1, "base_test": False}}
    return prepare_run(compose("paper-dry", cell["method"], settings, model=cell["model"]), folder)


@pytest.mark.parametrize(("method", "model"), [("adagrpo_flux_cps", "flux-twin"), ("flow_grpo_fast_sd35", "sd35-twin")])
def test_a_cell_of_the_dry_run_trains_evaluates_and_saves(tmp_path: Path, method: str, model: str) -> None:
    run = dry(tmp_path, method=method, model=model)
    Session(run, say=lambda line: None).execute()
    record = json.loads((run.folder / "metrics.jsonl").read_text())
    assert record["grad_norm"] > 0
    assert record["reward_std"] > 0
    assert run.status()["state"] == "finished"
    assert any((run.folder / "checkpoints" / "final").rglob("*.safetensors"))
