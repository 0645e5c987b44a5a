"""The study: its files keep to the protocol, it runs only what has no shard, and tuning comes first."""

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis import paper
from analysis.cells.logs import load_logs
from analysis.cells.variants import name_variants
from analysis.claims import EXPERIMENT, PILOT_SEEDS, PRIMARY, STUDY_SEEDS, TEST_NOISES, Arm
from analysis.verdicts.exploratory import questions
from harness.cli import main
from harness.config import EXPERIMENTS, RunConfig, compose, numeric_settings
from harness.experiments.jobs import process, runner
from harness.experiments.study import read_study
from harness.experiments.tuning import tuned_text
from harness.foundation.trained_reward import TrainedReward
from harness.models.miniature.prompts import list_path
from harness.runs import directory as runs
from harness.training.accounting import expected_cost

Adagrpo = Callable[..., int]


def arms_of(configs: Sequence[RunConfig]) -> dict[Arm, list[int]]:
    """Seeds of each cell, named as the analysis will name it."""
    dumps = [config.model_dump(mode="json") for config in configs]
    variants = name_variants(dumps, [{"settings": numeric_settings(config)} for config in configs])
    arms: dict[Arm, list[int]] = {}
    for config, variant in zip(configs, variants, strict=True):
        weight = config.fusion.weight if config.fusion.enabled else 0.0
        arm = Arm(config.method.kernel, config.selection, weight, variant, TrainedReward(config.reward).name)
        arms.setdefault(arm, []).append(config.seed)
    return arms


# --- the committed files ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experiments() -> dict[str, list[RunConfig]]:
    study = read_study()
    return {name: study.configs(name) for name in study.names}


def test_seeds_and_pairs_are_the_protocol_s(experiments: dict[str, list[RunConfig]]) -> None:
    assert {path.stem for path in (EXPERIMENTS / "studies").glob("*.yaml")} == {"all", *experiments}
    assert {config.seed for config in experiments["tuning"]} <= set(PILOT_SEEDS)
    files = [*(EXPERIMENTS / "grids").glob("*.yaml"), *(EXPERIMENTS / "sweeps").glob("*.yaml")]
    elsewhere = {seed for path in files for seed in yaml.safe_load(path.read_text())["seeds"]}
    assert elsewhere.isdisjoint({*STUDY_SEEDS, *PILOT_SEEDS})
    arms = arms_of([config for name, of_name in experiments.items() if name != "tuning" for config in of_name])
    for arm, seeds in arms.items():
        assert sorted(set(seeds)) == list(STUDY_SEEDS[: len(set(seeds))]), arm
    for claim in (*PRIMARY, *(question.claim for question in questions())):
        assert {claim.treatment, claim.control} <= set(arms), claim.name
        assert len(set(arms[claim.treatment]) & set(arms[claim.control])) == claim.seeds, claim.name


def test_runs_are_measured_as_the_protocol_says(experiments: dict[str, list[RunConfig]]) -> None:
    for name, configs in experiments.items():
        wanted = ("miniature-tuning", False) if name == "tuning" else (EXPERIMENT, True)
        for config in configs:
            assert (config.experiment, config.evaluation.test) == wanted
            assert config.evaluation.test_noises == TEST_NOISES
            assert {"ocr", "ocr-v4", "colour"} == set(config.evaluation.judges)


def test_base_and_adagrpo_cells_share_their_tuned_settings(experiments: dict[str, list[RunConfig]]) -> None:
    for config in [*experiments["main"], *experiments["rewards"]]:
        own = config.model_dump(exclude={"seed", "selection", "fusion", "reward"})
        base = compose("miniature-study", f"study_{config.method.kernel}")
        assert own == base.model_dump(exclude={"seed", "selection", "fusion", "reward"})


