"""``adagrpo train``: one run, in this process."""

import argparse
import os
from pathlib import Path

from harness.commands import Commands
from harness.errors import ConfigError


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("train", help="train one run: a profile with overrides, or a prepared run directory")
    parser.add_argument("--profile", default="miniature", help="file in experiments/profiles/ (default: miniature)")
    parser.add_argument("--method", help="file in experiments/methods/")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="execute or continue this run directory instead")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as in selection=curriculum fusion.weight=2")
    parser.set_defaults(command=train)


def train(options: argparse.Namespace) -> int:
    """Execute or continue a run, unless it is finished."""
    from harness.config import compose
    from harness.runs import RunDirectory, prepare_run

    if options.resume is not None:
        if options.overrides:
            raise ConfigError("--resume continues a run as it is; overrides belong to a new run")
        if not (options.resume / "config.yaml").is_file():
            raise ConfigError(f"--resume {options.resume}: no run directory (no config.yaml there)")
        run = RunDirectory(options.resume.resolve())
    else:
        run = prepare_run(compose(options.profile, options.method, overrides=options.overrides))
    if run.status()["state"] == "finished":
        print(f"{run.folder} is finished already")
        return 0
    from harness.session import Session

    is_main = int(os.environ.get("RANK", "0")) == 0
    lock = run.lock() if is_main else None
    try:
        print(f"run {run.folder}", flush=True)
        with run.failure_noted():
            Session(run, say=lambda line: print(line, flush=True)).execute()
    finally:
        if lock is not None:
            lock.close()
    return 0
