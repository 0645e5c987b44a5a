"""``adagrpo grid``: all runs of a grid, on this machine."""

import argparse
import sys
from typing import TYPE_CHECKING

from harness.commands import Commands
from harness.commands.train import add_rerun

if TYPE_CHECKING:
    from harness.experiments.jobs.runner import Outcome


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("grid", help="execute all runs of a grid; finished ones are skipped, others resumed")
    parser.add_argument("grid", help="file in experiments/grids/, or a path")
    parser.add_argument("--profile", help="file in experiments/profiles/ (default: the grid's own)")
    add_choices(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for every run")
    parser.set_defaults(command=execute_grid)


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Declare what ``execute_grid`` reads beside the grid, the profile and the overrides."""
    parser.add_argument("--only", metavar="CELLS", help="such as 'method=flow_grpo selection=random,curriculum'")
    parser.add_argument("--seeds", metavar="LIST", help="such as 0-4 or 0,2,5 (default: the grid's own)")
    parser.add_argument("--plan", action="store_true", help="list runs, hours and disk, and run nothing")
    parser.add_argument("--slots", type=int, help="runs at a time (default: as many as cores, or GPUs, suffice for)")
    add_rerun(parser)


def execute_grid(options: argparse.Namespace) -> int:
    """Execute a grid, or print its plan; 1 if a run failed."""
    from harness.experiments.grid import expand_grid, parse_seeds
    from harness.experiments.jobs.slots import local_slots
    from harness.experiments.plan import plan
    from harness.experiments.runs import run_all
    from harness.runs.directory import prepare_run

    seeds = None if options.seeds is None else parse_seeds(options.seeds)
    configs = expand_grid(options.grid, options.overrides, profile=options.profile, only=options.only, seeds=seeds)
    slots = local_slots([config.runtime for config in configs], options.slots)
    if options.plan:
        print("\n".join(plan(configs, len(slots))))
        return 0
    runs = [prepare_run(config, rerun_changed=options.rerun_changed) for config in configs]
    return exit_code(run_all(runs, options.slots, say))


def say(line: str) -> None:
    """Print a line of progress at once, also into a file."""
    print(line, flush=True)


def exit_code(outcome: "Outcome") -> int:
    """1 if a job failed, which is named once more."""
    for name, reason in outcome.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if outcome.failed else 0