def test_equal_compute_is_equal_by_the_trainer_s_counts(experiments: dict[str, list[RunConfig]]) -> None:
    [adagrpo] = {
        expected_cost(c).forwards * c.iterations
        for c in experiments["main"]
        if arms_of([c]).keys() == {PRIMARY[5].treatment}
    }
    baselines = {expected_cost(c).forwards * c.iterations for c in experiments["compute"]}
    assert len(baselines) == 2
    assert all(0.99 * adagrpo < baseline < 1.02 * adagrpo for baseline in baselines)


def test_the_paper_s_overhead_is_what_its_setting_costs() -> None:
    base, adagrpo = (
        expected_cost(compose("paper", overrides=[f"selection={s}", f"fusion.enabled={f}"]))
        for s, f in (("random", "false"), ("curriculum", "true"))
    )
    assert (base.sample_forwards / 8, adagrpo.sample_forwards / 8) == (592, 736)
    assert adagrpo.sample_forwards / base.sample_forwards - 1 == pytest.approx(paper.overhead())


def test_tuning_costs_every_method_the_same(experiments: dict[str, list[RunConfig]]) -> None:
    settings: dict[str, set[tuple[float, float]]] = {}
    for config in experiments["tuning"]:
        assert (config.selection, config.fusion.enabled) == ("random", False)
        settings.setdefault(config.method.kernel, set()).add((config.method.eta, config.optimizer.learning_rate))
    assert {len(of_method) for of_method in settings.values()} == {5}


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
    rate = config.optimizer.learning_rate
    if rate > 0.5:
        run.set_status("failed", 0, 2, "diverged")
        raise ValueError
    # The best rate is .01 for Flow-GRPO and .001 for Flow-CPS.
    best = 0.01 if config.method.kernel == "flow_grpo" else 0.001
    for iteration in (1, 2):
        metrics = {"colour": 0.9 if rate == best else 0.8}
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
    "seeds": "500-502",
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
    assert len(shards) == 6
    # As in a fresh clone: the shards are there, the run directories are not.
    shutil.rmtree(folder / "runs")
    contents = {shard: shard.read_bytes() for shard in shards}
    for lost in (shards[1], shards[4]):
        lost.unlink()
    assert adagrpo() == 0
    assert executed(folder) == [shards[1].stem, shards[4].stem]
    assert sorted((folder / "shards" / EXPERIMENT).glob("*.parquet")) == shards
    assert all(shards[number].read_bytes() == contents[shards[number]] for number in (0, 2, 3, 5))
    # As after an end between a run and its shard.
    shards[1].unlink()
    assert adagrpo() == 0
    assert shards[1].exists()
    assert executed(folder) == []


def test_experiments_share_runs_and_the_plan_counts_them_once(
    folder: Path, adagrpo: Adagrpo, capsys: pytest.CaptureFixture[str]
) -> None:
    both = {"method": "study_flow_grpo", "selection": ["random", "hardest"], "seeds": [500]}
    write(folder, "more", **TINY | {"cells": [both]})
    write(folder, "all", shards=str(folder / "shards"), experiments=["tiny", "more"], budget_hours=0.001)
    assert adagrpo("--plan") == 0
    text = capsys.readouterr().out
    assert [line.split()[:6] for line in text.splitlines()[1:3]] == [
        ["tiny", "2", "6", "0", "0", "6"],
        ["more", "2", "2", "1", "0", "1"],
    ]
    assert "not known before a run has finished" in text
    assert executed(folder) == []
    assert adagrpo("tiny", "--only", "selection=random", "--seeds", "500,501") == 0
    assert len(executed(folder)) == 2
    assert adagrpo("--plan") == 0
    text = capsys.readouterr().out
    assert [line.split()[:6] for line in text.splitlines() if line.startswith(("tiny", "more"))] == [
        ["tiny", "2", "6", "0", "2", "4"],
        ["more", "2", "2", "1", "0", "1"],
    ]
    # 2 of 3 s per iteration are the network's, for 4 forwards; 1 s per reward call; 2 s per picture.
    assert "500.00 ms per forward, 1000.0 ms per reward call, 2000 ms per picture" in text
    base = compose("miniature-study", "study_flow_grpo")
    costs = {s: expected_cost(base.model_copy(update={"selection": s})) for s in ("random", "medium")}
    each = {s: 2 * (c.forwards * 0.5 + c.reward_calls) + (2 * 3 + 3 * 5) * 2.0 for s, c in costs.items()}
    left = (each["random"] + 4 * each["medium"]) / 3600
    assert f"about {left:.2f} core-hours left, {left + 2 * 18 / 3600:.2f} in all; budget 0.001: OVER by" in text


