"""Runs that differ in any setting are told apart; runs that differ in none are not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.cells.labels import Cell
from analysis.cells.logs import load_chosen_prompts, load_logs, load_summary
from analysis.cells.study import adagrpo_pairs, missing_cells, split_studies
from analysis.cells.variants import name_variants, variant_of_base
from analysis.report.report import write_report
from analysis.report.tables import cell_rows

WriteRun = Callable[..., Path]
BASE, OURS = Cell("flow_grpo", "random", False, 0.0), Cell("flow_grpo", "curriculum", True, 1.0)


def run(settings: dict[str, Any] | None = None, **config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and environment of a run; ``settings`` as it recorded them, None for a run that did not."""
    whole = {
        "experiment": "e",
        "method": {"kernel": "flow_grpo"},
        "reward": {"ocr": 1.0},
        "iterations": 80,
        "rollout": {"group_size": 8, "branch_indices": [0, 1]},
        "model": {"path": "/here/base"},
    }
    return whole | config, {} if settings is None else {"settings": settings}


def names(*runs: tuple[dict[str, Any], dict[str, Any]]) -> list[str]:
    return name_variants([config for config, _ in runs], [environment for _, environment in runs])


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"rollout": {"group_size": 15, "branch_indices": [0, 1]}}, "G 15"),
        ({"rollout": {"group_size": 8, "branch_indices": [0, 1, 2, 3]}}, "branches 0 1 2 3"),
        ({"iterations": 140}, "140 iterations"),
        ({"model": {"path": "/here/weak"}}, "model weak"),
        ({"objective": {"kl_beta": 0.1}}, "objective.kl_beta 0.1"),
        ({"iterations": 140, "rollout": {"group_size": 4, "branch_indices": [0, 1]}}, "140 iterations, G 4"),
    ],
)
def test_a_variant_names_what_differs_from_most_runs(config: dict[str, Any], name: str) -> None:
    assert names(run(), run(**config), run()) == ["", name, ""]


def test_what_changes_no_number_makes_no_variant() -> None:
    same = {"seed": 5, "runtime": {"threads": 2}, "logging": {"wandb": "off"}, "model": {"path": "/there/base"}}
    assert names(run(), run(**same), run(prompts={"train": "/elsewhere"})) == ["", "", ""]


def test_methods_and_rewards_have_usual_settings_of_their_own() -> None:
    dance = {"method": {"kernel": "dance_grpo", "eta": 3.0}}
    colour = {"reward": {"colour": 1.0}, "iterations": 5}
    assert names(run(), run(), run(**dance), run(**colour)) == ["", "", "", ""]


def test_a_setting_that_an_old_run_does_not_know_is_at_its_default() -> None:
    old = run({"iterations": 80})
    new = run({"iterations": 80}, fusion={"kind": "fused"})
    control = run({"iterations": 80, "fusion": {"kind": "rescaled"}}, fusion={"kind": "rescaled"})
    assert names(old, new, control) == ["", "", "fusion rescaled"]
    # A run that did not record its settings cannot say that it is like the others.
    unknown = (old[0], {})
    assert names(unknown, new, new) == ["fusion unset", "", ""]


def test_of_equally_frequent_settings_the_default_is_the_usual_one() -> None:
    large, small = run({"rollout": {"group_size": 15}}, rollout={"group_size": 15}), run({})
    assert names(large, small) == names(small, large)[::-1] == ["G 15", ""]


def test_the_base_of_a_variant_differs_in_what_a_base_reads() -> None:
    assert variant_of_base("decay 0.95, G 15, B 24") == "G 15"
    assert variant_of_base("fusion rescaled") == variant_of_base("anchor before") == ""
    assert variant_of_base("branches 0 1, P 2") == "branches 0 1, P 2"


