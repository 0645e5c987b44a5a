"""What a run logs is what the analysis reads: a real run, interrupted once, and every reward of the paper's grid."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from analysis.cells.logs import TRAINING_REWARD, load_logs
from analysis.runs.shards import write_shards
from harness.config import EXPERIMENTS, ROOT, RunConfig, compose, dump
from harness.foundation.errors import ConfigError
from harness.rewards import build_weighted
from harness.runs.directory import RunDirectory, prepare_run
from harness.training.session import Session

SETTINGS = [
    "iterations=3",
    "selection=curriculum",
    "fusion.enabled=true",
    # Not in the order of weights, and not as the scores come.
    "reward={colour: 0.5, ocr: 1}",
    "rewards.ocr={offset: 0.3, scale: 0.2}",
    "rewards.colour={offset: 0.5, scale: 0.25}",
    "rollout.candidates=3",
    "rollout.group_size=2",
    "rollout.branch_indices=[1]",
    "evaluation={validation_prompts: 3, interval: 2, gallery: 1, base_test: true, judges: [ocr, colour]}",
    "runtime.checkpoint_interval=2",
]
SHORT = ["iterations=1", "evaluation.test=false", "evaluation.base_test=false"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Two rewards, fusion on; broken off after its third iteration, of which the checkpoint has two; and resumed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("seam")
    data = ROOT / "harness/models/miniature/data/test.txt"
    (folder / "test.txt").write_text("\n".join(data.read_text(encoding="utf-8").splitlines()[:3]), encoding="utf-8")
    prepared = prepare_run(compose("miniature-luck", overrides=[*SETTINGS, f"prompts.test={folder}/test.txt"]), folder)
    with pytest.MonkeyPatch.context() as patch:
        append = RunDirectory.append

        def torn(self: RunDirectory, name: str, record: Mapping[str, Any]) -> None:
            append(self, name, record)
            if record["iteration"] == 3:
                raise KeyboardInterrupt

        patch.setattr(RunDirectory, "append", torn)
        with pytest.raises(KeyboardInterrupt):
            Session(prepared, say=lambda line: None).execute()
    Session(prepared, say=lambda line: None).execute()
    return prepared


@pytest.fixture(params=["directory", "shard"])
def folder(request: pytest.FixtureRequest, run: RunDirectory, tmp_path: Path) -> Path:
    """The run as the harness wrote it, and as its shard."""
    if request.param == "directory":
        return run.folder
    write_shards(run.folder, tmp_path)
    return tmp_path


def lines(run: RunDirectory, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / name).read_text(encoding="utf-8").splitlines()]


def numbers_in(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if isinstance(value, dict):
            yield from numbers_in(value, f"{prefix}{key}/")
        elif value is not None and not isinstance(value, list | str):
            yield prefix + key, value


def rows_of(frame: pd.DataFrame, *columns: str) -> dict[tuple[Any, ...], float]:
    found = {tuple(key): value for *key, value in frame[[*columns, "value"]].to_numpy().tolist()}
    assert len(found) == len(frame)
    return found


def test_every_number_of_an_iteration_is_read_as_it_was_logged(run: RunDirectory, folder: Path) -> None:
    logged = lines(run, "metrics.jsonl")
    assert [line["iteration"] for line in logged] == [1, 2, 3]
    expected = {
        (line["iteration"], metric): value
        for line in logged
        for metric, value in numbers_in({key: value for key, value in line.items() if key != "iteration"})
    }
    assert {"components/ocr/reward_mean", "components/colour/reward_mean", "capability_std", "seconds/iteration"} <= {
        metric for _, metric in expected
    }
    logs = load_logs(folder)
    assert rows_of(logs.runs[logs.runs["split"] == "train"], "iteration", "metric") == expected
    [chosen] = logs.summary["chosen_prompts"]
    assert chosen.prompts.to_pylist() == [prompt for line in logged for prompt in line["prompts"]]
    assert chosen.ranks.tolist() == [rank for line in logged for rank in line["ranks"]]


def test_every_number_of_an_evaluation_is_read_as_it_was_logged(run: RunDirectory, folder: Path) -> None:
    logged = lines(run, "eval.jsonl")
    assert [(line["split"], line["iteration"]) for line in logged] == [
        ("validation", 0),
        ("test", 0),
        ("validation", 2),
        ("validation", 3),
        ("test", 3),
    ]
    summed = build_weighted(run.config.reward, settings=run.config.rewards).name
    expected, by_prompt = {}, {}  # by prompt: of the last line, the test
    for line in logged:
        at = line["split"], line["iteration"]
        assert set(line) == {"iteration", "split", "num_prompts", "num_noises", "seconds", "metrics", "per_prompt"}
        numbers = {key: line[key] for key in ("num_prompts", "num_noises", "seconds")} | line["metrics"]
        sought = run.config.trained_reward(line["metrics"])
        assert line["metrics"][summed] == pytest.approx(sought, abs=1e-5)
        numbers[TRAINING_REWARD] = line["metrics"][summed]
        values = {**line["per_prompt"], TRAINING_REWARD: line["per_prompt"][summed]}
        expected |= {(*at, metric): value for metric, value in numbers.items()}
        by_prompt = values
    logs = load_logs(folder)
    frame = logs.runs
    assert rows_of(frame[frame["split"] != "train"], "split", "iteration", "metric") == expected
    assert {metric: values.tolist() for metric, values in logs.summary["by_prompt"][0]["test"].items()} == by_prompt


def _logged(config: RunConfig, folder: Path, metrics: Callable[[str], dict[str, float]]) -> Path:
    """A run directory with two evaluations, whose metrics are made by hand from the name of the trained reward."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
    measured = metrics(build_weighted(config.reward, settings=config.rewards).name)
    records = [{"iteration": i, "split": "validation", "seconds": 1.0, "metrics": measured} for i in (0, 1)]
    for name, lines in (("eval.jsonl", records), ("metrics.jsonl", [{"iteration": 1}])):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "status.json").write_text('{"state": "finished"}', encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", sorted(path.stem for path in (EXPERIMENTS / "rewards").glob("*.yaml")))
@pytest.mark.parametrize("reverse", [False, True])
def test_the_trained_reward_of_every_file_is_the_one_that_was_logged(name: str, reverse: bool, tmp_path: Path) -> None:
    profile = "miniature-luck" if name.startswith("ocr") else "paper"
    config = compose(profile, reward=name, overrides=SHORT)
    order = sorted(config.reward.items(), reverse=reverse)
    config = config.model_copy(update={"reward": dict(order)})
    scores = {judge: 14.94 + number / 7 for number, judge in enumerate(config.reward)}
    expected = config.trained_reward(scores)
    if name == "hpsv3_clip":
        assert scores["hpsv3"] + scores["clip"] != pytest.approx(expected)
    run = _logged(config, tmp_path / "run", lambda summed: {**scores, summed: expected})
    shards = tmp_path / "shards"
    write_shards(run, shards)
    for place in (run, shards):
        frame = load_logs(place).runs
        assert frame.loc[frame["metric"] == TRAINING_REWARD, "value"].tolist() == pytest.approx([expected] * 2)


def test_the_trained_reward_is_found_in_the_order_of_its_file_and_its_lack_is_an_error(tmp_path: Path) -> None:
    config = compose("paper", reward="hpsv3_clip", overrides=SHORT)
    parts = {"hpsv3": 15.0, "clip": 0.4}
    frame = load_logs(_logged(config, tmp_path / "named", lambda summed: {**parts, "hpsv3+clip": 3.0})).runs
    assert frame.loc[frame["metric"] == TRAINING_REWARD, "value"].tolist() == [3.0, 3.0]
    run = _logged(config, tmp_path / "run", lambda summed: parts)
    with pytest.raises(ConfigError, match=r"run: .*'clip\+hpsv3'.* clip, hpsv3"):
        load_logs(run)
    _logged(config, tmp_path / "later", lambda summed: {summed: 1.0})
    with (tmp_path / "later" / "eval.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"iteration": 2, "split": "test", "seconds": 1.0, "metrics": {"clip": 0.4}}\n')
    with pytest.raises(ConfigError, match=r"later: test at iteration 2 .*'clip\+hpsv3'"):
        load_logs(tmp_path / "later")
