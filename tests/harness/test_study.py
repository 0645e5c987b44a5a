"""The study: its seeds and costs are as planned, and it runs only what has no shard."""

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.testing import assert_close

from analysis import paper
from harness.cli import main
from harness.config import EXPERIMENTS, compose
from harness.experiments import study
from harness.experiments.grid import parse_seeds
from harness.experiments.jobs import process, runner
from harness.experiments.study import read_study
from harness.foundation import processor
from harness.foundation.errors import FileError
from harness.foundation.plugins import find
from harness.models.miniature.prompts import list_path
from harness.runs import directory as runs
from harness.training.accounting import expected_cost

Adagrpo = Callable[..., int]
EXPERIMENT = "miniature-study"


def test_a_shard_for_which_there_is_no_space_is_one_line(
    lora_run: runs.RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*of: object) -> None:
        raise FileError("shard: cannot be written: No space left on device")

    monkeypatch.setattr(study, "write_shards", full)
    study.keep(tmp_path, (), lora_run)
    assert capsys.readouterr().err.count("No space left") == 1


def test_seeds_of_the_study_are_used_nowhere_else() -> None:
    own = {seed for name in read_study().names for seed in _seeds(EXPERIMENTS / "study" / f"{name}.yaml")}
    paths = [path for kind in ("grids", "sweeps", "studies") for path in (EXPERIMENTS / kind).glob("*.yaml")]
    elsewhere = {seed for path in paths if path.stem != "all" for seed in _seeds(path)}
    assert own >= {6000, 7000}
    assert elsewhere.isdisjoint(own)


def _seeds(path: Path) -> set[int]:
    """Seeds of a file, and of its cells that have their own."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    named = [one["seeds"] for one in (content, *content.get("cells", ())) if "seeds" in one]
    return {seed for seeds in named for seed in (seeds if isinstance(seeds, list) else parse_seeds(str(seeds)))}


def test_equal_compute_is_equal_by_the_trainer_s_counts() -> None:
    runs = read_study().configs("selection", seeds=[6000])
    [adagrpo] = {expected_cost(c).forwards * c.iterations for c in runs if c.fusion.enabled}
    usual = next(c for c in runs if c.selection == "curriculum")
    baselines = [
        expected_cost(c).forwards * c.iterations
        for c in runs
        if c.selection == "random" and (c.iterations, c.rollout.group_size) != (usual.iterations, 8)
    ]
    assert len(baselines) == 2
    assert all(0.97 * adagrpo < baseline < 1.02 * adagrpo for baseline in baselines)


def test_shuffled_siblings_get_each_other_s_advantages_whatever_they_earned() -> None:
    shuffled = find(str(EXPERIMENTS / "study" / "shuffled.py") + ":Shuffled").made()
    groups = torch.rand(400, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    earned = (groups - groups.mean(1, keepdim=True)) / groups.std(1, keepdim=True)
    got = torch.stack([shuffled(group) for group in groups])
    assert_close(got.sort(1).values, earned.sort(1).values)
    assert abs((got * earned).mean()) < 0.05  # its standard error is .018
    assert got.equal(torch.stack([shuffled(group) for group in groups]))
    assert not shuffled(torch.ones(8)).any()


def test_the_paper_s_overhead_is_what_its_setting_costs() -> None:
    base, adagrpo = (
        expected_cost(compose("paper", overrides=[f"selection={s}", f"fusion.enabled={f}"]))
        for s, f in (("random", "false"), ("curriculum", "true"))
    )
    assert (base.sample_forwards / 8, adagrpo.sample_forwards / 8) == (592, 736)
    assert adagrpo.sample_forwards / base.sample_forwards - 1 == pytest.approx(paper.overhead())


# --- execution --------------------------------------------------------------------------------------------------------

WORKER = """
import json, sys
from harness.experiments import runs
from harness.experiments.jobs import worker
from harness.runs.directory import RunDirectory

def train(folder):
    run = RunDirectory(folder)
    config = run.config
    with (folder.parent / "executed").open("a") as log:
        log.write(run.run_id + "\\n")
    (folder / "environment.json").write_text(json.dumps({"processor": "the one (AVX2)"}))
    rate = config.optimizer.learning_rate
    if rate > 0.5:
        run.set_status("failed", 0, 2, "diverged")
        raise ValueError
    for iteration in (1, 2):
        metrics = {"colour": 0.8}
        record = {"split": "validation", "metrics": metrics, "seconds": 6.0, "num_prompts": 3, "num_noises": 1}
        run.append("eval.jsonl", {"iteration": iteration, **record})
        seconds = {"reward": 1.0, "iteration": 3.0}
        totals = {"sample_forwards": 4 * iteration, "train_forwards": 0, "reward_calls": iteration}
        counts = {f"total_{name}": total for name, total in totals.items()}
        run.append("metrics.jsonl", {"iteration": iteration, "seconds": seconds, **counts})
    run.set_status("finished", 2, 2)