def test_a_failed_run_is_named_and_the_others_are_kept(
    folder: Path, adagrpo: Adagrpo, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [{"selection": "random"}, {"selection": "medium", "optimizer.learning_rate": 0.9}]
    write(folder, "tiny", **TINY | {"cells": cells, "seeds": [500]})
    assert adagrpo() == 1
    assert "diverged" in capsys.readouterr().err
    assert len(list((folder / "shards").rglob("*.parquet"))) == 1


def tuning(folder: Path, rates: Mapping[str, list[float]]) -> None:
    cells = [
        {"method": kernel, "optimizer.learning_rate": of_kernel, "experiment": "tune", "evaluation.test": False}
        | {"evaluation.base_test": False}
        for kernel, of_kernel in rates.items()
    ]
    write(folder, "tuning", profile="miniature-study", seeds=list(PILOT_SEEDS), cells=cells)
    write(folder, "all", shards=str(folder / "shards"), experiments=["tiny"], tuning="tuning")


def test_tuning_comes_first_and_its_choice_is_what_the_others_run_with(
    folder: Path, adagrpo: Adagrpo, capsys: pytest.CaptureFixture[str]
) -> None:
    tuning(folder, {"flow_grpo": [0.001, 0.01, 0.9], "flow_cps": [0.001, 0.01]})
    assert adagrpo("tiny") == 2
    assert "tuning comes first, and 10 of its 10 runs are left" in capsys.readouterr().err
    # The rate that diverges is a failed run, and out.
    assert adagrpo() == 1
    assert len(executed(folder, "tune")) == 10
    chosen = {kernel: compose("miniature-study", f"study_{kernel}") for kernel in ("flow_grpo", "flow_cps")}
    assert {k: c.optimizer.learning_rate for k, c in chosen.items()} == {"flow_grpo": 0.01, "flow_cps": 0.001}
    comment = (folder / "experiments" / "methods" / "study_flow_grpo.yaml").read_text()
    assert "# eta 0.7, 0.01: 0.9000 (2 seeds)\n# eta 0.7, 0.001: 0.8000 (2 seeds)\n" in comment
    summary = load_logs(folder / "shards" / EXPERIMENT).summary
    assert len(summary) == 6
    # By hand afterwards: refused.
    (folder / "experiments" / "methods" / "study_flow_cps.yaml").write_text(tuned_text("flow_cps", 0.7, 0.02, []))
    assert adagrpo("tiny") == 2
    assert "not what tuning chose, eta 0.7 and learning rate 0.001" in capsys.readouterr().err


def test_a_method_that_no_setting_trains_is_an_error(
    folder: Path, adagrpo: Adagrpo, capsys: pytest.CaptureFixture[str]
) -> None:
    tuning(folder, {"flow_grpo": [0.01], "flow_cps": [0.9]})
    assert adagrpo() == 2
    assert "no setting of flow_cps finished with every pilot seed" in capsys.readouterr().err
    write(folder, "all", shards="x", experiment=["a"])
    assert adagrpo() == 2
    assert "unknown key 'experiment'; the nearest is 'experiments'" in capsys.readouterr().err


@pytest.mark.parametrize("rate", [3e-4, 1.5e-4, 0.01])
def test_tuned_settings_survive_their_file(tmp_path: Path, rate: float) -> None:
    content = yaml.safe_load(tuned_text("flow_cps", 0.7, rate, ["because"]))
    assert content == {"extends": "flow_cps", "method": {"eta": 0.7}, "optimizer": {"learning_rate": rate}}
