"""``adagrpo report``: tables, figures and the page."""

from pathlib import Path

from harness.commands import Commands
from harness.foundation.errors import ConfigError


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("report", help="write tables, figures and the page from logs, without training")
    parser.add_argument("--runs", type=Path, required=True, help="folder with run directories")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--mechanism",
        type=Path,
        help="folder that adagrpo mechanism wrote, to be shown, too (default: results/mechanism, for the study)",
    )
    parser.add_argument("--readme", type=Path, help="file between whose markers the study's claims go")
    parser.add_argument(
        "--planned-seeds",
        type=int,
        metavar="N",
        help="judge a grid planned with N seeds per cell and an early look at half of them",
    )
    parser.set_defaults(command=lambda o: write(o.runs, o.output, o.mechanism, o.readme, o.planned_seeds))


def write(
    runs: Path,
    output: Path,
    mechanism: Path | None = None,
    readme: Path | None = None,
    planned_seeds: int | None = None,
) -> int:
    """Write the report of a folder of runs, see ``analysis.report.report.write_report``."""
    from analysis.report.report import write_report

    if not runs.is_dir():
        raise ConfigError(f"--runs {runs}: no such folder")
    if planned_seeds is not None and planned_seeds < 4:
        raise ConfigError(f"--planned-seeds {planned_seeds}: an early look needs 4 seeds at least, 2 in each half")
    print(f"report: {write_report(runs, output, mechanism, readme, planned_seeds)}")
    return 0
