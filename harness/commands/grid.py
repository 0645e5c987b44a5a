"""``adagrpo grid``: all runs of a grid, on this machine."""

import argparse
import sys
from functools import partial

from harness.commands import Commands
from harness.commands.train import add_rerun


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
    from harness.experiments.jobs.plan import plan
    from harness.experiments.jobs.runs import run_all
    from harness.experiments.jobs.slots import local_slots
    from harness.runs.directory import prepare_run

    seeds = None if options.seeds is None else parse_seeds(options.seeds)
    configs = expand_grid(options.grid, options.overrides, profile=options.profile, only=options.only, seeds=seeds)
    slots = local_slots([config.runtime for config in configs], options.slots)
    if options.plan:
        print("\n".join(plan(configs, len(slots))))
        return 0
    prepare = partial(prepare_run, rerun_changed=True) if options.rerun_changed else prepare_run
    runs = [prepare(config) for config in configs]
    outcome = run_all(runs, options.slots, lambda line: print(line, flush=True))
    for run_id, reason in outcome.failed.items():
        print(f"failed: {run_id}: {reason}", file=sys.stderr)
    return 1 if outcome.failed else 0
