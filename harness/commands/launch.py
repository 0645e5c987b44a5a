"""``adagrpo launch``: one run in several processes, or on several machines."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from harness.commands import Commands
from harness.commands.train import PROFILE, add_run_options, run_to_resume
from harness.foundation.errors import ConfigError

if TYPE_CHECKING:
    from harness.config import RunConfig
    from harness.experiments.jobs.command import Placement


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("launch", help="train one run in its runtime.processes, on one machine or several")
    add_run_options(parser, "as in runtime.engine=fsdp2")
    parser.add_argument("--machine-rank", type=int, default=0, help="of this machine among runtime.machines, from 0")
    parser.add_argument("--main-address", help="host name or address of machine 0, where there are several")
    parser.add_argument("--main-port", type=int, help="a free port there (default: 29500)")
    parser.add_argument("--show", action="store_true", help="print the launch line of this machine and do nothing")
    parser.set_defaults(command=launch)


def launch(options: argparse.Namespace) -> int:  # noqa: RET503 - it does not come back
    """Check all that can be checked before anything is started, then become the launcher of ``adagrpo train``."""
    from harness.config import ROOT, compose
    from harness.experiments.jobs.command import typed, worker_command
    from harness.experiments.jobs.slots import visible_gpus
    from harness.runs.directory import find_run

    run = run_to_resume(options)
    config = run.config if run else compose(options.profile or PROFILE, options.method, overrides=options.overrides)
    placement = _placement(options, config)
    command = worker_command(placement, "harness.cli", _train(options))
    if options.show:
        print(typed(command))
        return 0
    needed = placement.processes // placement.machines
    if placement.cuda and len(visible_gpus()) < needed:
        raise ConfigError(
            f"runtime.processes={placement.processes} on {placement.machines} machines need {needed} GPUs here, but "
            f"there are {len(visible_gpus())}"
        )
    if run is None:
        find_run(config)
    os.chdir(ROOT)
    os.execve(command[0], command, os.environ | {"OMP_NUM_THREADS": str(config.runtime.threads)})


def _placement(options: argparse.Namespace, config: "RunConfig") -> "Placement":
    from harness.experiments.jobs.command import Placement
    from harness.experiments.jobs.slots import visible_gpus

    runtime = config.runtime
    named = {"main_address": options.main_address, "main_port": options.main_port}
    given = {name: value for name, value in named.items() if value is not None}
    for name in given if runtime.machines == 1 else ():
        raise ConfigError(f"--{name.replace('_', '-')} is for several machines, but runtime.machines=1")
    return Placement(
        processes=runtime.processes,
        cuda=runtime.device == "cuda" or (runtime.device == "auto" and bool(visible_gpus())),
        machines=runtime.machines,
        machine_rank=options.machine_rank,
        engine=runtime.engine,
        **given,
    )


def _train(options: argparse.Namespace) -> list[str]:
    if options.resume is not None:
        return ["train", "--resume", str(options.resume.resolve())]
    method = [] if options.method is None else ["--method", options.method]
    profile = options.profile or PROFILE
    profile = str(Path(profile).resolve()) if profile.endswith(".yaml") else profile
    return ["train", "--profile", profile, *method, *options.overrides]
