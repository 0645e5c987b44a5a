"""``adagrpo sweep``: search over any keys of the configuration, look at a study, measure its best again."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.commands import Commands
from harness.errors import ConfigError
from harness.experiments.sweep import STORAGE_VARIABLE

if TYPE_CHECKING:
    import optuna

    from harness.experiments.sweep.definition import Sweep

_LOOK_SECONDS = 5.0
_OPTIONS = {
    "run": {"workers", "trials", "hours"},
    "show": set(),
    "confirm": {"top", "seeds", "slots"},
}
"""What each form takes beside the sweep, --name, --storage, --output and overrides."""


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "sweep",
        help="search over any keys of the configuration with Optuna; resumable, on one machine or many",
        usage="adagrpo sweep [show | confirm] SWEEP [options] [KEY=VALUE ...]",
        description="Execute the trials of a sweep that are left; `show` what it has found; `confirm` its best trials "
        "on fresh seeds and test prompts. `show FOLDER` draws a folder of a sweep's tables again, without its study.",
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
    for other, names in _OPTIONS.items():
        for name in names - _OPTIONS[form]:
            if getattr(options, name) is not None:
                raise ConfigError(f"--{name} belongs to adagrpo sweep{'' if other == 'run' else ' ' + other}, not here")
    _check_numbers(options)
    if form == "show" and _is_folder_of_tables(options.words[0]):
        return _show_folder(options)

    from harness.experiments.sweep.definition import load_sweep

    file, *overrides = options.words
    overrides += options.overrides
    loaded = load_sweep(file, options.name, overrides, options.trials)
    options.again = _again(file, overrides, options)
    if form == "confirm":
        from harness.experiments.grid import parse_seeds

        options.seeds = parse_seeds(options.seeds or "0-9")

    from harness.experiments.sweep.study import lost_storage_is_one_line

    url = _storage_url(loaded, options, begin=form == "run")
    with lost_storage_is_one_line(url):
        return {"run": _run, "show": _show, "confirm": _confirm}[form](loaded, options, url)


def _again(file: str, overrides: Sequence[str], options: argparse.Namespace) -> str:
    """The words that name the same study to another form of the command."""
    from harness.experiments.sweep.study import shown_url

    words = [file, *(["--name", options.name] if options.name else [])]
    # Without the password: what is printed ends up in logs.
    words += ["--storage", shown_url(options.storage)] if options.storage else []
    words += ["--output", str(options.output)] if options.output else []
    return shlex.join([*words, *overrides])


def _check_numbers(options: argparse.Namespace) -> None:
    for name in ("workers", "trials", "hours", "top", "slots"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise ConfigError(f"--{name} {value}: must be above 0")


def _storage_url(sweep: "Sweep", options: argparse.Namespace, begin: bool) -> str:
    """The studies' database; a SQLite file in the sweep's folder where none is named."""
    given = options.storage or os.environ.get(STORAGE_VARIABLE)
    if given:
        from harness.experiments.sweep.study import shared_url

        return shared_url(given)
    file = _folder(sweep) / "study.db"
    if begin:
        file.parent.mkdir(parents=True, exist_ok=True)
    elif not file.exists():
        raise ConfigError(f"study {sweep.name}: not begun; adagrpo sweep {options.again} begins it")
    return f"sqlite:///{file}"


def _folder(sweep: "Sweep") -> Path:
    from harness.runs.directory import RUNS

    return RUNS / sweep.experiment


def _run(sweep: "Sweep", options: argparse.Namespace, url: str) -> int:
    import optuna

    from harness.experiments.sweep.study import open_storage, open_study
    from harness.experiments.sweep.summary import Progress, num_finished
    from harness.experiments.sweep.supervise import run_workers

    storage = open_storage(url)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = open_study(sweep, storage, _identity(sweep))
    progress, looked, failures = Progress(sweep, study), 0.0, list[str]()

    def look() -> None:
        nonlocal looked
        if time.monotonic() - looked > _LOOK_SECONDS:
            looked = time.monotonic()
            line = progress.line()
            if line:
                print(line, flush=True)

    if not sweep.is_full(num_finished(study)):
        _folder(sweep).mkdir(parents=True, exist_ok=True)
        try:
            failures = run_workers(
                _worker_command(sweep, options),
                worker_environments(sweep, options.workers or 1, url),
                _folder(sweep),
                look,
                lambda line: print(line, flush=True),
            )
        except KeyboardInterrupt:
            print("interrupted: the same command continues where the trials stopped", flush=True)
            raise
    _report(sweep, study, options, url)
    is_timed = options.hours is not None or sweep.file.hours is not None
    return 0 if sweep.is_full(num_finished(study)) or (is_timed and not failures) else 1


def worker_environments(sweep: "Sweep", workers: int, url: str) -> list[dict[str, str]]:
    """Variables of each worker: the storage, and threads or a GPU of its own, as the grid's workers have them."""
    from harness.experiments.jobs.slots import local_slots

    return [slot.environment | {STORAGE_VARIABLE: url} for slot in local_slots([sweep.base.runtime], workers)]


