"""Searches: optimise any keys of the configuration, show a study, measure its best trials again."""

import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from harness.commands import command, say
from harness.experiments.sweep import STORAGE_VARIABLE
from harness.foundation.errors import ConfigError
from harness.foundation.places import WORK

if TYPE_CHECKING:
    import optuna

    from analysis.sweep.tables import SweepStudy
    from harness.experiments.jobs.launchers import Resources
    from harness.experiments.sweep.definition import Sweep

_OPTIONS = {"run": ("slots", "trials", "hours", "on"), "show": (), "confirm": ("top", "seeds", "slots")}
"""Options of each form, beside the sweep, --name, --storage, --output and overrides."""


@command
def sweep(
    overrides: Annotated[
        Sequence[str], "[show | confirm] SWEEP (a file in experiments/sweeps/ or a path), then settings"
    ],
    *,
    name: Annotated[str | None, "name of the study (default: the file's name)"] = None,
    storage: Annotated[str | None, "URL of the database (default: $ADAGRPO_STORAGE, or a SQLite file)"] = None,
    output: Annotated[Path | None, "folder for tables, figures and page (default: results/reports/...)"] = None,
    on: Annotated[
        str | None, "when executing: submit each worker to the launcher of a file in experiments/clusters/, and exit"
    ] = None,
    trials: Annotated[int | None, "when executing: number of trials of the study (default: the file's)", 1] = None,
    hours: Annotated[float | None, "when executing: start no trial after N hours (default: the file's)", 1e-06] = None,
    top: Annotated[int | None, "when confirming: number of best trials (default: 3)", 1] = None,
    seeds: Annotated[str | None, "when confirming: seeds, none of them the sweep's own (default: 0-9)"] = None,
    slots: Annotated[
        int | None, "number of parallel runs (default: 1; when confirming, as many as cores or GPUs suffice for)", 1
    ] = None,
) -> int:
    """Execute the remaining trials of a sweep with Optuna, on one machine or many; show what it has found; confirm its
    best trials on fresh seeds and test prompts.

    Example: ``adagrpo sweep ema_fusion --slots 2``
    """
    form, words = (overrides[0], overrides[1:]) if overrides[0] in _OPTIONS else ("run", overrides)
    if not words:
        raise ConfigError(f"adagrpo sweep {form}: name a sweep, a file in experiments/sweeps/")
    given = {"trials": trials, "hours": hours, "on": on, "top": top, "seeds": seeds, "slots": slots}
    for option, value in given.items():
        if value is not None and option not in _OPTIONS[form]:
            raise ConfigError(f"--{option}: not an option of adagrpo sweep {'' if form == 'run' else form}".rstrip())

    from harness.experiments.grid import parse_seeds
    from harness.experiments.jobs.launchers import read_resources
    from harness.experiments.sweep.definition import load_sweep

    resources = None if on is None else read_resources(on)
    loaded = load_sweep(words[0], name, words[1:], trials)
    if resources is not None and max(resources.machines, loaded.base.runtime.machines) > 1:
        raise ConfigError("--on: a sweep's worker is on one machine: set machines to 1, and --slots to more")
    folder = output or WORK / "results" / "reports" / loaded.experiment
    fresh = parse_seeds("0-9" if seeds is None else seeds)

    import optuna

    from analysis.sweep.tables import SweepStudy
    from harness.experiments.sweep.study import find_study, open_storage, open_study, storage_errors

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = _storage_url(loaded, storage, begin=form == "run")
    with storage_errors(url):
        opened, limit = open_storage(url), hours or loaded.file.hours
        failed: Mapping[str, str] = {}
        if form == "run":
            study = open_study(loaded, opened)
            if resources is not None:
                return _hand_over(loaded, url, slots or 1, hours, folder, resources)
            failed = _execute(loaded, study, url, slots or 1, limit)
        else:
            study = find_study(loaded, opened, same_model=form == "confirm")
        if form == "confirm":
            failed = _confirm(loaded, SweepStudy(study), fresh, top or 3, slots, folder)
        _report(loaded, SweepStudy(study), folder, url)
    if form == "run" and limit is None:
        return 0 if loaded.is_full(SweepStudy(study).num_finished) else 1
    return 1 if failed else 0


def _storage_url(sweep: "Sweep", storage: str | None, begin: bool) -> str:
    """URL of the studies' database; a SQLite file in the sweep's folder if none is named."""
    from harness.experiments.sweep.study import HIDDEN
    from harness.runs.directory import RUNS

    if given := storage or os.environ.get(STORAGE_VARIABLE):
        if f":{HIDDEN}@" in given:  # the form that jobs are given, and that is shown
            given = os.environ.get(STORAGE_VARIABLE, "")
            if not given or HIDDEN in given:
                raise ConfigError(f"--storage {storage}: its password is to come in {STORAGE_VARIABLE}, all of the URL")
        # Workers have another working directory, so the path is made absolute.
        file = given.removeprefix("sqlite:///")
        if file == given:
            return given
        database = Path(file).absolute()
    else:
        database = RUNS / sweep.experiment / "study.db"
        if begin:
            database.parent.mkdir(parents=True, exist_ok=True)
    if not (begin or database.exists()):
        raise ConfigError(f"study {sweep.name}: not begun, no {database}; adagrpo sweep {sweep.path.stem} begins it")
    return f"sqlite:///{database}"


