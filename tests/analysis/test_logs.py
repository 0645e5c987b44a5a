"""Logs of runs, finished or broken off, become the tidy frame that they should."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.cells.labels import PAPER_GRID, cell_colour, cell_label
from analysis.cells.logs import (
    COLUMNS,
    find_runs,
    load_chosen_prompts,
    load_logs,
    load_prompt_values,
    load_runs,
    load_summary,
)
from analysis.runs.runlog import RunLogError, read_directory

WriteRun = Callable[..., Path]


def test_the_frame_has_one_row_a_number(grid: Path) -> None:
    frame = load_runs(grid)
    assert list(frame.columns) == COLUMNS
    # Two iterations of reward_mean, 3 totals and 2 phases; five evaluations of 5 metrics, the training reward, seconds,
    # and the numbers of prompts and noises. With candidates, there is a capability, too.
    of_base, of_ours = 2 * 6 + 5 * 9, 2 * 7 + 5 * 9
    assert frame.groupby("run_id").size().to_dict() == {
        "base-0": of_base,
        "base-1": of_base,
        "ours-0": of_ours,
        "ours-1": of_ours,
    }
    rows = frame[(frame["run_id"] == "ours-1") & (frame["metric"] == "ocr-v4/word_accuracy")]
    assert [tuple(row) for row in rows[["split", "iteration"]].itertuples(index=False)] == [
        ("validation", 0),
        ("validation", 1),
        ("validation", 2),
        ("test", 0),
        ("test", 2),
    ]
    assert rows["value"].tolist() == pytest.approx([0.3, 0.4, 0.5, 0.25, 0.7])
    identity = rows.iloc[0][["experiment", "method", "selection", "fusion", "fusion_weight", "reward", "seed"]]
    assert identity.tolist() == ["grid", "flow_grpo", "curriculum", True, 1.0, "ocr", 1]


def test_nested_metrics_are_flattened_and_nulls_and_lists_left_out(grid: Path) -> None:
    train = load_runs(grid).query("split == 'train' and run_id == 'base-0'")
    assert set(train["metric"]) == {
        "reward_mean",
        "total_sample_forwards",
        "total_train_forwards",
        "total_reward_calls",
        "seconds/update",
        "seconds/iteration",
    }
    assert train[train["metric"] == "seconds/update"]["value"].tolist() == [0.25, 0.25]


def test_training_metrics_can_be_left_out(grid: Path) -> None:
    everything = load_runs(grid)
    kept = load_runs(grid, train_metrics=["reward_mean"])
    wanted = everything[(everything["split"] != "train") | (everything["metric"] == "reward_mean")]
    assert kept.astype(str).equals(wanted.reset_index(drop=True).astype(str))
    assert set(load_runs(grid, train_metrics=())["split"]) == {"validation", "test"}


def test_evaluations_are_there_prompt_by_prompt(grid: Path) -> None:
    frame = load_prompt_values(grid).query("run_id == 'ours-1' and iteration == 2 and metric == 'training_reward'")
    assert frame[["prompt", "value"]].to_numpy().tolist() == [[0, 0.95], [1, 0.85]]
    assert set(load_prompt_values(grid, "validation")["iteration"]) == {0, 1, 2}
    last = load_logs(grid).test_prompts[3]
    assert last["ocr-v4"].tolist() == [0.85, 0.75]
    assert last["training_reward"].tolist() == [0.95, 0.85]


def test_the_prompts_trained_on_are_there_with_their_ranks(grid: Path) -> None:
    frame = load_chosen_prompts(grid)
    ours, base = (frame[frame["run_id"] == name] for name in ("ours-0", "base-0"))
    assert ours[["iteration", "slot", "prompt", "rank"]].to_numpy().tolist() == [
        [1, 0, "prompt 1", 3],
        [1, 1, "b", 0],
        [2, 0, "prompt 2", 3],
        [2, 1, "b", 0],
    ]
    assert base["prompt"].tolist() == ["prompt 1", "b", "prompt 2", "b"]
    assert base["rank"].isna().all()


def test_a_base_run_has_no_fusion_weight(grid: Path) -> None:
    assert load_runs(grid).query("run_id == 'base-0'")["fusion_weight"].unique().tolist() == [0.0]


def test_the_summary_counts_what_a_run_cost(grid: Path) -> None:
    row = load_summary(grid).set_index("run_id").loc["base-0"]
    assert (row["state"], row["iteration"], row["iterations"]) == ("finished", 2, 2)
    assert (row["sample_forwards"], row["train_forwards"], row["reward_calls"]) == (200, 20, 40)
    assert row["compute"] == 200 + 3 * 20
    assert (row["seconds_per_iteration"], row["train_seconds"], row["evaluation_seconds"]) == (1.5, 3.0, 5 * 1.5)
    assert row["unseen_judges"] == ["ocr-v4", "colour"]


def test_the_training_reward_of_a_weighted_sum_is_the_sum(write_run: WriteRun) -> None:
    run = write_run("sum", reward={"ocr": 1.0, "colour": 0.5}, rewards=(0.5,), test=None, base_test=0.4)
    frame = load_runs(run)
    assert frame["reward"].unique().tolist() == ["ocr+0.5*colour"]
    value = frame.query("metric == 'training_reward' and split == 'validation'")["value"]
    assert value.tolist() == pytest.approx([0.5 + 0.5 * 0.9])
    assert load_summary(run)["unseen_judges"].tolist() == [["ocr-v4"]]
    by_prompt = load_prompt_values(run).query("metric == 'training_reward'")["value"]
    assert by_prompt.tolist() == pytest.approx([0.45 + 0.5 * 0.95, 0.35 + 0.5 * 0.85])


def test_a_torn_last_line_is_dropped(write_run: WriteRun) -> None:
    run = write_run("torn")
    before = load_runs(run)
    for name in ("metrics.jsonl", "eval.jsonl"):
        with (run / name).open("a") as file:
            file.write('{"iteration": 3, "split": "valid')
    assert load_runs(run).equals(before)


def test_a_torn_line_within_a_file_is_an_error_that_names_it(write_run: WriteRun) -> None:
    run = write_run("broken")
    path = run / "metrics.jsonl"
    path.write_text('{"iter\n' + path.read_text())
    with pytest.raises(RunLogError, match=r"broken/metrics\.jsonl: line 1 is not JSON"):
        load_runs(run)


def test_two_lines_in_one_are_an_error_that_names_them(write_run: WriteRun) -> None:
    run = write_run("joined")
    path = run / "metrics.jsonl"
    path.write_text(path.read_text().replace("}\n{", "}, {"))
    with pytest.raises(RunLogError, match=r"joined/metrics\.jsonl: line 1 is not JSON"):
        load_runs(run)


def test_an_iteration_logged_again_after_a_resume_counts_once(write_run: WriteRun) -> None:
    run = write_run("resumed")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 2, "reward_mean": 0.9}\n')
    rewards = load_runs(run).query("metric == 'reward_mean'")
    assert rewards[["iteration", "value"]].to_numpy().tolist() == [[1, 0.1], [2, 0.9]]


def test_a_run_that_just_started_is_running_and_has_no_rows(write_run: WriteRun) -> None:
    run = write_run("new")
    for name in ("status.json", "metrics.jsonl", "eval.jsonl"):
        (run / name).unlink()
    frame, summary = load_runs(run), load_summary(run)
    assert (len(frame), list(frame.columns)) == (0, COLUMNS)
    assert (summary["state"].item(), summary["iteration"].item(), summary["compute"].item()) == ("running", 0, 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", "seed: [", r"bad/config\.yaml: cannot be read"),
        ("config.yaml", "seed: 1", r"bad/config\.yaml: no run's configuration: key 'experiment' is missing"),
        ("status.json", "{", r"bad/status\.json: cannot be read"),
        (
            "eval.jsonl",
            '{"iteration": 1}\n',
            r"bad/eval\.jsonl: line 1 must be an object with iteration, metrics, split",
        ),
        (
            "eval.jsonl",
            '{"iteration": 1, "split": "holdout", "metrics": {"ocr": 1.0}}\n',
            r"bad/eval\.jsonl: split 'holdout' is none of validation, test",
        ),
    ],
)
def test_an_unreadable_file_is_named(write_run: WriteRun, name: str, content: str, message: str) -> None:
    run = write_run("bad")
    (run / name).write_text(content)
    with pytest.raises(RunLogError, match=message):
        load_runs(run) if name != "status.json" else load_summary(run)


def test_runs_are_found_at_any_depth_and_a_missing_folder_is_an_error(grid: Path) -> None:
    assert [run.name for run in find_runs(grid)] == ["base-0", "base-1", "ours-0", "ours-1"]
    assert find_runs(grid / "grid" / "base-1") == [grid / "grid" / "base-1"]
    # A run directory is not searched for further ones.
    (grid / "grid" / "base-1" / "checkpoints").mkdir()
    (grid / "grid" / "base-1" / "checkpoints" / "config.yaml").touch()
    assert len(find_runs(grid)) == 4
    with pytest.raises(RunLogError, match="no such folder"):
        find_runs(grid / "nowhere")


def test_two_directories_of_one_run_are_an_error(grid: Path) -> None:
    shutil.copytree(grid / "grid", grid / "copy" / "grid")
    with pytest.raises(RunLogError, match=r"copy/grid/base-0 and .*runs/grid/base-0 are the same run"):
        load_runs(grid)


def test_a_metric_that_is_not_always_a_number_is_named(write_run: WriteRun) -> None:
    run = write_run("mixed")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "reward_mean": "high"}\n')
    with pytest.raises(RunLogError, match=r"mixed/metrics\.jsonl: 'reward_mean' is a number in some lines"):
        load_runs(run)


def test_the_papers_grid_has_thirty_cells() -> None:
    assert len(set(PAPER_GRID)) == 30
    assert {cell.label for cell in PAPER_GRID if cell.method == "flow_cps"} >= {"Flow-CPS", "Flow-CPS + AdaGRPO"}


def test_cells_have_the_names_of_the_field() -> None:
    assert cell_label("flow_grpo", "random", False) == "Flow-GRPO"
    assert cell_label("dance_grpo", "curriculum", True) == "DanceGRPO + AdaGRPO"
    assert cell_label("flow_cps", "curriculum", False) == "Flow-CPS + curriculum"
    assert cell_label("flow_grpo", "random", True) == "Flow-GRPO + fusion"
    assert cell_label("flow_grpo", "hardest", False) == "Flow-GRPO hardest"
    assert cell_label("flow_grpo", "hardest", True) == "Flow-GRPO hardest + fusion"
    assert cell_colour("random", False) != cell_colour("curriculum", True) != cell_colour("curriculum", False)


@pytest.mark.parametrize("opening", ["[", "- ", "{a: ", "? "])
def test_a_configuration_that_nests_without_end_is_one_error(opening: str, write_run: WriteRun) -> None:
    for depth in (3_000, 100_000):
        path = write_run(f"nested-{depth}") / "config.yaml"
        path.write_text(f"reward: {opening * depth}" if opening != "- " else opening * depth, encoding="utf-8")
        with pytest.raises(RunLogError, match=re.escape(str(path))):
            read_directory(path.parent)
