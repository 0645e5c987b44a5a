"""A shard holds what its run holds, in few bytes, and always the same ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from fabricated import WriteRun

from analysis.cells.logs import find_runs, load_logs
from analysis.cells.settings import split_settings
from analysis.runs.gallery import read_gallery
from analysis.runs.shards import read_shard_gallery, write_shards
from harness.foundation.errors import ConfigError


@pytest.fixture
def shards(grid: Path, tmp_path: Path) -> Path:
    write_shards(grid, tmp_path / "shards")
    return tmp_path / "shards"


def test_numbers_survive_exactly(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run("exact")
    rng = np.random.default_rng(0)
    values = [*rng.normal(size=5), *rng.normal(size=5).round(6), 1e-300, 1e300, 0.1 + 0.2, 2147.483648, -0.0, 5e9]
    lines = [json.dumps({"iteration": i + 1, "odd": value}) for i, value in enumerate(values)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    [shard] = write_shards(run, tmp_path / "shards")
    odd = load_logs(shard.parent).runs.query("metric == 'odd'")["value"]
    assert odd.tolist() == [float(value) for value in values]


def test_a_shard_has_as_many_pictures_as_it_should(grid: Path, shards: Path, tmp_path: Path) -> None:
    run, shard = grid / "grid" / "ours-0", shards / "grid" / "ours-0.parquet"
    assert read_shard_gallery(shard) == read_gallery(run)
    one, none = (write_shards(run, tmp_path / str(number), num_pictures=number) for number in (1, 0))
    assert len(read_shard_gallery(*one).pictures) == 1
    assert read_shard_gallery(*none) is None


def test_neither_a_shard_nor_its_page_tells_where_files_lay(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run("own", selection="Own")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config |= {"plugins": {"Own": {"source": "/home/me/rules.py:Own"}}, "prompts": {"train": "/home/me/train.txt"}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    command = "adagrpo train --seeds 1 selection=/home/me/rules.py:Own prompts.train=/home/me/train.txt"
    (run / "identity.json").write_text(json.dumps({"command": command}))
    [shard] = write_shards(run, tmp_path / "shards")
    assert b"/home/me" not in shard.read_bytes()
    summary = load_logs(shard.parent).summary
    told = "adagrpo train --seeds 1 selection=rules.py:Own prompts.train=train.txt"
    assert summary["environment"][0]["command"] == told
    shown, _ = split_settings(summary["config"])
    assert (shown["plugins.Own.source"], shown["prompts.train"]) == ("rules.py:Own", "train.txt")


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


def test_pictures_are_kept_of_the_first_finished_seed_of_each_cell_and_folder(
    write_run: WriteRun, tmp_path: Path
) -> None:
    write_run("base-seed1-a", seed=1, state="running")
    write_run("base-seed10-b", seed=10)
    write_run("base-seed9-c", seed=9)
    write_run("base-seed11-d", seed=11, rollout={"group_size": 12})
    write_run("ours-seed3-e", seed=3, selection="medium")
    write_run("../other/base-seed12-f", seed=12, experiment="other")
    written = write_shards(tmp_path / "runs", tmp_path / "shards")
    kept = [path.stem for path in written if read_shard_gallery(path) is not None]
    assert kept == ["base-seed11-d", "base-seed9-c", "ours-seed3-e", "base-seed12-f"]
