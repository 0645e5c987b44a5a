"""``adagrpo reproduce``: a profile's grid from nothing to its report."""

import argparse

from harness.commands import Commands
from harness.commands.grid import add_choices, execute_grid
from harness.commands.report import write


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("reproduce", help="execute a profile's grid and write the report")
    parser.add_argument("--profile", default="miniature", help="file in experiments/profiles/ (default: miniature)")
    add_choices(parser)
    parser.set_defaults(command=reproduce)


def reproduce(options: argparse.Namespace) -> int:
    """Execute the grid and report what there is, complete or not; 1 if a run failed."""
    from harness.config import ROOT, compose, grid_of
    from harness.runs.directory import RUNS

    grid = grid_of(options.profile)
    if compose(options.profile).runtime.device == "cuda" and not options.plan:
        from harness.experiments.doctor.checks import check

        # Hours of GPUs and gigabytes of weights: what is missing is said before anything starts.
        report = check(options.profile)
        print("\n".join(report.lines()), flush=True)
        if report.missing:
            return 2
    code = execute_grid(argparse.Namespace(**{**vars(options), "grid": grid, "overrides": []}))
    if not options.plan:
        experiment = compose(options.profile).experiment
        write(RUNS / experiment, ROOT / "results" / "reports" / experiment)
    return code
