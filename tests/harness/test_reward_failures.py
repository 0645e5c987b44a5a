"""A reward that fails: before training nothing has begun, in the middle of it nothing is lost."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from harness.config import ROOT, compose
from harness.foundation.errors import HarnessError
from harness.rewards import RewardError
from harness.rewards.base import Pending
from harness.rewards.native.colour import ColourReward
from harness.runs.directory import RunDirectory, prepare_run
from harness.training import session
from harness.training.session import Session
from tests.harness.conftest import SHORT


class Flaky(ColourReward):
    """Fails when it is asked for the n-th time: in training, or, with ``measuring``, in an evaluation."""

    def __init__(self, fails_at: int | None, measuring: bool = False) -> None:
        super().__init__()
        self.calls, self.fails_at, self.measuring = 0, fails_at, measuring

    def count(self, is_counted: bool) -> None:
        self.calls += is_counted
        if is_counted and self.calls == self.fails_at:
            raise RewardError("reward 'colour': http://127.0.0.1:8500 cannot be reached")

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().measure(images, prompts)[self.name]

    def measure(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        self.count(self.measuring)
        return super().measure(images, prompts)

    def submit(self, images: Tensor, prompts: Sequence[str]) -> Pending:
        self.count(not self.measuring)
        return super().submit(images, prompts)


def execute(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int | None = None, measuring: bool = False
) -> RunDirectory:
    test = folder / "test.txt"
    folder.mkdir(exist_ok=True)
    test.write_text("\n".join((ROOT / "harness/models/miniature/data/test.txt").read_text().splitlines()[:2]) + "\n")
    settings = {
        "experiment": "flaky",
        "iterations": 2,
        "selection": "curriculum",
        "fusion": {"enabled": True},
        "reward": {"colour": 1.0},
        "model": {"num_steps": 4},
        "rollout": {"candidates": 3, "group_size": 2},
        "evaluation": {"interval": 2, "validation_prompts": 2, "gallery": 0, "judges": ["colour"]},
        "prompts": {"test": str(test)},
    }
    run = prepare_run(compose("miniature-luck", settings=settings), folder)
    reward = Flaky(fails_at, measuring)
    monkeypatch.setattr(session, "build_rewards", lambda *_: (reward, [reward]))
    with run.failure_noted():
        Session(run, say=lambda line: None).execute()
    return run


def numbers(run: RunDirectory, log: str = "metrics.jsonl") -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run.folder / log).read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def test_what_has_no_scores_is_done_anew_and_nothing_else_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run fails at the scorings of its second iteration, of candidates and of the rollout, and at its last
    evaluations, of validation and test; each time it is continued."""
    whole = execute(tmp_path / "whole", monkeypatch)
    evaluated = numbers(whole, "eval.jsonl")
    assert [(record["iteration"], record["split"]) for record in evaluated[-2:]] == [(2, "validation"), (2, "test")]
    for measuring, fails_at, done, missing in ((False, 3, 1, 2), (False, 2, 1, 2), (True, 1, 2, 2), (True, 2, 2, 1)):
        with pytest.raises(RewardError, match="cannot be reached"):
            execute(tmp_path / "broken", monkeypatch, fails_at, measuring)
        (folder,) = (tmp_path / "broken" / "flaky").glob("flow*")
        failed = RunDirectory(folder)
        assert (failed.status()["state"], failed.status()["iteration"]) == ("failed", done)
        assert failed.status()["reason"].endswith("reward 'colour': http://127.0.0.1:8500 cannot be reached")
        assert numbers(failed) == numbers(whole)[:done]
        assert numbers(failed, "eval.jsonl") == evaluated[:-missing]
    again = execute(tmp_path / "broken", monkeypatch)
    assert again.run_id == failed.run_id == whole.run_id
    assert numbers(again) == numbers(whole)
    assert numbers(again, "eval.jsonl") == evaluated


PLUGIN = """
from pathlib import Path

def Brightness(images, prompts):
    if Path(__file__).with_name("broken").exists():
        FAILURE
    return images.mean(dim=(1, 2, 3))
"""


@pytest.mark.parametrize(("failure", "dumps"), [("raise OSError('gone')", []), ("images = images / 0", [2])])
def test_a_run_saves_before_a_failed_score_of_a_plug_in_ends_it(tmp_path: Path, failure: str, dumps: list[int]) -> None:
    """The plug-in fails in training, after the first iteration's validation."""
    (tmp_path / "my.py").write_text(PLUGIN.replace("FAILURE", failure))
    own = [f"reward={tmp_path}/my.py:Brightness", "iterations=2", "evaluation={judges: [], interval: 1, test: false}"]
    run = prepare_run(compose("miniature-luck", overrides=[*SHORT, *own, "evaluation.base_test=false"]), tmp_path)

    def breaks(iteration: int, metrics: object) -> None:
        if iteration == 1:
            (tmp_path / "broken").touch()

    with pytest.raises(HarnessError, match=r"my\.py:\d+") as caught, run.failure_noted():
        Session(run, say=lambda line: None, on_validation=breaks).execute()
    assert caught.value.exit_code == 2
    assert (run.status()["state"], run.status()["iteration"]) == ("failed", 1)
    assert [json.loads(path.read_text())["iteration"] for path in run.folder.glob("failure-*.json")] == dumps
    (tmp_path / "broken").unlink()
    Session(run, say=lambda line: None).execute()
    assert run.status()["state"] == "finished"


def test_what_a_judge_lacks_is_said_before_anything_is_drawn(tmp_path: Path) -> None:
    overrides = ["evaluation.judges=[ocr, unifiedreward-v2]", "rewards.unifiedreward-v2.url=http://127.0.0.1:9"]
    run = prepare_run(compose("miniature-luck", overrides=overrides), tmp_path)
    with pytest.raises(RewardError, match=r"reward 'unifiedreward-v2': http://127.0.0.1:9/v1/models cannot be reached"):
        Session(run, say=lambda line: None)
