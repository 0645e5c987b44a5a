"""Logs of runs, finished or broken off, become the tidy frame that they should."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from fabricated import WriteRun, study_of

from analysis.cells.logs import COLUMNS, Logs, find_runs, load_logs
from analysis.cells.spending import FORWARDS, REWARD_CALLS, SECONDS, spent
from analysis.runs.runlog import read_directory
from harness.foundation.errors import ConfigError


@pytest.fixture(scope="module")
def logs(same_grid: Path) -> Logs:
    return load_logs(same_grid)


def test_the_frame_has_one_row_a_number(logs: Logs) -> None:
    frame = logs.runs
    assert list(frame.columns) == COLUMNS
    # Two iterations of reward_mean, 3 totals and 2 phases; five evaluations of 5 metrics, the training reward, seconds,
    # and the numbers of prompts and noises. With candidates, there is a capability, too.
    of_base, of_ours = 2 * 6 + 5 * 9, 2 * 7 + 5 * 9
    assert frame.groupby("run_id").size().tolist() == [of_base, of_base, of_ours, of_ours]
    updates = frame[(frame["run_id"] == "base-0") & (frame["metric"] == "seconds/update")]
    assert updates["value"].tolist() == [0.25, 0.25]
    rows = frame[(frame["run_id"] == "ours-1") & (frame["metric"] == "ocr-v4/word_accuracy")]
    places = [("validation", 0), ("validation", 1), ("validation", 2), ("test", 0), ("test", 2)]
    assert [tuple(row) for row in rows[["split", "iteration"]].itertuples(index=False)] == places
    assert rows["value"].tolist() == pytest.approx([0.3, 0.4, 0.5, 0.25, 0.7])
    identity = rows.iloc[0][["experiment", "method", "selection", "fusion", "fusion_weight", "reward", "seed"]]
    assert identity.tolist() == ["grid", "flow_grpo", "curriculum", True, 1.0, "ocr", 1]
    assert frame.query("run_id == 'base-0'")["fusion_weight"].unique().tolist() == [0.0]


def test_training_metrics_can_be_left_out(logs: Logs, same_grid: Path) -> None:
    everything, kept = logs.runs, load_logs(same_grid, ["reward_mean"]).runs
    wanted = everything[(everything["split"] != "train") | (everything["metric"] == "reward_mean")]
    assert kept.astype(str).equals(wanted.reset_index(drop=True).astype(str))


def test_values_of_single_prompts_are_those_of_the_last_evaluations(logs: Logs) -> None:
    prompts = logs.summary["by_prompt"]
    assert prompts[3]["test"]["ocr-v4"].tolist() == [0.85, 0.75]
    assert prompts[3]["test"]["training_reward"].tolist() == [0.95, 0.85]
    # After training began there are two validations, .6 and .7.
    assert prompts[2]["validation"]["training_reward"].tolist() == pytest.approx([0.7, 0.6])


def test_the_prompts_trained_on_are_there_with_their_ranks(logs: Logs) -> None:
    base, ours = logs.summary["chosen_prompts"][[0, 2]]
    assert base.prompts.to_pylist() == ours.prompts.to_pylist() == ["prompt 1", "b", "prompt 2", "b"]
    assert ours.ranks.tolist() == [3, 0, 3, 0]
    assert all(rank != rank for rank in base.ranks)


def test_the_summary_counts_what_a_run_cost(logs: Logs) -> None:
    row = logs.summary.set_index("run_id").loc["base-0"]
    assert (row["state"], row["iteration"], row["iterations"]) == ("finished", 2, 2)
    assert (row["sample_forwards"], row["train_forwards"], row["reward_calls"]) == (200, 20, 40)
    assert row["compute"] == 200 + 3 * 20
    assert (row["seconds_per_iteration"], row["train_seconds"], row["evaluation_seconds"]) == (1.5, 3.0, 5 * 1.5)
    assert row["unseen_judges"] == ["ocr-v4", "colour"]


def test_a_torn_last_line_is_dropped_and_an_iteration_logged_again_counts_once(write_run: WriteRun) -> None:
    run = write_run("resumed")
    before = load_logs(run).runs
    for name in ("metrics.jsonl", "eval.jsonl"):
        with (run / name).open("a") as file:
            file.write('{"iteration": 3, "split": "valid')
    assert load_logs(run).runs.equals(before)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*lines[:-1], '{"iteration": 2, "reward_mean": 0.9}', ""]))
    rewards = load_logs(run).runs.query("metric == 'reward_mean'")
    assert rewards[["iteration", "value"]].to_numpy().tolist() == [[1, 0.1], [2, 0.9]]


def test_a_run_that_just_started_is_running_and_has_no_rows(write_run: WriteRun) -> None:
    run = write_run("new")
    for name in ("status.json", "metrics.jsonl", "eval.jsonl"):
        (run / name).unlink()
    logs = load_logs(run)
    assert (len(logs.runs), list(logs.runs.columns)) == (0, COLUMNS)
    [summary] = logs.summary.to_dict("records")
    assert (summary["state"], summary["iteration"], summary["compute"]) == ("running", 0, 0)


NO_SPLIT = '{"iteration": 1, "split": "holdout", "metrics": {"ocr": 1.0}}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", "seed: [", "cannot be read"),
        ("config.yaml", "seed: 1", "key 'experiment' is missing"),
        ("status.json", "{", "cannot be read"),
        ("eval.jsonl", '{"iteration": 1}\n', "line 1 must be an object with iteration, split and metrics"),
        ("eval.jsonl", NO_SPLIT, "split 'holdout' is none of validation, test"),
        ("metrics.jsonl", '{"iter\n{"iteration": 1}\n', "line 1 is damaged"),
        ("metrics.jsonl", '{"iteration": 1}, {"iteration": 2}\n', "line 1 is damaged"),
        ("metrics.jsonl", '{"iteration": 1, "x": 1.0}\n{"iteration": 2, "x": "high"}\n', "'x' is a number in some"),
    ],
)
def test_an_unreadable_file_is_named(write_run: WriteRun, name: str, content: str, message: str) -> None:
    run = write_run("bad")
    (run / name).write_text(content)
    with pytest.raises(ConfigError, match=rf"bad/{re.escape(name)}: .*{message}"):
        load_logs(run)


@pytest.mark.parametrize("opening", ["[", "- ", "{a: ", "? "])
def test_a_configuration_that_nests_without_end_is_one_error(opening: str, write_run: WriteRun) -> None:
    for depth in (3_000, 25_000):  # read by another parser each
        path = write_run(f"nested-{depth}") / "config.yaml"
        path.write_text(f"reward: {opening * depth}" if opening != "- " else opening * depth, encoding="utf-8")
        with pytest.raises(ConfigError, match=re.escape(str(path))):
            read_directory(path.parent)


def test_runs_are_found_at_any_depth_once(grid: Path) -> None:
    assert [run.name for run in find_runs(grid)] == ["base-0", "base-1", "ours-0", "ours-1"]
    assert find_runs(grid / "grid" / "base-1") == [grid / "grid" / "base-1"]
    # A run directory is not searched for further ones.
    (grid / "grid" / "base-1" / "checkpoints").mkdir()
    (grid / "grid" / "base-1" / "checkpoints" / "config.yaml").touch()
    assert len(find_runs(grid)) == 4
    with pytest.raises(ConfigError, match="no such folder"):
        find_runs(grid / "nowhere")
    shutil.copytree(grid / "grid", grid / "copy" / "grid")
    with pytest.raises(ConfigError, match=r"copy/grid/base-0 and .*runs/grid/base-0 are the same run"):
        load_logs(grid)


@pytest.mark.parametrize(
    ("environment", "device", "expected"),
    [
        ({"resumed": [{"code_sha256": "other", "processor": "A", "gpus": []}]}, "auto", "A"),
        ({"resumed": [{"processor": "B", "gpus": []}]}, "auto", "A, then B (run)"),
        ({"gpus": ["G", "G"]}, "cpu", "A"),
        ({"gpus": ["G", "G"]}, "auto", "A, G"),
        ({"gpus": ["G"], "resumed": [{"processor": "A", "gpus": ["H"]}]}, "cuda", "A, G, then A, H (run)"),
    ],
)
def test_a_run_is_of_all_hardware_that_made_it(
    write_run: WriteRun, environment: dict[str, Any], device: str, expected: str
) -> None:
    run = write_run("run", runtime={"device": device})
    (run / "environment.json").write_text(json.dumps({"processor": "A"} | environment))
    assert load_logs(run).summary["processor"].tolist() == [expected]


def test_spending_is_summed_up_to_each_iteration(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("ours", selection="curriculum", rewards=(0.1, 0.2, 0.3, 0.4))
    table = spent(load_logs(tmp_path / "runs").runs).set_index("iteration")
    # Fabricated iterations: 200 forwards, 10 trained samples, 20 reward calls, as many seconds as their number.
    assert table[FORWARDS].tolist() == [230, 460, 690]
    assert table[REWARD_CALLS].tolist() == [20, 40, 60]
    assert table[SECONDS].tolist() == [1, 3, 6]


def test_seconds_are_averaged_over_runs_of_the_processor_that_made_most(write_run: WriteRun, tmp_path: Path) -> None:
    for seed, processor in enumerate(("slow", "fast", "fast")):
        run = write_run(f"run-{seed}", seed=seed)
        (run / "environment.json").write_text(json.dumps({"processor": processor}))
    study = study_of(tmp_path / "runs")
    assert study.processor == "fast"
    assert set(study.timed(study.summary)["run_id"]) == {"run-1", "run-2"}
