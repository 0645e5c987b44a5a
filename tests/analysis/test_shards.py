"""A shard holds what its run holds, in few bytes, and always the same ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricated import WriteRun

from analysis.cells.logs import find_runs, load_logs
from analysis.runs.gallery import read_gallery
from analysis.runs.runlog import read_directory
from analysis.runs.shards import read_shard, read_shard_gallery, write_shards
from harness.foundation.errors import ConfigError


@pytest.fixture
def shards(grid: Path, tmp_path: Path) -> Path:
    write_shards(grid, tmp_path / "shards")
    return tmp_path / "shards"


def test_logs_of_shards_equal_those_of_their_runs(grid: Path, shards: Path) -> None:
    ours, theirs = load_logs(shards), load_logs(grid)
    pd.testing.assert_frame_equal(ours.runs, theirs.runs)
    pd.testing.assert_frame_equal(ours.summary.drop(columns="folder"), theirs.summary.drop(columns="folder"))
    assert (ours.configs, ours.environments) == (theirs.configs, theirs.environments)
    np.testing.assert_equal(ours.prompts, theirs.prompts)
    assert [c.prompts.to_pylist() for c in ours.chosen_prompts] == [
        c.prompts.to_pylist() for c in theirs.chosen_prompts
    ]


def test_numbers_survive_exactly(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run("exact")
    rng = np.random.default_rng(0)
    values = [*rng.normal(size=5), *rng.normal(size=5).round(6), 1e-300, 1e300, 0.1 + 0.2, 2147.483648, -0.0, 5e9]
    lines = [json.dumps({"iteration": i + 1, "odd": value}) for i, value in enumerate(values)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    [shard] = write_shards(run, tmp_path / "shards")
    odd = load_logs(shard.parent).runs.query("metric == 'odd'")["value"]
    assert odd.tolist() == [float(value) for value in values]


def test_a_shard_has_its_runs_documents_and_pictures(grid: Path, shards: Path, tmp_path: Path) -> None:
    run, shard = grid / "grid" / "ours-0", shards / "grid" / "ours-0.parquet"
    ours, theirs = read_shard(shard), read_directory(run)
    assert (ours.config, ours.status, ours.environment) == (theirs.config, theirs.status, theirs.environment)
    assert (ours.run_id, ours.iteration) == ("ours-0", 2)
    assert read_shard_gallery(shard) == read_gallery(run)
    one, none = (write_shards(run, tmp_path / str(number), num_pictures=number) for number in (1, 0))
    assert len(read_shard_gallery(*one).pictures) == 1
    assert read_shard_gallery(*none) is None


def test_only_finished_runs_have_shards(grid: Path, write_run: WriteRun, tmp_path: Path) -> None:
    write_run("base-2", seed=2, state="running")
    write_run("base-3", seed=3, state="failed", reason="no memory")
    written = write_shards(grid, tmp_path / "shards")
    names = [f"grid/{name}.parquet" for name in ("base-0", "base-1", "ours-0", "ours-1")]
    assert [path.relative_to(tmp_path / "shards").as_posix() for path in written] == names


def test_writing_again_replaces_only_what_is_not_as_the_run_says(grid: Path, shards: Path) -> None:
    shard = shards / "grid" / "base-0.parquet"
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards.rglob("*.parquet")}
    shard.write_bytes(before[shard][0][:100])
    write_shards(grid, shards)
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards.rglob("*.parquet")}
    assert after[shard][0] == before[shard][0]
    assert {path: before[path] == after[path] for path in before if path != shard} == dict.fromkeys(
        before.keys() - {shard}, True
    )


def test_directories_and_shards_are_read_together(grid: Path, shards: Path) -> None:
    complete = load_logs(grid).runs
    shutil.rmtree(grid / "grid" / "base-0")
    shutil.move(shards, grid / "shards")
    # Of the three runs that are there twice, the shards count.
    names = ["base-0.parquet", "base-1.parquet", "ours-0.parquet", "ours-1.parquet"]
    assert [path.name for path in find_runs(grid)] == names
    assert load_logs(grid).runs.equals(complete)
    (grid / "shards" / "grid" / "ours-1.parquet").unlink()
    assert sorted(path.name for path in find_runs(grid))[-1] == "ours-1"
    assert len(load_logs(grid).runs) == len(complete)


@pytest.mark.parametrize("content", [b"", b"PAR1 nonsense", None])
def test_what_is_no_shard_is_named(shards: Path, content: bytes | None) -> None:
    path = shards / "grid" / "base-0.parquet"
    if content is None:
        pd.DataFrame({"a": [1]}).to_parquet(path)
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"grid/base-0\.parquet: (cannot be read|no shard of a run)") as caught:
        load_logs(shards)
    assert "\n" not in str(caught.value)


def test_pictures_are_kept_of_each_cell_s_first_seed(write_run: WriteRun, tmp_path: Path) -> None:
    for cell, seed in (("base", 10), ("base", 9), ("ours", 3)):
        write_run(f"{cell}-seed{seed}-abc", seed=seed)
    written = write_shards(tmp_path / "runs", tmp_path / "shards")
    kept = [path.stem for path in written if read_shard_gallery(path) is not None]
    assert kept == ["base-seed9-abc", "ours-seed3-abc"]


def test_an_unfinished_run_another_setting_and_another_folder_take_no_pictures_from_a_cell(
    write_run: WriteRun, tmp_path: Path
) -> None:
    write_run("base-seed1-a", seed=1, state="running")
    write_run("base-seed2-b", seed=2)
    write_run("base-seed3-c", seed=3)
    write_run("base-seed3-d", seed=3, rollout={"group_size": 12})
    write_run("../other/base-seed4-e", seed=4, experiment="other")
    written = write_shards(tmp_path / "runs", tmp_path / "shards")
    kept = [path.stem for path in written if read_shard_gallery(path) is not None]
    assert kept == ["base-seed2-b", "base-seed3-d", "base-seed4-e"]
