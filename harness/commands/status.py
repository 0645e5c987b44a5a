"""``adagrpo status``: all runs on one screen."""

import argparse
from pathlib import Path

from harness.commands import Commands
from harness.foundation.errors import ConfigError


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("status", help="how far runs have come, what failed, and the standings")
    parser.add_argument("--runs", type=Path, help="folder (default: results/runs)")
    parser.set_defaults(command=status)


def status(options: argparse.Namespace) -> int:
    """Print states, failures and standings."""
    from harness.experiments.status import status_lines
    from harness.runs.directory import RUNS

    folder = options.runs or RUNS
    if not folder.is_dir():
        raise ConfigError(f"--runs {folder}: no such folder")
    print("\n".join(status_lines(folder)))
    return 0
