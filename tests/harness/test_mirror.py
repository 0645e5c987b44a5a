"""wandb mirrors a run, continues where a resumed run does, and can end nothing."""

import sys
from pathlib import Path
from typing import Any

import pytest

from harness.config import LoggingConfig, compose
from harness.runs.directory import RunDirectory, prepare_run
from harness.training.mirror import Mirror

OFFLINE = LoggingConfig(wandb="offline")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return prepare_run(compose("smoke"), tmp_path)


def train(run: RunDirectory, first: int, last: int) -> None:
    """What a session does from one iteration to another."""
    with Mirror(run, OFFLINE, enabled=True) as mirror:
        for iteration in range(first, last + 1):
            components = {"hpsv3": {"mean": float(iteration), "std": 0.5}}
            mirror.training({"iteration": iteration, "components": components, "prompts": ["a"]})
        metrics = {"ocr": 0.5, "ocr/word_accuracy": 0.25}
        mirror.evaluation({"iteration": last, "split": "validation", "metrics": metrics, "per_prompt": {"ocr": [0.5]}})


class Fake:
    """A wandb, or a run of it, that notes calls, and whose calls named fail."""

    def __init__(self, *failing: str) -> None:
        self.failing = failing
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if name in self.failing:
                raise SystemExit(1) if name == "finish" else OSError(28, f"no space left\nfor {name}")
            self.calls.append((name, arguments, options))
            return self

        return call


def test_a_resumed_run_continues_its_wandb_run(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Fake()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    train(run, 1, 2)
    train(run, 3, 3)
    begun = [options for name, _, options in wandb.calls if name == "init"]
    assert len({options["id"] for options in begun}) == 1
    assert [options["resume"] for options in begun] == ["allow", "allow"]
    logged = [(options["step"], *arguments) for name, arguments, options in wandb.calls if name == "log"]
    of_components = [(s, values["components/hpsv3/mean"]) for s, values in logged if "components/hpsv3/mean" in values]
    assert of_components == [(1, 1.0), (2, 2.0), (3, 3.0)]
    evaluated = {"validation/ocr": 0.5, "validation/ocr/word_accuracy": 0.25}
    assert [entry for entry in logged if entry[1] == evaluated] == [(2, evaluated), (3, evaluated)]


def test_wandb_itself_takes_what_a_run_logs(run: RunDirectory, capfd: pytest.CaptureFixture[str]) -> None:
    train(run, 1, 2)
    assert "wandb: " not in capfd.readouterr().err
    assert len(list(run.folder.glob("wandb/offline-run-*/*.wandb"))) == 1


@pytest.mark.parametrize("calls", [["init"], ["Settings"], ["log"], ["Image"], ["finish"], ["log", "finish"]])
def test_a_failure_of_wandb_is_one_line(
    run: RunDirectory, calls: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Fake(*calls))
    (run.folder / "images").mkdir()
    (run.folder / "images" / "validation-00003.png").touch()
    train(run, 1, 3)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("wandb: ")