def test_variants_are_cells_of_their_own(write_run: WriteRun, tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(f"base-{seed}", seed=seed, test=0.5)
        write_run(f"ours-{seed}", seed=seed, test=0.6, selection="curriculum", fusion=True)
    large, slow = {"rollout": {"group_size": 15}}, {"capability": {"decay": 0.95}}
    write_run("base-large", seed=0, test=0.7, **large)
    write_run("ours-large", seed=0, test=0.9, selection="curriculum", fusion=True, **large)
    write_run("ours-slow", seed=0, test=0.8, selection="curriculum", fusion=True, **slow)
    [study] = split_studies(load_logs(tmp_path / "runs", ()))
    ours_large, base_large = OURS._replace(variant="G 15"), BASE._replace(variant="G 15")
    ours_slow = OURS._replace(variant="decay 0.95")
    assert [cell for cell, _ in study.cells] == [BASE, OURS, base_large, ours_large, ours_slow]
    assert study.values(OURS, "training_reward").tolist() == [0.6, 0.6]
    assert study.compare(ours_large, "training_reward").difference == pytest.approx(0.2)
    assert study.compare(ours_slow, "training_reward").difference == pytest.approx(0.3)
    assert [row.seeds for row in cell_rows(study)] == [2, 2, 1, 1, 1]
    assert adagrpo_pairs(study) == [(BASE, [OURS])]
    assert ours_large.label == "Flow-GRPO + AdaGRPO, G 15"
    # A variant alone does not fill a cell of the paper's grid.
    write_run("medium-large", selection="medium", **large)
    [study] = split_studies(load_logs(tmp_path / "runs", ()))
    assert "medium" in [cell.selection for cell in missing_cells(study)["flow_grpo"]]
    # Frames of all kinds know the variant.
    assert load_summary(tmp_path / "runs").set_index("run_id").loc["ours-slow", "variant"] == "decay 0.95"
    chosen = load_chosen_prompts(tmp_path / "runs")
    assert set(chosen["variant"]) == {"", "G 15", "decay 0.95"}


def test_a_cell_of_another_setting_has_no_base_but_its_own(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("base-0")
    write_run("base-1", seed=1)
    write_run("ours-large", selection="curriculum", fusion=True, rollout={"group_size": 15})
    [study] = split_studies(load_logs(tmp_path / "runs", ()))
    assert study.base_of(OURS._replace(variant="G 15")) is None


def test_other_fusion_weights_stand_beside_the_release_s(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("base")
    write_run("ours", selection="curriculum", fusion=True)
    write_run("ours-5", selection="curriculum", fusion={"enabled": True, "weight": 5.0})
    [study] = split_studies(load_logs(tmp_path / "runs", ()))
    assert [cell for cell, _ in study.grid_cells] == [BASE, OURS]
    assert len(study.cells) == 3


def record_files(run: Path, **fingerprints: str) -> Path:
    (run / "identity.json").write_text(json.dumps({"fingerprints": fingerprints}), encoding="utf-8")
    return run


def test_runs_of_another_test_list_are_cells_of_their_own_in_every_table(write_run: WriteRun, tmp_path: Path) -> None:
    lists = {"model": "m", "train": "a"}
    for seed in range(3):
        record_files(write_run(f"base-{seed}", seed=seed, test=0.5), test="long", **lists)
    # The list was edited, and the same cell and seed run again; its partner exists for the old list alone.
    record_files(write_run("base-0-again", seed=0, test=0.9), test="edited", **lists)
    record_files(write_run("ours-0", seed=0, test=0.6, selection="curriculum", fusion=True), test="long", **lists)
    runs = tmp_path / "runs"
    [study] = split_studies(load_logs(runs, ()))
    assert study.values(BASE, "training_reward").tolist() == [0.5, 0.5, 0.5]
    [other] = [cell for cell, _ in study.cells if cell.variant]
    assert other.variant.startswith("test list ")
    assert study.values(other, "training_reward").tolist() == [0.9]
    assert study.compare(OURS, "training_reward").difference == pytest.approx(0.1)
    write_report(runs, tmp_path / "report")
    for name in ("tables/cells.md", "tables/cells.csv", "report.html"):
        assert other.label in (tmp_path / "report" / name).read_text(encoding="utf-8")


def test_a_cell_is_compared_with_a_base_of_its_own_files_alone(write_run: WriteRun, tmp_path: Path) -> None:
    for seed in range(2):
        record_files(write_run(f"base-{seed}", seed=seed), test="long", reward="1")
        ours = write_run(f"ours-{seed}", seed=seed, selection="curriculum", fusion=True, base_test=None)
        record_files(ours, test="edited", reward="1")
    [study] = split_studies(load_logs(tmp_path / "runs", ()))
    [ours] = [cell for cell, _ in study.cells if cell.selection == "curriculum"]
    [base] = [cell for cell, _ in study.cells if cell.selection == "random"]
    assert {bool(ours.variant), bool(base.variant)} == {True, False}
    assert study.compare(ours, "training_reward") is None
    # Nor is the untrained model that of another list.
    assert study.untrained(ours)[1] == "validation"


def test_runs_that_recorded_no_files_are_told_apart_by_what_they_measured(write_run: WriteRun, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1), ("c", 1)):
        write_run(name, seed=seed)
    longer = tmp_path / "runs" / "grid" / "a" / "eval.jsonl"
    text = longer.read_text(encoding="utf-8")
    before, end = text[: text.rindex("num_prompts")], text[text.rindex("num_prompts") :]
    longer.write_text(before + end.replace(": 2", ": 3", 1), encoding="utf-8")
    variants = load_summary(tmp_path / "runs").set_index("run_id")["variant"]
    assert variants.to_dict() == {"a": "test prompts 3", "b": "run b", "c": "run c"}
    record_files(tmp_path / "runs" / "grid" / "c", test="edited")
    assert load_summary(tmp_path / "runs").set_index("run_id")["variant"]["c"] == "files recorded"


def test_weights_and_scales_that_look_alike_are_not_pooled() -> None:
    weights = run(reward={"ocr": 1.0, "colour": 0.12345678}), run(reward={"ocr": 1.0, "colour": 0.12345679})
    assert sorted(names(*weights)) == ["", "reward.colour 0.12345679"]
    scaled = run(rewards={"ocr": {"scale": 2.0}}), run(rewards={"ocr": {"scale": 3.0, "path": "elsewhere"}})
    assert sorted(names(*scaled)) == ["", "rewards.ocr.scale 3.0"]
