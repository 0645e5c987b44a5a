"""A sweep that trains nothing: a known landscape over EMA decay and fusion weight, with noise of a run's seed."""

import hashlib
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import optuna
import yaml

from harness.config import RunConfig
from harness.experiments.sweep import STORAGE_VARIABLE
from harness.experiments.sweep.definition import Sweep, load_sweep
from harness.experiments.sweep.study import GRACE_SECONDS, open_storage, open_study
from harness.experiments.sweep.trial import ExecuteRun, OnValidation, RunResult
from harness.experiments.sweep.worker import work

BASE, PEAK_DECAY, PEAK_WEIGHT = 0.5, 0.9, 3.0
ITERATIONS, INTERVAL = 8, 2
FILE: dict[str, Any] = {
    "profile": "miniature-luck",
    "settings": {
        "selection": "curriculum",
        "fusion.enabled": True,
        "iterations": ITERATIONS,
        "evaluation.interval": INTERVAL,
    },
    "seeds": [1000, 1001],
    "space": {
        "capability.decay": {"low": 0.5, "high": 0.995},
        "fusion.weight": {"low": 0.01, "high": 15, "log": True},
    },
    "reference": {"capability.decay": 0.8, "fusion.weight": 1},
    "sampler": {"kind": "tpe", "seed": 0, "startup_trials": 4},
    "trials": 10,
}


def write_sweep(folder: Path, **changes: Any) -> Path:
    """The sweep file, with other values of its keys; None removes one."""
    content = {key: value for key, value in (FILE | changes).items() if value is not None}
    path = folder / "landscape.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def make_sweep(folder: Path, **changes: Any) -> Sweep:
    return load_sweep(str(write_sweep(folder, **changes)))


def height(config: RunConfig) -> float:
    """Trained reward after training: .9 at the peak, .5 before training and far away from it."""
    decay, weight = config.capability.decay, config.fusion.weight
    distance = ((decay - PEAK_DECAY) / 0.2) ** 2 + (math.log10(weight / PEAK_WEIGHT) / 1.5) ** 2
    return BASE + 0.4 * math.exp(-distance) + 0.01 * noise(config)


def noise(config: RunConfig) -> float:
    key = f"{config.seed} {config.capability.decay} {config.fusion.weight}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) / 2**31 - 1


def execute(config: RunConfig, on_validation: OnValidation) -> RunResult:
    """What a real execution does, without training."""
    final = height(config)
    for iteration in range(0, config.iterations + 1, config.evaluation.interval):
        share = iteration / config.iterations
        on_validation(iteration, {"ocr": BASE + (final - BASE) * math.sqrt(share), "ocr/word_accuracy": share / 2})
    return RunResult(f"run-{config.seed}", 130.0)


def study_of(sweep: Sweep, url: str, execute_run: ExecuteRun = execute, grace: int = GRACE_SECONDS) -> optuna.Study:
    """Begin or continue a study in this process, to its end."""
    storage = open_storage(url, heartbeat=1, grace=grace)
    study = open_study(sweep, storage)
    work(sweep, storage, execute_run, poll_seconds=0.1)
    return study


def deadly_work(file: str, log: Path, done: Path) -> None:
    """A worker's job: appends its process to the log when it begins a run; the fifth run kills its process."""

    def slow(config: RunConfig, on_validation: OnValidation) -> RunResult:
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"{os.getpid()}\n")
        if len(log.read_text(encoding="utf-8").splitlines()) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        return execute(config, on_validation)

    storage = open_storage(os.environ[STORAGE_VARIABLE], heartbeat=1, grace=2)
    work(load_sweep(file), storage, slow, poll_seconds=0.2)
    done.touch()