def _execute(sweep: "Sweep", study: "optuna.Study", url: str, count: int, hours: float | None) -> Mapping[str, str]:
    """Have workers execute the remaining trials. Returns the reasons of failed workers by their ids."""
    from analysis.sweep.tables import SweepStudy
    from harness.experiments.jobs.runner import run_jobs
    from harness.experiments.jobs.slots import Slot, local_slots
    from harness.experiments.sweep.worker import SweepWorker, execute_trials, tell_share
    from harness.runs.directory import RUNS

    if sweep.is_full(finished := SweepStudy(study).num_finished):
        return {}
    folder = RUNS / sweep.experiment
    folder.mkdir(parents=True, exist_ok=True)
    deadline = None if hours is None else time.time() + 3600 * hours
    slots = [
        Slot(slot.placement, slot.environment | {STORAGE_VARIABLE: url})
        for slot in local_slots([sweep.base.runtime], count)
    ]
    jobs = []
    with tempfile.TemporaryDirectory() as name:
        for index in range(len(slots)):
            done, log = Path(name) / str(index), folder / f"worker-{socket.gethostname()}-{index}.log"
            call = partial(execute_trials, sweep, deadline, done)
            tell_share(done, sweep, finished)
            jobs.append(SweepWorker(id=f"worker {index}", call=call, done=done, log=log, config=sweep.base))
        standings = lambda: [f"{SweepStudy(study).num_finished} trials are finished"]  # noqa: E731
        return run_jobs(jobs, slots, folder, say, standings=standings).failed


def _hand_over(
    sweep: "Sweep", url: str, workers: int, hours: float | None, output: Path, resources: "Resources"
) -> int:
    """Submit workers to a launcher, each as its own command; a password is passed only in the environment."""
    from harness.config import located_overrides
    from harness.experiments.jobs.launchers import Task, hand_over
    from harness.experiments.sweep.study import shown_url
    from harness.runs.directory import RUNS

    os.environ[STORAGE_VARIABLE] = url
    options = {"name": sweep.name, "storage": shown_url(url), "output": output.resolve(), "slots": 1}
    options |= {name: value for name, value in (("trials", sweep.file.trials), ("hours", hours)) if value is not None}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "harness.cli", "sweep", str(sweep.path.resolve()), *words]
    command += located_overrides(sweep.overrides)
    folder = RUNS / sweep.experiment
    tasks = [Task(folder / f"worker-{index}", command, sweep.base.runtime) for index in range(workers)]
    return hand_over(tasks, resources, say, f"{workers} workers")


def _confirm(
    sweep: "Sweep", study: "SweepStudy", seeds: Sequence[int], top: int, slots: int | None, folder: Path
) -> Mapping[str, str]:
    """Execute the best trials and the reference on fresh seeds. Returns the reasons of failed runs by their ids."""
    from harness.experiments.runs import run_all
    from harness.experiments.sweep.confirm import candidates, confirmation_configs, write_confirmation
    from harness.runs.directory import prepare_run

    chosen = candidates(sweep, study, top)
    configs = [confirmation_configs(sweep, values, seeds) for _, values in chosen]
    runs = [[prepare_run(config) for config in own] for own in configs]
    # Seed by seed, so that every candidate has its first seed before any has its second.
    outcome = run_all([run for same_seed in zip(*runs, strict=True) for run in same_seed], slots, say)
    write_confirmation(sweep, study, list(zip(chosen, runs, strict=True)), folder)
    return outcome.failed


def _report(sweep: "Sweep", study: "SweepStudy", folder: Path, url: str) -> None:
    """Write tables, figures and page, and print what the study has found, what remains of it on fresh seeds, and that
    its runs were made by other code or on different processors.
    """
    from analysis.cells.logs import hardware_of
    from analysis.runs.runlog import read_directory
    from analysis.runs.sources import note_on_changes
    from analysis.sweep.page import write_sweep_report
    from harness.experiments.sweep.study import shown_url
    from harness.runs.directory import RUNS
    from harness.runs.identity import changes_of

    summary = write_sweep_report(study, sweep.about, sweep.num_trials, folder)
    print(f"\n{summary.read_text(encoding='utf-8')}\ntables, figures and page: {folder}")
    folders = [path.parent for path in (RUNS / sweep.experiment).glob("*/config.yaml")]
    for line in note_on_changes(map(changes_of, folders)):
        print(line)
    processors = set()
    for run in folders:
        with suppress(ConfigError):  # adagrpo status tells of a damaged run
            processors.add(hardware_of(read_directory(run)))
    if len(processors := processors - {""}) > 1:
        print(f"trials' runs are of several processors, whose rounding differs: {'; '.join(sorted(processors))}")
    print(f"look inside: pip install optuna-dashboard && optuna-dashboard '{shown_url(url)}'")
