"""A shard holds what its run holds, in few bytes, and always the same ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.cells.logs import (
    find_runs,
    load_chosen_prompts,
    load_logs,
    load_prompt_values,
    load_runs,
    load_summary,
)
from analysis.runs.gallery import read_gallery
from analysis.runs.runlog import RunLogError, read_directory
from analysis.runs.shards import read_shard, read_shard_gallery, write_shards

WriteRun = Callable[..., Path]


@pytest.fixture
def shards(grid: Path, tmp_path: Path) -> Path:
    write_shards(grid, tmp_path / "shards")
    return tmp_path / "shards"


def test_frames_of_shards_equal_those_of_their_runs(grid: Path, shards: Path) -> None:
    for load in (load_runs, load_prompt_values, load_chosen_prompts):
        pd.testing.assert_frame_equal(load(shards), load(grid))
    pd.testing.assert_frame_equal(
        load_summary(shards).drop(columns="folder"), load_summary(grid).drop(columns="folder")
    )
    assert load_logs(shards).configs == load_logs(grid).configs
    assert load_logs(shards).environments == load_logs(grid).environments


def test_numbers_survive_exactly(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run("exact")
    rng = np.random.default_rng(0)
    values = [*rng.normal(size=5), *rng.normal(size=5).round(6), 1e-300, 1e300, 0.1 + 0.2, 2147.483648, -0.0, 5e9]
    lines = [json.dumps({"iteration": i + 1, "odd": value}) for i, value in enumerate(values)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    [shard] = write_shards(run, tmp_path / "shards")
    odd = load_runs(shard.parent).query("metric == 'odd'")["value"]
    assert odd.tolist() == [float(value) for value in values]


def test_a_shard_has_its_runs_documents_and_pictures(grid: Path, shards: Path) -> None:
    run, shard = grid / "grid" / "ours-0", shards / "grid" / "ours-0.parquet"
    ours, theirs = read_shard(shard), read_directory(run)
    assert (ours.config, ours.status, ours.environment) == (theirs.config, theirs.status, theirs.environment)
    assert (ours.run_id, ours.iteration) == ("ours-0", 2)
    assert read_shard_gallery(shard) == read_gallery(run)
    assert [picture.prompt for picture in read_gallery(run).pictures] == [
        'the word "dog" in red on white',
        'the word "zebra" in blue on yellow',
    ]


def test_pictures_can_be_fewer_or_left_out(grid: Path, tmp_path: Path) -> None:
    one = write_shards(grid, tmp_path / "one", num_pictures=1)[0]
    assert len(read_shard_gallery(one).pictures) == 1
    none = write_shards(grid, tmp_path / "none", num_pictures=0)[0]
    assert read_shard_gallery(none) is None
    assert load_runs(tmp_path / "none").equals(load_runs(tmp_path / "one"))


def test_only_finished_runs_have_shards(grid: Path, write_run: WriteRun, tmp_path: Path) -> None:
    write_run("base-2", seed=2, state="running")
    write_run("base-3", seed=3, state="failed", reason="no memory")
    written = write_shards(grid, tmp_path / "shards")
    assert [path.relative_to(tmp_path / "shards").as_posix() for path in written] == [
        f"grid/{name}.parquet" for name in ("base-0", "base-1", "ours-0", "ours-1")
    ]


def test_writing_again_changes_nothing(grid: Path, shards: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards.rglob("*") if path.is_file()}
    write_shards(grid, shards)
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards.rglob("*") if path.is_file()}
    assert before == after
    assert len(before) == 4


def test_a_shard_that_is_not_what_the_run_says_is_replaced(grid: Path, shards: Path) -> None:
    shard = shards / "grid" / "base-0.parquet"
    right = shard.read_bytes()
    shard.write_bytes(right[:100])
    write_shards(grid, shards)
    assert shard.read_bytes() == right


def test_directories_and_shards_are_read_together(grid: Path, shards: Path) -> None:
    complete = load_runs(grid)
    shutil.rmtree(grid / "grid" / "base-0")
    shutil.move(shards, grid / "shards")
    # Of the three runs that are there twice, the shards count.
    assert [path.name for path in find_runs(grid)] == [
        f"{name}.parquet" for name in ("base-0", "base-1", "ours-0", "ours-1")
    ]
    assert load_runs(grid).equals(complete)
    (grid / "shards" / "grid" / "ours-1.parquet").unlink()
    assert sorted(path.name for path in find_runs(grid))[-1] == "ours-1"
    assert len(load_runs(grid)) == len(complete)


@pytest.mark.parametrize("content", [b"", b"PAR1 nonsense", b"x" * 4000])
def test_a_broken_shard_is_named(shards: Path, content: bytes) -> None:
    (shards / "grid" / "base-0.parquet").write_bytes(content)
    with pytest.raises(RunLogError, match=r"grid/base-0\.parquet: cannot be read: ") as caught:
        load_runs(shards)
    assert "\n" not in str(caught.value)


def test_another_parquet_file_is_named(shards: Path) -> None:
    pd.DataFrame({"a": [1]}).to_parquet(shards / "other.parquet")
    with pytest.raises(RunLogError, match=r"other\.parquet: no shard of a run"):
        load_summary(shards)


def test_a_run_of_a_hundred_iterations_fits_into_few_kilobytes(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run("large", rewards=(0.5, 0.6, 0.7, 0.8, 0.9), interval=25)
    rng = np.random.default_rng(0)
    steps = [
        {"iteration": i, **{f"metric_{k}": float(rng.normal()) for k in range(20)}, "prompts": [f"prompt {i}"]}
        for i in range(1, 101)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    lines = []
    for iteration, split, count in [*((i, "validation", 96) for i in range(0, 101, 25)), (100, "test", 240)]:
        per_prompt = {f"judge_{k}": rng.uniform(size=count).round(6).tolist() for k in range(6)}
        lines.append({"iteration": iteration, "split": split, "metrics": {}, "per_prompt": per_prompt})
    (run / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    [shard] = write_shards(run, tmp_path / "shards")
    logged = sum((run / name).stat().st_size for name in ("metrics.jsonl", "eval.jsonl"))
    # 20 x 100 numbers of 8 bytes, 4,320 of 3 bytes, and little else.
    assert shard.stat().st_size < 36_000 < logged / 2


def test_pictures_are_kept_of_each_cell_s_first_seed(write_run: WriteRun, tmp_path: Path) -> None:
    for cell, seed in (("base", 10), ("base", 9), ("ours", 3)):
        write_run(f"{cell}-seed{seed}-abc", seed=seed)
    written = write_shards(tmp_path / "runs", tmp_path / "shards")
    kept = [path.stem for path in written if read_shard_gallery(path) is not None]
    assert kept == ["base-seed9-abc", "ours-seed3-abc"]
