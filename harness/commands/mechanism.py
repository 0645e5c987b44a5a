"""``adagrpo mechanism``: gradients of prompts and advantages at fixed checkpoints, without training."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from harness.commands import Commands
from harness.foundation.errors import ConfigError, HarnessError

if TYPE_CHECKING:
    from harness.experiments.gradients.definition import Mechanism


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
    parser.add_argument(
        "--slots", "--workers", type=int, help="chunks at a time (default: as many as cores, or GPUs, suffice for)"
    )
    parser.add_argument("--output", type=Path, help="folder (default: results/mechanism)")
    parser.set_defaults(command=mechanism)


def mechanism(options: argparse.Namespace) -> int:
    """Compute what is missing, then write tables and report."""
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
        _compute(loaded, options.slots)
        write_tables(loaded, folder)

    from analysis.gradients import write_mechanism_report

    print(f"summary: {write_mechanism_report(folder)}")
    return 0


def _compute(loaded: "Mechanism", slots: int | None) -> None:
    from harness.experiments.gradients.chunks import plan
    from harness.experiments.jobs.runner import run_jobs

    folder = loaded.folder(loaded.checkpoints[0]).parent
    outcome = run_jobs(plan(loaded), slots, folder, lambda line: print(line, flush=True), stop_at_failure=True)
    for name, reason in outcome.failed.items():
        raise HarnessError(f"{name}: {reason}; the same command continues where it stopped")
