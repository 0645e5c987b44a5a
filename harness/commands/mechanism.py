"""``adagrpo mechanism``: gradients of prompts and advantages at fixed checkpoints, without training."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.commands import Commands
from harness.errors import ConfigError, HarnessError

if TYPE_CHECKING:
    from harness.experiments.gradients.definition import Mechanism

_LOOK_SECONDS = 15.0


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "mechanism",
        help="which prompts teach, and what fusion does: gradients at fixed checkpoints; resumable",
        usage="adagrpo mechanism [NAME] [KEY=VALUE ...] [options]",
        description="Measure gradients at fixed checkpoints and write tables, figures and summary.md.",
    )
    parser.add_argument("words", nargs="*", metavar="NAME", help="file in experiments/mechanism/ (default: miniature)")
    parser.set_defaults(overrides=[])
    parser.add_argument(
        "--checkpoints",
        nargs="+",
        default=["base"],
        metavar="RUN",
        help="run directories, and base: the untrained model (default: base)",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--output", type=Path, help="folder (default: results/mechanism)")
    parser.set_defaults(command=mechanism)


def mechanism(options: argparse.Namespace) -> int:
    """Compute what is missing, then write tables and report."""
    if options.workers < 1:
        raise ConfigError(f"--workers {options.workers}: must be at least 1")
    name, overrides = "miniature", [*options.words, *options.overrides]
    if overrides and "=" not in overrides[0]:
        name = overrides.pop(0)

    from harness.config import ROOT
    from harness.experiments.gradients.definition import load_mechanism
    from harness.experiments.gradients.tables import is_written, write_tables

    loaded = load_mechanism(name, options.checkpoints, overrides)
    folder = options.output or ROOT / "results" / "mechanism"
    if is_written(loaded, folder):
        print(f"{folder} holds this measurement already")
    elif (folder / "about.json").exists():
        raise ConfigError(f"{folder}: holds another measurement; name a folder with --output, or delete its about.json")
    else:
        _compute(loaded, overrides, options.workers)
        write_tables(loaded, folder)

    from analysis.gradients import MechanismTableError, write_mechanism_report

    try:
        print(f"summary: {write_mechanism_report(folder)}")
    except MechanismTableError as error:
        raise ConfigError(str(error)) from None
    return 0


def _compute(loaded: "Mechanism", overrides: list[str], num_workers: int) -> None:
    from harness.experiments.sweep.supervise import run_workers
    from harness.trained.checkpoints import BASE

    checkpoints = [BASE if one.run is None else str(one.run.folder) for one in loaded.checkpoints]
    command = [sys.executable, "-m", "harness.experiments.gradients.worker", str(loaded.path.resolve())]
    command += ["--checkpoints", *checkpoints, "--overrides", *overrides]
    look = _progress(loaded)
    logs = loaded.folder(loaded.checkpoints[0]).parent
    logs.mkdir(parents=True, exist_ok=True)
    environment = {"OMP_NUM_THREADS": str(loaded.config.runtime.threads)}
    try:
        failures = run_workers(command, [environment] * num_workers, logs, look, _say)
    except KeyboardInterrupt:
        _say("interrupted: the same command continues where it stopped")
        raise
    if failures:
        raise HarnessError(f"{failures[0]}; the same command continues where it stopped")


def _progress(loaded: "Mechanism") -> Callable[[], None]:
    """Says now and then how far the measurement has come, and how long the rest will take at the pace so far."""
    from harness.experiments.gradients.chunks import plan

    chunks = plan(loaded)
    total = sum(chunk.pictures for chunk in chunks)
    at_start = sum(chunk.pictures for chunk in chunks if chunk.is_done)
    began = looked = time.monotonic()
    said = -1
    _say(f"{len(chunks)} chunks, about {total:,} pictures to draw and score; {at_start / total:.0%} done")

    def look() -> None:
        nonlocal looked, said
        if time.monotonic() - looked < _LOOK_SECONDS:
            return
        looked = time.monotonic()
        done = sum(chunk.pictures for chunk in chunks if chunk.is_done)
        if done in (said, at_start):
            return
        said = done
        left = (total - done) / (done - at_start) * (looked - began) / 60
        _say(f"{done / total:.0%} done, about {left:.0f} min left")

    return look


def _say(line: str) -> None:
    print(line, flush=True)
