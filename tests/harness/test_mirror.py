"""wandb mirrors a run, continues where a resumed run does, and can end nothing."""

import json
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.config import LoggingConfig, compose
from harness.runs.directory import RunDirectory, prepare_run
from harness.training import mirror as mirror_module
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


def history(file: Path) -> tuple[set[str], list[dict[str, Any]]]:
    """Run ids and rows of a .wandb file: LevelDB's log, blocks of 32 kB of checksum, length and kind, then protobuf."""
    from wandb.proto import wandb_internal_pb2

    data, place, record, ids, rows = file.read_bytes(), 7, b"", set(), []
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            parsed = wandb_internal_pb2.Record.FromString(record)
            record = b""
            ids |= {parsed.run.run_id} if parsed.HasField("run") else set()
            if parsed.HasField("history"):
                items = parsed.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return ids, rows


def test_a_resumed_run_continues_its_wandb_run_with_every_step_once(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mirror_module, "_PATIENCE_SECONDS", 300.0)  # a machine may be busy with other tests
    train(run, 1, 4)
    train(run, 5, 6)
    assert "wandb: " not in capfd.readouterr().err
    (file,) = run.folder.glob("wandb/offline-run-*/*.wandb")
    end = time.monotonic() + 60
    while len((found := history(file))[1]) < 6 and time.monotonic() < end:
        time.sleep(0.2)  # a process of wandb's own writes the file
    ids, rows = found
    assert len(ids) == 1
    assert [row["_step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["reward_mean"] for row in rows] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert [row["components/hpsv3/mean"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row.get("validation/ocr/word_accuracy") for row in rows] == [None, None, None, 0.25, None, 0.25]


class Failing:
    """A wandb, or a run of it, whose calls named fail."""

    def __init__(self, *calls: str) -> None:
        self._calls, self.starting_step, self.dir = calls, 0, "elsewhere/files"

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any, **__: Any) -> Any:
            if name in self._calls:
                raise SystemExit(1) if name == "finish" else OSError(28, f"no space left\nfor {name}")
            return self

        return call


@pytest.mark.parametrize(
    "wandb", [Failing(*calls) for calls in (["init"], ["Image"], ["finish"], ["log", "finish"])] + [None]
)
def test_a_failure_of_wandb_or_a_missing_package_is_one_line(
    run: RunDirectory, wandb: Failing | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    (run.folder / "images").mkdir()
    (run.folder / "images" / "validation-00003.png").touch()
    train(run, 1, 3)
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("wandb: ")


@pytest.mark.parametrize("call", ["init", "log", "finish"])
def test_a_wandb_that_hangs_is_left_alone(
    run: RunDirectory, call: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    released = threading.Event()
    fake = Failing()
    hanging = SimpleNamespace(starting_step=0, dir="elsewhere/files", log=fake.log, finish=fake.finish)
    wandb = SimpleNamespace(Settings=fake.Settings, Image=fake.Image, init=lambda **_: hanging)
    setattr(wandb if call == "init" else hanging, call, lambda *_, **__: released.wait(30) and hanging)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(mirror_module, "_PATIENCE_SECONDS", 0.3)
    train(run, 1, 3)
    released.set()
    assert "not done after" in capfd.readouterr().err


def test_what_wandb_has_already_is_not_sent_again(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, dict[str, Any]]] = []
    fake = Failing()
    there = SimpleNamespace(starting_step=3, log=lambda row, step: sent.append((step, row)), finish=fake.finish)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Settings=fake.Settings, init=lambda **_: there))
    for iteration in range(1, 5):
        run.append("metrics.jsonl", step(iteration))
    with Mirror(run, LoggingConfig(wandb="online"), enabled=True) as mirror:
        mirror.training(step(5))
    assert [iteration for iteration, _ in sent] == [3, 4, 5]
