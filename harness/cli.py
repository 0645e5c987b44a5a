"""The ``adagrpo`` command. Bad input is one clear line and exit code 2; a failed run is exit code 1."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.commands import doctor, evaluate, export, prompts, sample
from harness.config import ROOT, ConfigError

# Libraries announce each optional package that is missing; none of them is needed.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``adagrpo``."""
    options = _parser().parse_args(arguments)
    try:
        code = options.command(options)
    except ConfigError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    sys.exit(code)


def _fail(message: str, code: int) -> None:
    print(f"adagrpo: error: {message}", file=sys.stderr)
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adagrpo", description="GRPO for flow-matching image models: AdaGRPO's harness."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train one run: a profile with overrides, or a prepared run directory")
    train.add_argument("--profile", default="miniature", help="file in experiments/profiles/ (default: miniature)")
    train.add_argument("--method", help="file in experiments/methods/")
    train.add_argument("--resume", type=Path, metavar="RUN", help="execute or continue this run directory instead")
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as selection=curriculum fusion.weight=2")
    train.set_defaults(command=_train)

    grid = commands.add_parser("grid", help="execute all runs of a grid; finished ones are skipped, others resumed")
    grid.add_argument("grid", help="file in experiments/grids/, or a path")
    grid.add_argument("--profile", help="file in experiments/profiles/ (default: the grid's own)")
    _add_grid_options(grid)
    grid.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for every run")
    grid.set_defaults(command=_grid)

    reproduce = commands.add_parser("reproduce", help="execute a profile's grid and write the report")
    reproduce.add_argument("--profile", default="smoke", help="file in experiments/profiles/ (default: smoke)")
    _add_grid_options(reproduce)
    reproduce.set_defaults(command=_reproduce)

    status = commands.add_parser("status", help="how far runs have come, what failed, and the standings")
    status.add_argument("--runs", type=Path, default=ROOT / "results" / "runs", help="folder (default: results/runs)")
    status.set_defaults(command=_status)

    report = commands.add_parser("report", help="write tables, figures and the page from logs, without training")
    report.add_argument("--runs", type=Path, required=True, help="folder with run directories")
    report.add_argument("--output", type=Path, required=True, help="folder to write to")
    report.set_defaults(command=_report)

    assets = commands.add_parser("fetch-assets", help="fetch the text recognisers that serve as rewards")
    assets.set_defaults(command=_fetch_assets)

    pretrain = commands.add_parser("pretrain-miniature", help="train the miniature's base and weak models from scratch")
    pretrain.add_argument("--output", type=Path, required=True, help="folder to write base/ and weak/ to; resumable")
    pretrain.add_argument("--seed", type=int, default=0)
    pretrain.add_argument("--steps", type=int, help="optimiser steps (default: 4200); weak/ is saved at 4/7 of them")
    pretrain.add_argument("--threads", type=int, default=2)
    pretrain.set_defaults(command=_pretrain)
    doctor.add_parser(commands)
    evaluate.add_parser(commands)
    export.add_parser(commands)
    prompts.add_parser(commands)
    sample.add_parser(commands)
    return parser


def _add_grid_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", metavar="CELLS", help="such as 'method=flow_grpo selection=random,curriculum'")
    parser.add_argument("--seeds", metavar="LIST", help="such as 0-4 or 0,2,5 (default: the grid's own)")
    parser.add_argument("--plan", action="store_true", help="list runs, hours and disk, and run nothing")
    parser.add_argument("--slots", type=int, default=os.cpu_count() or 1, help="runs at a time (default: cores)")


def _train(options: argparse.Namespace) -> int:
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
    status = run.status()
    if status["state"] == "finished":
        print(f"{run.folder} is finished already")
        return 0
    from harness.rewards.assets import AssetError
    from harness.session import Session
    from harness.trainer import TrainingError

    is_main = int(os.environ.get("RANK", "0")) == 0
    lock = run.lock() if is_main else None
    try:
        print(f"run {run.folder}", flush=True)
        Session(run, say=lambda line: print(line, flush=True)).execute()
    except (ConfigError, AssetError, TrainingError) as error:
        if is_main:
            run.set_status("failed", run.status()["iteration"], run.config.iterations, str(error))
        if isinstance(error, ConfigError):
            raise
        _fail(str(error), 2 if isinstance(error, AssetError) else 1)
    finally:
        if lock is not None:
            lock.close()
    return 0


def _grid(options: argparse.Namespace) -> int:
    from harness.launch.grid import expand_grid, parse_seeds
    from harness.launch.local import run_all
    from harness.launch.plan import plan
    from harness.runs import prepare_run

    if options.slots < 1:
        raise ConfigError(f"--slots {options.slots}: must be at least 1")
    seeds = None if options.seeds is None else parse_seeds(options.seeds)
    configs = expand_grid(options.grid, options.overrides, profile=options.profile, only=options.only, seeds=seeds)
    if options.plan:
        print("\n".join(plan(configs, options.slots)))
        return 0
    runs = [prepare_run(config) for config in configs]
    outcome = run_all(runs, options.slots, lambda line: print(line, flush=True))
    for run_id, reason in outcome.failed.items():
        print(f"failed: {run_id}: {reason}", file=sys.stderr)
    return 1 if outcome.failed else 0


def _reproduce(options: argparse.Namespace) -> int:
    from harness.config import compose, grid_of
    from harness.runs import RUNS

    grid = grid_of(options.profile)
    if compose(options.profile).runtime.device == "cuda" and not options.plan:
        from harness.doctor import check

        report = check(options.profile)
        print("\n".join(report.lines()), flush=True)
        if report.missing:
            return 2
    code = _grid(argparse.Namespace(**{**vars(options), "grid": grid, "overrides": []}))
    if not options.plan:
        experiment = compose(options.profile).experiment
        _report(argparse.Namespace(runs=RUNS / experiment, output=ROOT / "results" / "reports" / experiment))
    return code


def _status(options: argparse.Namespace) -> int:
    from harness.launch.progress import status_lines

    if not options.runs.is_dir():
        raise ConfigError(f"--runs {options.runs}: no such folder")
    print("\n".join(status_lines(options.runs)))
    return 0


def _report(options: argparse.Namespace) -> int:
    from analysis.report import write_report

    if not options.runs.is_dir():
        raise ConfigError(f"--runs {options.runs}: no such folder")
    print(f"report: {write_report(options.runs, options.output)}")
    return 0


def _fetch_assets(options: argparse.Namespace) -> int:
    from harness.rewards.assets import AssetError, fetch_assets

    try:
        fetch_assets()
    except AssetError as error:
        _fail(str(error), 1)
    return 0


def _pretrain(options: argparse.Namespace) -> int:
    from harness.models.miniature.pretrain import PretrainConfig, pretrain

    defaults = PretrainConfig()
    steps = options.steps or defaults.steps
    if steps < 2:
        raise ConfigError(f"--steps {steps}: must be at least 2")
    config = PretrainConfig(
        seed=options.seed,
        steps=steps,
        weak_steps=max(1, round(steps * defaults.weak_steps / defaults.steps)),
        threads=options.threads,
    )
    try:
        for line in pretrain(config, options.output):
            print(line, flush=True)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return 0


if __name__ == "__main__":
    main()
