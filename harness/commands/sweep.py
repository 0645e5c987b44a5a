"""``adagrpo sweep``: search over any keys of the configuration, look at a study, measure its best again."""

import argparse
import os
import socket
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.commands import Commands
from harness.experiments.sweep import STORAGE_VARIABLE
from harness.foundation.errors import ConfigError

if TYPE_CHECKING:
    import optuna

    from analysis.sweep.tables import SweepStudy
    from harness.experiments.sweep.definition import Sweep

_OPTIONS = {"run": ("workers", "trials", "hours"), "show": (), "confirm": ("top", "seeds", "slots")}
"""What each form takes beside the sweep, --name, --storage, --output and overrides."""


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "sweep",
        help="search over any keys of the configuration with Optuna; resumable, on one machine or many",
        usage="adagrpo sweep [show | confirm] SWEEP [options] [KEY=VALUE ...]",
        description="Execute the trials of a sweep that are left; `show` what it has found; `confirm` its best trials "
        "on fresh seeds and test prompts.",
    )
    parser.add_argument("words", nargs="+", metavar="SWEEP", help="file in experiments/sweeps/, or a path")
    parser.set_defaults(overrides=[])
    parser.add_argument("--name", help="of the study (default: the file's name)")
    parser.add_argument("--storage", metavar="URL", help=f"database (default: ${STORAGE_VARIABLE}, or a SQLite file)")
    parser.add_argument(
        "--output", type=Path, help="folder for tables, figures and page (default: results/reports/...)"
    )
    run = parser.add_argument_group("to execute")
    run.add_argument("--workers", type=int, help="processes, each with a trial at a time (default: 1)")
    run.add_argument("--trials", type=int, help="how many the study is to have (default: the file's)")
    run.add_argument("--hours", type=float, help="begin no trial after them (default: the file's)")
    confirm = parser.add_argument_group("to confirm")
    confirm.add_argument("--top", type=int, help="how many of the best (default: 3)")
    confirm.add_argument("--seeds", metavar="LIST", help="such as 0-9; none of the sweep's own (default: 0-9)")
    confirm.add_argument("--slots", type=int, help="runs at a time (default: as many as cores or GPUs suffice for)")
    parser.set_defaults(command=sweep)


def sweep(options: argparse.Namespace) -> int:
    """Execute, show or confirm."""
    form = options.words.pop(0) if options.words[0] in ("show", "confirm") else "run"
    if not options.words:
        raise ConfigError(f"adagrpo sweep {form}: name a sweep, a file in experiments/sweeps/")
    for name in ("workers", "trials", "hours", "top", "seeds", "slots"):
        value = getattr(options, name)
        if value is not None and name not in _OPTIONS[form]:
            raise ConfigError(f"--{name}: not an option of adagrpo sweep {'' if form == 'run' else form}".rstrip())
        if isinstance(value, int | float) and value <= 0:
            raise ConfigError(f"--{name} {value}: must be above 0")

    from harness.config import ROOT
    from harness.experiments.grid import parse_seeds
    from harness.experiments.sweep.definition import load_sweep

    file, *overrides = options.words
    loaded = load_sweep(file, options.name, [*overrides, *options.overrides], options.trials)
    options.output = options.output or ROOT / "results" / "reports" / loaded.experiment
    options.seeds = parse_seeds(options.seeds or "0-9")

    import optuna

    from analysis.sweep.tables import SweepStudy
    from harness.experiments.sweep.study import find_study, open_storage, open_study, storage_errors

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = _storage_url(loaded, options, begin=form == "run")
    with storage_errors(url):
        storage = open_storage(url)
        if form == "run":
            study = open_study(loaded, storage, _identity(loaded))
            failed = _execute(loaded, options, study, url)
        else:
            study = find_study(loaded, storage, _identity(loaded) if form == "confirm" else None)
            failed = _confirm(loaded, options, SweepStudy(study)) if form == "confirm" else {}
        found = SweepStudy(study)
        _report(loaded, found, options, url)
    if form == "run" and (options.hours or loaded.file.hours) is None:
        return 0 if loaded.is_full(found.num_finished) else 1
    return 1 if failed else 0


