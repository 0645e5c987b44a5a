"""Runs that differ in any setting are told apart; runs that differ in none are not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fabricated import WriteRun, study_of

from analysis.cells.labels import ADAGRPO as OURS
from analysis.cells.labels import BASE, Cell
from analysis.cells.logs import load_logs
from analysis.cells.study import adagrpo_pairs, missing_cells
from analysis.cells.variants import name_variants, variant_of_base
from analysis.report.tables import cell_frame
from analysis.runs.sources import changes_since

ADAGRPO = {"selection": "curriculum", "fusion": True}


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
        ({"model": {"path": "/here/weak"}}, "model weak"),
        ({"objective": {"kl_beta": 0.1}}, "objective.kl_beta 0.1"),
        ({"iterations": 140, "rollout": {"group_size": 4, "branch_indices": [0, 1]}}, "140 iterations, G 4"),
        # What changes no number.
        ({"seed": 5, "runtime": {"threads": 2}, "logging": {"wandb": "off"}, "model": {"path": "/there/base"}}, ""),
        ({"prompts": {"train": "/elsewhere"}}, ""),
        # Methods and rewards have usual settings of their own.
        ({"method": {"kernel": "dance_grpo", "eta": 3.0}}, ""),
        ({"reward": {"colour": 1.0}, "iterations": 5}, ""),
    ],
)
def test_a_variant_names_what_differs_from_most_runs(config: dict[str, Any], name: str) -> None:
    assert names(run(), run(**config), run()) == ["", name, ""]


def test_processes_count_where_numbers_depend_on_them() -> None:
    def per_rank(processes: int, settings: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
        return run(settings, capability={"sync": "per_rank"}, runtime={"processes": processes})

    assert names(per_rank(2, None), per_rank(2, None), per_rank(8, None)) == ["", "", "processes 8"]
    recorded = [per_rank(of, {"runtime": {"processes": of}}) for of in (2, 2, 8)]
    assert names(*recorded) == ["", "", "processes 8"]
    assert names(run(runtime={"processes": 2}), run(runtime={"processes": 8})) == ["", ""]
    assert variant_of_base("P 2, processes 2") == "P 2"


def test_a_setting_that_an_old_run_does_not_know_is_at_its_default() -> None:
    old = run({"iterations": 80})
    new = run({"iterations": 80}, fusion={"kind": "fused"})
    control = run({"iterations": 80, "fusion": {"kind": "rescaled"}}, fusion={"kind": "rescaled"})
    assert names(old, new, control) == ["", "", "fusion rescaled"]
    # A run that did not record its settings cannot say that it is like the others.
    later = run({"iterations": 80}, objective={"kl_beta": 0.0})
    assert names((old[0], {}), later, later) == ["objective.kl_beta unset", "", ""]


@pytest.mark.parametrize("recorded", [True, False])
def test_only_the_paper_s_fusion_has_no_name_even_if_another_is_more_frequent(recorded: bool) -> None:
    kinds = [
        {},
        {"kind": "fused", "same_length": False},
        *[{"kind": "gated"}] * 3,
        {"kind": "gated", "same_length": True},
    ]
    runs = [run({"fusion": kind} if recorded else None, fusion={"enabled": True, **kind}) for kind in kinds]
    gated = ["fusion gated"] * 3
    assert names(*runs) == ["", "", *gated, "fusion gated, fusion.same_length True"]
    assert names(*runs[2:5]) == gated


def test_weights_and_scales_that_look_alike_are_not_pooled() -> None:
    weights = run(reward={"ocr": 1.0, "colour": 0.12345678}), run(reward={"ocr": 1.0, "colour": 0.12345679})
    assert sorted(names(*weights)) == ["", "reward.colour 0.12345679"]
    scaled = run(rewards={"ocr": {"scale": 2.0}}), run(rewards={"ocr": {"scale": 3.0, "path": "elsewhere"}})
    assert sorted(names(*scaled)) == ["", "rewards.ocr.scale 3.0"]


def test_the_base_of_a_variant_differs_in_what_a_base_reads() -> None:
    assert variant_of_base("decay 0.95, G 15, B 24") == "G 15"
    assert variant_of_base("fusion rescaled") == variant_of_base("anchor before") == ""
    assert variant_of_base("choice.level 0.25") == ""
    assert variant_of_base("choice.floor 0.2") == "choice.floor 0.2"
    assert variant_of_base("branches 0 1, P 2") == "branches 0 1, P 2"


def test_variants_are_cells_of_their_own(write_run: WriteRun, tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(f"base-{seed}", seed=seed, test=0.5)
        write_run(f"ours-{seed}", seed=seed, test=0.6, **ADAGRPO)
    large, slow = {"rollout": {"group_size": 15}}, {"capability": {"decay": 0.95}}
    write_run("base-large", test=0.7, **large)
    write_run("ours-large", test=0.9, **ADAGRPO, **large)
    write_run("ours-slow", test=0.8, **ADAGRPO, **slow)
    # A variant alone does not fill a cell of the paper's grid, and has no base but its own.
    write_run("medium-slow", selection="medium", rollout={"group_size": 4})
    study = study_of(tmp_path / "runs")
    ours_large, base_large = OURS._replace(variant="G 15"), BASE._replace(variant="G 15")
    ours_slow, medium = OURS._replace(variant="decay 0.95"), Cell("flow_grpo", "medium", False, 0.0, "G 4")
    assert [cell for cell, _ in study.cells] == [BASE, OURS, base_large, ours_large, ours_slow, medium]
    assert study.values(OURS, "training_reward").tolist() == [0.6, 0.6]
    assert study.compare(ours_large, "training_reward").difference == pytest.approx(0.2)
    assert study.compare(ours_slow, "training_reward").difference == pytest.approx(0.3)
    assert cell_frame(study)["seeds"].tolist() == [2, 2, 1, 1, 1, 1]
    assert adagrpo_pairs(study) == [(BASE, [OURS])]
    assert ours_large.label == "Flow-GRPO + AdaGRPO, G 15"
    assert "medium" in [cell.selection for cell in missing_cells(study)["flow_grpo"]]
    assert study.base_of(medium) is None
    # Another processor's rounding is no treatment.
    summary = study.summary.copy()
    summary.loc[summary["run_id"] == "ours-1", "processor"] = "another"
    assert replace(study, summary=summary).compare(OURS, "training_reward").seeds == [0]


def test_a_run_that_has_not_begun_changes_no_names(write_run: WriteRun, tmp_path: Path) -> None:
    for seed, rule in enumerate((None, None, "a.py:Rule", "b.py:Rule")):
        own = {} if rule is None else {"plugins": {"Rule": {"source": rule}}}
        run = write_run(f"run-{seed}", seed=seed, selection="Rule" if rule else "random", **own)
        (run / "identity.json").write_text(json.dumps({"settings": {"selection": "random"}}), encoding="utf-8")
        (run / "environment.json").write_text(json.dumps({"commit": "abc", "settings": {}}), encoding="utf-8")
    (run / "environment.json").unlink()
    summary = load_logs(tmp_path / "runs").summary
    assert set(summary["variant"]) == {""}
    assert [bool(changes_since(environment)) for environment in summary["environment"]] == [True, True, True, False]


def record_files(run: Path, **fingerprints: str) -> None:
    (run / "identity.json").write_text(json.dumps({"fingerprints": fingerprints}), encoding="utf-8")


def test_runs_of_another_test_list_are_cells_of_their_own(write_run: WriteRun, tmp_path: Path) -> None:
    lists = {"model": "m", "train": "a"}
    for seed in range(3):
        record_files(write_run(f"base-{seed}", seed=seed, test=0.5), test="long", **lists)
    # The list was edited, and the same cell and seed run again; its partner exists for the old list alone.
    record_files(write_run("base-0-again", test=0.9), test="edited", **lists)
    record_files(write_run("ours-0", test=0.6, **ADAGRPO), test="long", **lists)
    study = study_of(tmp_path / "runs")
    assert study.values(BASE, "training_reward").tolist() == [0.5, 0.5, 0.5]
    [other] = [cell for cell, _ in study.cells if cell.variant]
    assert other.variant.startswith("test list ")
    assert study.values(other, "training_reward").tolist() == [0.9]
    assert study.compare(OURS, "training_reward").difference == pytest.approx(0.1)


def test_a_cell_is_compared_with_a_base_of_its_own_files_alone(write_run: WriteRun, tmp_path: Path) -> None:
    for seed in range(2):
        record_files(write_run(f"base-{seed}", seed=seed), test="long", reward="1")
        record_files(write_run(f"ours-{seed}", seed=seed, base_test=None, **ADAGRPO), test="edited", reward="1")
    study = study_of(tmp_path / "runs")
    [ours] = [cell for cell, _ in study.cells if cell.selection == "curriculum"]
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

    def variants() -> dict[str, str]:
        return load_logs(tmp_path / "runs").summary.set_index("run_id")["variant"].to_dict()

    assert variants() == {"a": "test prompts 3", "b": "run b", "c": "run c"}
    record_files(tmp_path / "runs" / "grid" / "c", test="edited")
    assert variants()["c"] == "files recorded"