runs._train = train
sys.exit(worker.main())
"""

TINY = {
    "profile": "miniature-study",
    "seeds": "500-501",
    "cells": [{"method": "study_flow_grpo", "selection": ["random", "medium"]}],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository's worth of experiments, runs and shards, with workers that are quick."""
    shutil.copytree(EXPERIMENTS, tmp_path / "experiments")
    for module in ("harness.config", "harness.config.composition"):
        monkeypatch.setattr(f"{module}.EXPERIMENTS", tmp_path / "experiments")
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    profile = tmp_path / "experiments" / "profiles" / "miniature-study.yaml"
    settings = yaml.safe_load(profile.read_text())
    settings |= {"iterations": 2, "reward": {"colour": 1.0}}
    settings["evaluation"] |= {"judges": ["colour"], "interval": 1, "validation_prompts": 3, "gallery": 0}
    lines = list_path("test").read_text().splitlines()
    # Short, since every run that is planned checks them; an iteration draws up to 24 prompts to train on.
    for split, number in (("train", 24), ("validation", 5), ("test", 5)):
        (tmp_path / f"{split}.txt").write_text("\n".join(lines[:number]) + "\n")
    settings["prompts"] = {split: str(tmp_path / f"{split}.txt") for split in ("train", "validation", "test")}
    settings["prompts"]["allow_overlap"] = True
    profile.write_text(yaml.safe_dump(settings))

    def command(placement: object, arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-c", WORKER, *arguments]

    monkeypatch.setattr(process, "command", command)
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.05)
    write(tmp_path, "all", shards=str(tmp_path / "shards"), experiments=["tiny"])
    write(tmp_path, "tiny", **TINY)
    return tmp_path


def write(folder: Path, name: str, **content: Any) -> None:
    (folder / "experiments" / "studies" / f"{name}.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture
def adagrpo(folder: Path, capsys: pytest.CaptureFixture[str]) -> Adagrpo:
    """Runs ``adagrpo study`` on the folder's study; returns its exit code."""

    def run(*arguments: str) -> int:
        path = folder / "experiments" / "studies" / "all.yaml"
        with pytest.raises(SystemExit) as exit_:
            main(["study", *arguments, "--study", str(path)])
        return int(exit_.value.code or 0)

    return run


def executed(folder: Path, experiment: str = EXPERIMENT) -> list[str]:
    path = folder / "runs" / experiment / "executed"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return sorted(lines)


def test_only_runs_without_a_shard_are_executed(folder: Path, adagrpo: Adagrpo) -> None:
    assert adagrpo() == 0
    shards = sorted((folder / "shards" / EXPERIMENT).glob("*.parquet"))
    assert executed(folder) == [shard.stem for shard in shards]
    assert len(shards) == 4
    # As in a fresh clone: the shards are there, the run directories are not.
    shutil.rmtree(folder / "runs")
    contents = {shard: shard.read_bytes() for shard in shards}
    for lost in (shards[1], shards[2]):
        lost.unlink()
    assert adagrpo() == 0
    assert executed(folder) == [shards[1].stem, shards[2].stem]
    assert sorted((folder / "shards" / EXPERIMENT).glob("*.parquet")) == shards
    assert all(shards[number].read_bytes() == contents[shards[number]] for number in (0, 3))
    # As after an end between a run and its shard.
    shards[1].unlink()
    assert adagrpo() == 0
    assert shards[1].exists()
    assert executed(folder) == []


def test_experiments_share_runs_and_the_plan_counts_them_once(
    folder: Path, adagrpo: Adagrpo, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "with_capability", lambda: "the one (AVX2)")
    both = {"method": "study_flow_grpo", "selection": ["random", "hardest"], "seeds": [500]}
    write(folder, "more", **TINY | {"cells": [both]})
    write(folder, "all", shards=str(folder / "shards"), experiments=["tiny", "more"], budget_hours=0.001)
    assert adagrpo("--plan") == 0
    text = capsys.readouterr().out
    assert [line.split()[:6] for line in text.splitlines()[1:3]] == [
        ["tiny", "2", "4", "0", "0", "4"],
        ["more", "2", "2", "1", "0", "1"],
    ]
    assert "not known before a run has finished" in text
    assert executed(folder) == []
    assert adagrpo("tiny", "--only", "selection=random", "--seeds", "500,501") == 0
    assert len(executed(folder)) == 2
    assert adagrpo("--plan") == 0
    text = capsys.readouterr().out
    assert [line.split()[:6] for line in text.splitlines() if line.startswith(("tiny", "more"))] == [
        ["tiny", "2", "4", "0", "2", "2"],
        ["more", "2", "2", "1", "0", "1"],
    ]
    # 2 of 3 s per iteration are the network's, for 4 forwards; 1 s per reward call; 2 s per picture.
    assert "500.00 ms per forward, 1000.0 ms per reward call, 2000 ms per picture" in text
    cost = expected_cost(compose("miniature-study", "study_flow_grpo", overrides=["selection=medium"]))
    left = 3 * (2 * (cost.forwards * 0.5 + cost.reward_calls) + (2 * 3 + 3 * 5) * 2.0) / 3600
    assert "of several processors" not in text
    monkeypatch.setattr(processor, "with_capability", lambda: "the one (AVX512)")
    assert adagrpo("--plan") == 0  # one run of each seed is made, the other would be made here
    said = "would be, of several processors: miniature-study 500, miniature-study 501; pairs across"
    assert said in capsys.readouterr().out
    assert f"about {left:.2f} core-hours left, {left + 2 * 18 / 3600:.2f} in all; budget 0.001: OVER by" in text


def test_a_failed_run_is_named_and_the_others_are_kept(
    folder: Path, adagrpo: Adagrpo, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [{"selection": "random"}, {"selection": "medium", "optimizer.learning_rate": 0.9}]
    write(folder, "tiny", **TINY | {"cells": cells, "seeds": [500]})
    assert adagrpo() == 1
    assert "diverged" in capsys.readouterr().err
    assert len(list((folder / "shards").rglob("*.parquet"))) == 1


def test_an_unknown_key_of_the_file_is_an_error(
    folder: Path, adagrpo: Adagrpo, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, "all", shards="x", experiment=["a"])
    assert adagrpo() == 2
    assert "unknown key 'experiment'; the nearest is 'experiments'" in capsys.readouterr().err
