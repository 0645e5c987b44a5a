"""``adagrpo report``: tables, figures and the page."""

from pathlib import Path

from harness.commands import Commands
from harness.errors import ConfigError


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("report", help="write tables, figures and the page from logs, without training")
    parser.add_argument("--runs", type=Path, required=True, help="folder with run directories")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.set_defaults(command=lambda options: write(options.runs, options.output))


def write(runs: Path, output: Path) -> int:
    """Write the report of a folder of runs."""
    from analysis.report import write_report
    from analysis.runlog import RunLogError

    if not runs.is_dir():
        raise ConfigError(f"--runs {runs}: no such folder")
    try:
        print(f"report: {write_report(runs, output)}")
    except RunLogError as error:
        raise ConfigError(str(error)) from None
    return 0