def _storage_url(sweep: "Sweep", options: argparse.Namespace, begin: bool) -> str:
    """The studies' database; a SQLite file in the sweep's folder where none is named."""
    from harness.runs.directory import RUNS

    given: str | None = options.storage or os.environ.get(STORAGE_VARIABLE)
    if given:
        # Workers have another working directory.
        file = given.removeprefix("sqlite:///")
        return f"sqlite:///{Path(file).absolute()}" if file != given else given
    database = RUNS / sweep.experiment / "study.db"
    if begin:
        database.parent.mkdir(parents=True, exist_ok=True)
    elif not database.exists():
        raise ConfigError(f"study {sweep.name}: not begun; adagrpo sweep {sweep.path.stem} begins it")
    return f"sqlite:///{database}"


def _execute(sweep: "Sweep", options: argparse.Namespace, study: "optuna.Study", url: str) -> Mapping[str, str]:
    """Have workers execute what is left; which of them failed, and why."""
    from analysis.sweep.tables import SweepStudy
    from harness.experiments.jobs.job import Job
    from harness.experiments.jobs.runner import run_jobs
    from harness.experiments.jobs.slots import Slot, local_slots
    from harness.experiments.sweep.worker import execute_trials
    from harness.runs.directory import RUNS

    if sweep.is_full(SweepStudy(study).num_finished):
        return {}
    folder, hours = RUNS / sweep.experiment, options.hours or sweep.file.hours
    folder.mkdir(parents=True, exist_ok=True)
    deadline = None if hours is None else time.time() + 3600 * hours
    words = str(sweep.path.resolve()), sweep.name, sweep.overrides, sweep.file.trials, deadline
    slots = [
        Slot(slot.placement, slot.environment | {STORAGE_VARIABLE: url})
        for slot in local_slots([sweep.base.runtime], options.workers or 1)
    ]
    with tempfile.TemporaryDirectory() as name:
        jobs = [
            Job(
                id=f"worker {index}",
                call=partial(execute_trials, *words, Path(name) / str(index)),
                done=Path(name) / str(index),
                log=folder / f"worker-{socket.gethostname()}-{index}.log",
                config=sweep.base,
            )
            for index in range(len(slots))
        ]

        def standings() -> list[str]:
            return [f"{SweepStudy(study).num_finished} trials are finished"]

        return run_jobs(jobs, slots, folder, _say, standings=standings).failed


def _say(line: str) -> None:
    print(line, flush=True)


def _identity(sweep: "Sweep") -> str:
    from harness.runs.directory import find_run

    return find_run(sweep.base).run_id


def _confirm(sweep: "Sweep", options: argparse.Namespace, study: "SweepStudy") -> Mapping[str, str]:
    """Run the best and the reference on fresh seeds; which runs failed, and why."""
    from harness.experiments.runs import run_all
    from harness.experiments.sweep.confirm import candidates, confirmation_configs, write_confirmation
    from harness.runs.directory import prepare_run

    chosen = candidates(sweep, study, options.top or 3)
    configs = [confirmation_configs(sweep, values, options.seeds) for _, values in chosen]
    runs = [[prepare_run(config) for config in own] for own in configs]
    # Seed by seed, so that every candidate has its first seed before any has its second.
    outcome = run_all([run for same_seed in zip(*runs, strict=True) for run in same_seed], options.slots, _say)
    write_confirmation(sweep, study, list(zip(chosen, runs, strict=True)), options.output)
    return outcome.failed


def _report(sweep: "Sweep", study: "SweepStudy", options: argparse.Namespace, url: str) -> None:
    """Write tables, figures and page, and print what the study has found and what is left of it on fresh seeds."""
    from analysis.sweep.page import write_sweep_report
    from harness.experiments.sweep.study import shown_url

    file, base = sweep.file, sweep.base
    about = f"profile {file.profile}, {base.method.kernel}, {base.iterations} iterations, sampler {file.sampler.kind}"
    summary = write_sweep_report(study, f"{about}, pruner {file.pruner.kind}", sweep.num_trials, options.output)
    print(f"\n{summary.read_text(encoding='utf-8')}\ntables, figures and page: {options.output}")
    print(f"look inside: pip install optuna-dashboard && optuna-dashboard '{shown_url(url)}'")
