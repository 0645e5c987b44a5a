"""Logs of runs, finished or broken off, become the tidy frame that they should."""

from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.labels import cell_colour, cell_label
from analysis.logs import COLUMNS, RunLogError, find_runs, load_runs, load_summary, reward_name

WriteRun = Callable[..., Path]


def test_the_frame_has_one_row_a_number(grid: Path) -> None:
    frame = load_runs(grid)
    assert list(frame.columns) == COLUMNS
    # Two iterations of reward_mean, 3 totals and 2 phases; five evaluations of 4 metrics and the training reward.
    assert frame.groupby("run_id").size().to_dict() == dict.fromkeys(
        ["base-0", "base-1", "ours-0", "ours-1"], 2 * 6 + 5 * 5
    )
    rows = frame[(frame["run_id"] == "ours-1") & (frame["metric"] == "ocr-v4/word_accuracy")]
    assert [tuple(row) for row in rows[["split", "iteration"]].itertuples(index=False)] == [
        ("test", 0),
        ("validation", 0),
        ("validation", 1),
        ("test", 2),
        ("validation", 2),
    ]
    assert rows["value"].tolist() == pytest.approx([0.25, 0.3, 0.4, 0.7, 0.5])
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


def test_a_base_run_has_no_fusion_weight(grid: Path) -> None:
    assert load_runs(grid).query("run_id == 'base-0'")["fusion_weight"].unique().tolist() == [0.0]


def test_the_summary_counts_what_a_run_cost(grid: Path) -> None:
    row = load_summary(grid).set_index("run_id").loc["base-0"]
    assert (row["state"], row["iteration"], row["iterations"]) == ("finished", 2, 2)
    assert (row["sample_forwards"], row["train_forwards"], row["reward_calls"]) == (200, 20, 40)
    assert row["compute"] == 200 + 3 * 20
    assert row["seconds_per_iteration"] == 1.5
    assert row["unseen_judges"] == ["ocr-v4", "colour"]


def test_the_training_reward_of_a_weighted_sum_is_the_sum(write_run: WriteRun) -> None:
    run = write_run("sum", reward={"ocr": 1.0, "colour": 0.5}, rewards=(0.5,))
    frame = load_runs(run)
    assert frame["reward"].unique().tolist() == ["ocr+0.5*colour"]
    value = frame.query("metric == 'training_reward' and split == 'validation'")["value"]
    assert value.tolist() == pytest.approx([0.5 + 0.5 * 0.9])
    assert load_summary(run)["unseen_judges"].tolist() == [["ocr-v4"]]


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
    with pytest.raises(RunLogError, match="no such folder"):
        find_runs(grid / "nowhere")


def test_cells_have_the_names_of_the_field() -> None:
    assert cell_label("flow_grpo", "random", False) == "Flow-GRPO"
    assert cell_label("dance_grpo", "curriculum", True) == "DanceGRPO + AdaGRPO"
    assert cell_label("flow_cps", "curriculum", False) == "Flow-CPS + curriculum"
    assert cell_label("flow_grpo", "random", True) == "Flow-GRPO + fusion"
    assert cell_label("flow_grpo", "hardest", False) == "Flow-GRPO hardest"
    assert cell_label("flow_grpo", "hardest", True) == "Flow-GRPO hardest + fusion"
    assert cell_colour("random", False) != cell_colour("curriculum", True) != cell_colour("curriculum", False)


def test_a_reward_is_named_by_its_weighted_parts() -> None:
    assert reward_name({"ocr": 1.0}) == "ocr"
    assert reward_name({"ocr": 1.0, "colour": 0.5}) == reward_name({"colour": 0.5, "ocr": 1.0}) == "ocr+0.5*colour"
    assert reward_name({"a": -1.0, "b": -0.25}) == "-a-0.25*b"
