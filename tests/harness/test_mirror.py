"""wandb mirrors a run, continues where a resumed run does, and can end nothing."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.config import LoggingConfig, compose
from harness.runs.directory import RunDirectory, prepare_run
from harness.training.mirror import Mirror

OFFLINE = LoggingConfig(wandb="offline")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return prepare_run(compose("smoke"), tmp_path)


def step(iteration: int) -> dict[str, Any]:
    components = {"hpsv3": {"mean": float(iteration), "std": 0.5}, "clip": {"mean": 0.25, "std": 0.0}}
    return {"iteration": iteration, "reward_mean": iteration / 10, "components": components, "prompts": ["a"]}


def train(run: RunDirectory, first: int, last: int) -> None:
    """What a session does from one iteration to another."""
    with Mirror(run, OFFLINE, enabled=True) as mirror:
        for iteration in range(first, last + 1):
            run.append("metrics.jsonl", step(iteration))
            mirror.training(step(iteration))
        record = {"iteration": last, "split": "validation", "metrics": {"ocr": 0.5, "ocr/word_accuracy": 0.25}}
        run.append("eval.jsonl", record)
        mirror.evaluation(record)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict[str, Any]]]:
    """What a wandb that stands in for the real one is given."""
    rows: list[tuple[int, dict[str, Any]]] = []
    opened = SimpleNamespace(log=lambda row, step: rows.append((step, row)), finish=lambda: None)
    fake = SimpleNamespace(Settings=lambda **_: None, init=lambda **kept: rows.append((0, kept)) or opened)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return rows


def test_a_resumed_run_continues_its_wandb_run(run: RunDirectory, sent: list[tuple[int, dict[str, Any]]]) -> None:
    train(run, 1, 2)
    train(run, 3, 3)
    assert [step for step, _ in sent] == [0, 1, 2, 2, 0, 3, 3]
    assert sent[0][1]["id"] == sent[4][1]["id"]
    assert sent[1][1]["components/hpsv3/mean"] == 1
    assert sent[3][1] == {"validation/ocr": 0.5, "validation/ocr/word_accuracy": 0.25}


def test_the_real_package_takes_what_it_is_given(run: RunDirectory, capfd: pytest.CaptureFixture[str]) -> None:
    train(run, 1, 2)
    assert "wandb: " not in capfd.readouterr().err
    assert len([*run.folder.glob("wandb/offline-run-*/*.wandb")]) == 1


class Failing:
    """A wandb, or a run of it, whose calls named fail."""

    def __init__(self, *calls: str) -> None:
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any, **__: Any) -> Any:
            if name in self._calls:
                raise SystemExit(1) if name == "finish" else OSError(28, f"no space left\nfor {name}")
            return self

        return call


@pytest.mark.parametrize("calls", [None, ["init"], ["Settings"], ["log"], ["Image"], ["finish"], ["log", "finish"]])
def test_a_failure_of_wandb_or_its_absence_is_one_line(
    run: RunDirectory, calls: list[str] | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None if calls is None else Failing(*calls))
    (run.folder / "images").mkdir()
    (run.folder / "images" / "validation-00003.png").touch()
    train(run, 1, 3)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("wandb: ")
