"""A trial's runs, really trained: ordinary run directories, reused and continued, that never read a test prompt."""

import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from landscape import make_sweep

from harness.config import RunConfig
from harness.experiments.sweep import execute as execution
from harness.experiments.sweep.execute import execute_run
from harness.foundation.errors import StopRun
from harness.foundation.records import read_lines
from harness.runs import directory as runs
from harness.runs.directory import RunDirectory

SETTINGS = {
    "selection": "curriculum",
    "fusion.enabled": True,
    "iterations": 2,
    "evaluation": {"interval": 1, "validation_prompts": 2, "gallery": 0, "judges": ["ocr"]},
    "rollout": {"candidates": 3, "group_size": 2, "branch_indices": [1]},
    "prompts.test": "there/is/none.txt",
}


@pytest.fixture(autouse=True)
def _runs_in_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = runs.prepare_run
    monkeypatch.setattr(execution, "prepare_run", lambda config: prepare(config, tmp_path / "runs"))


def configs_of(tmp_path: Path, *seeds: int, **settings: object) -> list[RunConfig]:
    sweep = make_sweep(tmp_path, settings=SETTINGS | settings, seeds=list(seeds))
    return sweep.configs({"capability.decay": 0.9, "fusion.weight": 3}, seeds)


def run_in(tmp_path: Path) -> RunDirectory:
    (folder,) = (path.parent for path in (tmp_path / "runs" / "sweep-landscape").glob("*/config.yaml"))
    return RunDirectory(folder)


def test_a_run_is_stopped_continued_reused_and_reads_no_test_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [config] = configs_of(tmp_path, 1000)
    seen: list[tuple[int, float]] = []

    def watch(iteration: int, metrics: Mapping[str, float]) -> None:
        seen.append((iteration, metrics["ocr"]))
        if len(seen) == 2:
            raise StopRun("given up")

    with pytest.raises(StopRun):
        execute_run(config, watch)
    run = run_in(tmp_path)
    assert (run.status()["state"], run.status()["iteration"], run.is_locked()) == ("waiting", 1, False)
    result = execute_run(config, watch)
    assert run.status()["state"] == "finished"
    assert (result.run_id, result.divergence) == (run.run_id, None)
    last = read_lines(run.folder / "metrics.jsonl")[-1]
    assert result.compute == last["total_sample_forwards"] + 3 * last["total_train_forwards"]
    assert {line["split"] for line in read_lines(run.folder / "eval.jsonl")} == {"validation"}
    monkeypatch.setattr(execution, "Session", None)  # a finished run needs none
    assert execute_run(config, watch) == result
    # Each time those of earlier executions, then what is new.
    assert [iteration for iteration, _ in seen] == [0, 1, 0, 1, 2, 0, 1, 2]
    assert seen[:2] == seen[2:4]
    assert seen[2:5] == seen[5:]


def test_a_run_that_diverges_is_a_result_and_marked_as_failed(tmp_path: Path) -> None:
    [config] = configs_of(tmp_path, 1000, **{"optimizer.learning_rate": 1e12})
    seen: list[int] = []
    result = execute_run(config, lambda iteration, metrics: seen.append(iteration))
    assert "not finite" in (result.divergence or "")
    assert seen == [0]
    assert run_in(tmp_path).status()["state"] == "failed"


def test_a_stopped_runs_model_is_gone_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = list[Any]()

    class Stopped:
        def __init__(self, run: RunDirectory, **given: Any) -> None:
            assert [session() for session in sessions] == [None] * len(sessions)
            self.callback = self.execute  # a cycle, as in a session
            sessions.append(weakref.ref(self))

        def execute(self) -> None:
            raise StopRun("given up")

    monkeypatch.setattr(execution, "Session", Stopped)
    for config in configs_of(tmp_path, 1000, 1001):
        with suppress(StopRun):
            execute_run(config, lambda iteration, metrics: None)
    assert len(sessions) == 2
