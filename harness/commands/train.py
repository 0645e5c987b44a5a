"""``adagrpo train``: one run, in this process."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from harness.commands import Commands
from harness.foundation.errors import ConfigError

if TYPE_CHECKING:
    from harness.config import RunConfig
    from harness.runs.directory import RunDirectory

PROFILE = "miniature"
"""Of a run where none is named."""


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("train", help="train one run: a profile with overrides, or a prepared run directory")
    add_run_options(parser, "as in selection=curriculum fusion.weight=2")
    add_rerun(parser)
    parser.set_defaults(command=train)


def add_rerun(parser: argparse.ArgumentParser) -> None:
    """Declare what ``prepare_run`` is told of runs that other code or packages have made."""
    text = "set runs aside that other code, or other packages, have begun or finished, and run them again"
    parser.add_argument("--rerun-changed", action="store_true", help=text)


def add_run_options(parser: argparse.ArgumentParser, example: str) -> None:
    """Options that say which run: a profile with a method and overrides, of which an example is shown, or a folder."""
    parser.add_argument("--profile", help=f"file in experiments/profiles/ (default: {PROFILE})")
    parser.add_argument("--method", help="file in experiments/methods/")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="execute or continue this run directory instead")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=example)


def run_to_resume(options: argparse.Namespace) -> "RunDirectory | None":
    """The run of ``--resume``, if it was given.

    Raises:
        ConfigError: it is no run directory, or there are options beside it that belong to a new run.
    """
    from harness.runs.directory import RunDirectory

    if options.resume is None:
        return None
    if options.overrides or options.profile is not None or options.method is not None:
        raise ConfigError("--resume continues a run as it is; a profile, a method and overrides belong to a new run")
    if not (options.resume / "config.yaml").is_file():
        raise ConfigError(f"--resume {options.resume}: no run directory (no config.yaml there)")
    return RunDirectory(options.resume.resolve())


def train(options: argparse.Namespace) -> int:
    """Execute or continue a run, unless it is finished. Every process of a launch calls this; the main one prepares."""
    from harness.config import compose
    from harness.runs.directory import find_run, prepare_run
    from harness.runs.identity import changes_of, note_on_code

    is_main = int(os.environ.get("RANK", "0")) == 0
    run = run_to_resume(options)
    if run is not None:
        config = run.config
    else:
        config = compose(options.profile or PROFILE, options.method, overrides=options.overrides)
        run = prepare_run(config, rerun_changed=options.rerun_changed) if is_main else find_run(config)
    if run.status()["state"] == "finished":
        if is_main:
            print("\n".join([f"{run.folder} is finished already", *note_on_code([changes_of(run.folder)])]))
        return 0
    lock = run.lock() if is_main else None
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            _begin_together(run, config, is_main)
        if is_main:
            print(f"run {run.folder}", flush=True)
        from harness.training.session import Session

        with run.failure_noted():
            Session(run, say=lambda line: print(line, flush=True)).execute()
    finally:
        if lock is not None:
            lock.close()
    return 0


def _begin_together(run: "RunDirectory", config: "RunConfig", is_main: bool) -> None:
    """Wait until the main process has prepared the run, and has forgotten why it failed before."""
    from harness.training.processes import Processes, make_accelerator

    if is_main:
        run.set_status("running", run.status()["iteration"], config.iterations)
    Processes(make_accelerator(config), config.runtime.timeout_seconds).wait("preparing the run")