def _identity(sweep: "Sweep") -> str:
    from harness.runs.directory import find_run

    return find_run(sweep.base).run_id


def _worker_command(sweep: "Sweep", options: argparse.Namespace) -> list[str]:
    command = [sys.executable, "-m", "harness.experiments.sweep.worker", str(sweep.path.resolve()), *sweep.overrides]
    command += ["--name", sweep.name]
    if sweep.file.trials is not None:
        command += ["--trials", str(sweep.file.trials)]
    hours = options.hours or sweep.file.hours
    if hours is not None:
        command += ["--deadline", str(time.time() + 3600 * hours)]
    return command


def _show(sweep: "Sweep", options: argparse.Namespace, url: str) -> int:
    from harness.experiments.sweep.study import find_study, open_storage

    _report(sweep, find_study(sweep, open_storage(url)), options, url)
    return 0


def _is_folder_of_tables(word: str) -> bool:
    from harness.config import EXPERIMENTS

    return Path(word).is_dir() and not (EXPERIMENTS / "sweeps" / f"{word}.yaml").exists()


def _show_folder(options: argparse.Namespace) -> int:
    """Draw and judge a sweep from its tables alone, as they are committed."""
    from analysis.sweep import write_sweep_report
    from analysis.sweep.tables import SweepTableError

    folder, *others = options.words
    given = [f"--{name}" for name in ("name", "storage", "output") if getattr(options, name) is not None]
    if others or given or options.overrides:
        raise ConfigError(f"adagrpo sweep show {folder}: a folder of tables is all it takes; leave out the rest")
    try:
        page, conclusion = write_sweep_report(Path(folder))
    except SweepTableError as error:
        raise ConfigError(str(error)) from None
    print("\n".join([*conclusion, f"figures and page: {page}"]))
    return 0


def _confirm(sweep: "Sweep", options: argparse.Namespace, url: str) -> int:
    from harness.experiments.sweep.confirm import candidates, confirmation_configs, write_confirmation
    from harness.experiments.sweep.study import find_study, open_storage

    study = find_study(sweep, open_storage(url), _identity(sweep))
    chosen = candidates(sweep, study, options.top or 3)
    configs = [confirmation_configs(sweep, candidate, options.seeds) for candidate in chosen]

    from harness.experiments.runs import run_all
    from harness.runs.directory import prepare_run

    runs = [[prepare_run(config) for config in own] for own in configs]
    # Seed by seed, so that every candidate has its first seed before any has its second.
    in_order = [run for same_seed in zip(*runs, strict=True) for run in same_seed]
    outcome = run_all(in_order, options.slots, lambda line: print(line, flush=True))
    for run_id, reason in outcome.failed.items():
        print(f"failed: {run_id}: {reason}", file=sys.stderr)
    write_confirmation(sweep, list(zip(chosen, runs, strict=True)), _output(sweep, options))
    _report(sweep, study, options, url)
    return 1 if outcome.failed else 0


def _output(sweep: "Sweep", options: argparse.Namespace) -> Path:
    from harness.config import ROOT

    return options.output or ROOT / "results" / "reports" / sweep.experiment


def _report(sweep: "Sweep", study: "optuna.Study", options: argparse.Namespace, url: str) -> None:
    """Write tables, figures and page, and print what the study has found and what is left of it on fresh seeds."""
    from analysis.sweep import write_sweep_report
    from harness.experiments.sweep.summary import summary
    from harness.experiments.sweep.tables import best_trials, write_tables

    folder = _output(sweep, options)
    write_tables(sweep, study, folder)
    page, conclusion = write_sweep_report(folder)
    again = f"adagrpo sweep confirm {options.again}"
    hint = [f"measure the best again, on fresh seeds and test prompts: {again}"] if best_trials(sweep, study) else []
    print("\n".join(["", *summary(sweep, study), "", *(conclusion or hint)]))
    print(f"tables, figures and page: {page}")
    print(f"look inside: pip install optuna-dashboard && optuna-dashboard {_dashboard_words(options, url)}")


def _dashboard_words(options: argparse.Namespace, url: str) -> str:
    from harness.experiments.sweep.study import shown_url

    # A password stays where it is.
    is_hidden = shown_url(url) != url and not options.storage
    return f'"${STORAGE_VARIABLE}"' if is_hidden else f"'{shown_url(url)}'"
