"""Many runs: grids and studies on this machine, their progress, and what the machine lacks for them."""

import sys
from collections.abc import Sequence
from functools import partial
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from harness.commands import command, say
from harness.commands.runs import Rerun
from harness.foundation.errors import ConfigError
from harness.foundation.places import WORK

if TYPE_CHECKING:
    from harness.experiments.jobs.runner import Outcome

Only = Annotated[
    str | None, "cells to run, such as 'method=flow_grpo selection=random,curriculum' (in a study: of one experiment)"
]
Seeds = Annotated[str | None, "seeds to run, such as 0-4 or 0,2,5 (default: the grid's own)"]
Plan = Annotated[bool, "list runs, hours and disk space, and run nothing"]
On = Annotated[str | None, "submit runs to the launcher of a file in experiments/clusters/, such as slurm, and exit"]
Slots = Annotated[int | None, "number of parallel runs (default: as many as cores or GPUs suffice for)", 1]


@command
def grid(
    grid: Annotated[str | None, "name of a file in experiments/grids/, or a path"] = None,
    overrides: Annotated[Sequence[str], "settings for every run"] = (),
    *,
    profile: Annotated[str | None, "name of a file in experiments/profiles/ (default: the grid's own)"] = None,
    only: Only = None,
    seeds: Seeds = None,
    plan: Plan = False,
    list: Annotated[bool, "list all grids, their runs, and how far their profiles are verified"] = False,
    slots: Slots = None,
    on: On = None,
    rerun_changed: Rerun = False,
) -> int:
    """Execute all runs of a grid; finished runs are skipped, unfinished ones resumed.

    Example: ``adagrpo grid miniature --only 'selection=hardest' --seeds 3-5 --plan``
    """
    from harness.experiments.grid import expand_grid, grid_lines, parse_seeds
    from harness.experiments.jobs.slots import local_slots
    from harness.experiments.plan import plan as planned
    from harness.experiments.plan import require_different
    from harness.experiments.runs import hand_over_all, run_all
    from harness.runs.directory import find_run, prepare_run

    if list:
        if any((grid, overrides, profile, only, seeds, plan, slots, on, rerun_changed)):
            raise ConfigError("--list lists all grids, and takes nothing else")
        print("\n".join(grid_lines()))
        return 0
    if grid is None:
        raise ConfigError("adagrpo grid: name a grid; adagrpo grid --list says which there are")
    configs = expand_grid(
        grid, overrides, profile=profile, only=only, seeds=None if seeds is None else parse_seeds(seeds)
    )
    require_different(map(find_run, configs))
    if on is not None:
        if plan or slots is not None:
            raise ConfigError("--on hands runs over; --plan and --slots are for this machine")
        return hand_over_all((prepare_run(c, rerun_changed=rerun_changed) for c in configs), on, say)
    found = local_slots([config.runtime for config in configs], slots)
    if plan:
        print("\n".join(planned(configs, len(found))))
        return 0
    return exit_code(run_all([prepare_run(c, rerun_changed=rerun_changed) for c in configs], slots, say))


def exit_code(outcome: "Outcome") -> int:
    """Exit code: 1 if a job failed, each of which is named once more; else 0."""
    for name, reason in outcome.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if outcome.failed else 0


@command
def compare(
    cells: Annotated[
        Sequence[str],
        "two or more cells, each compared with the first: settings, such as selection=curriculum or "
        "'selection=my.py:Rule,fusion.enabled=true'; the file of a rule, such as my.py:Rule; a run's folder; or base",
    ],
    *,
    seeds: Annotated[str, "seeds, each of which gives one pair of runs"] = "0-7",
    profile: Annotated[str, "name of a file in experiments/profiles/, or a path"] = "miniature",
    set: Annotated[tuple[str, ...], "setting KEY=VALUE for all cells; may be repeated"] = (),
    output: Annotated[
        Path | None,
        "folder for tables, figures and page, and for finished runs as shards (default: results/reports/...)",
    ] = None,
    plan: Plan = False,
    json: Annotated[bool, "print the claims as JSON, and progress to stderr"] = False,
    slots: Slots = None,
    rerun_changed: Rerun = False,
) -> int:
    """Compare cells, executing the runs that are missing; they are judged by the grid's rule, at the end of training
    and at equal compute. Exit code 0 if every run has finished, whatever the verdict; 1 if one failed; 2 for bad input.

    Example: ``adagrpo compare base selection=curriculum --seeds 0-1 --plan``
    """
    import json as writing

    from analysis.formats import entry_text
    from analysis.report.head import cautions
    from analysis.verdicts.conclusions import sentences
    from harness.experiments.compare import configs_of, execute, is_kept, judged
    from harness.experiments.grid import parse_seeds
    from harness.experiments.jobs.slots import local_slots
    from harness.experiments.plan import plan as planned
    from harness.experiments.plan import require_different
    from harness.runs.directory import find_run

    if len(cells) < 2:
        raise ConfigError("adagrpo compare: name two cells at least, as in  adagrpo compare base selection=curriculum")
    if plan and json:
        raise ConfigError("--json prints the claims, and --plan makes none; leave one out")
    found = configs_of(cells, parse_seeds(seeds), profile, set)
    configs = [config for of_seed in zip(*found, strict=True) for config in of_seed]
    require_different(map(find_run, configs))
    if plan:
        count = len(local_slots([config.runtime for config in configs], slots))
        print("\n".join(planned(configs, count, partial(is_kept, output=output))))
        return 0
    progress = partial(print, file=sys.stderr, flush=True) if json else say
    runs, outcome = execute(found, output, slots, progress, rerun_changed)
    result = judged(runs, output)
    if json:
        print(writing.dumps({"page": str(result.output / "report.html"), "claims": result.claims}, indent=1))
        return exit_code(outcome)
    for title, family in result.conclusions.families.items():
        print(f"\n{title}: {' '.join([*sentences(family), *cautions(family)])}")
    _, *head = result.table.head
    for label, entries in result.table.rows:
        texts = [f"{name} {entry_text(entry)}" for name, entry in zip(head, entries, strict=True)]
        print(f"  {label}: {', '.join(texts)}")
    print(f"page: {result.output / 'report.html'}")
    return exit_code(outcome)


@command
def reproduce(
    *,
    profile: Annotated[str, "name of a file in experiments/profiles/"] = "miniature",
    only: Only = None,
    seeds: Seeds = None,
    plan: Plan = False,
    slots: Slots = None,
    rerun_changed: Rerun = False,
) -> int:
    """Execute a profile's grid and write the report, even if some runs fail.

    Example: ``adagrpo reproduce --profile smoke``
    """
    from harness.commands.reports import report
    from harness.config import compose, grid_of
    from harness.runs.directory import RUNS

    named, config = grid_of(profile), compose(profile)
    # This takes hours of GPUs and gigabytes of weights, so what is missing is reported before anything starts.
    if config.runtime.device == "cuda" and not plan and doctor(profile=profile) != 0:
        return 2
    code = grid(named, profile=profile, only=only, seeds=seeds, plan=plan, slots=slots, rerun_changed=rerun_changed)
    if not plan:
        report(runs=RUNS / config.experiment, output=WORK / "results" / "reports" / config.experiment)
    return code


@command
def study(
    experiments: Annotated[Sequence[str], "names of files beside the study's file (default: all experiments)"] = (),
    *,
    study: Annotated[Path | None, "the study's file (default: experiments/study/all.yaml)"] = None,
    only: Only = None,
    seeds: Seeds = None,
    plan: Plan = False,
    slots: Slots = None,
    rerun_changed: Rerun = False,
) -> int:
    """Execute the study's experiments; runs whose shard exists are skipped.

    Example: ``adagrpo study --plan``
    """
    from harness.experiments.grid import parse_seeds
    from harness.experiments.study import DEFAULT, plan_lines, read_study

    found = read_study(study or DEFAULT)
    names = tuple(dict.fromkeys(experiments)) or found.names
    chosen = only, None if seeds is None else parse_seeds(seeds)
    if chosen != (None, None) and len(names) != 1:
        raise ConfigError("--only and --seeds choose among the runs of one experiment: name it")

    # All are read before the first run, so that errors are reported before anything is made.
    planned = {name: found.planned(found.configs(name, *chosen)) for name in names}
    if plan:
        print("\n".join(plan_lines(found, planned)))
        return 0
    runs = [one for of_name in planned.values() for one in of_name]
    return exit_code(found.execute(runs, slots, say, rerun_changed))


@command
def status(
    *,
    runs: Annotated[Path | None, "folder of runs (default: results/runs)"] = None,
    json: Annotated[bool, "print a JSON list of the runs instead, for programs"] = False,
) -> int:
    """Show the progress of runs, failures, and the standings.

    Example: ``adagrpo status --runs results/runs/miniature``
    """
    from harness.experiments.status import status_lines, status_records
    from harness.runs.directory import RUNS

    folder = runs or RUNS
    if not folder.is_dir():
        raise ConfigError(f"--runs {folder}: no such folder")
    print(dumps(status_records(folder), indent=1) if json else "\n".join(status_lines(folder)))
    return 0


@command
def watch(
    runs: Annotated[Path, "a run's directory, or a folder of runs, such as results/runs/smoke"],
    *,
    every: Annotated[float, "seconds between two updates of the page", 1, 1e6] = 10.0,
    once: Annotated[bool, "write the page once and exit"] = False,
    output: Annotated[Path | None, "file to write (default: results/reports/NAME/watch.html)"] = None,
) -> int:
    """Write a page that reloads itself while runs are at work: curves, health, prompts chosen last, pictures.
    It ends when no run is at work any more.

    Example: ``adagrpo watch results/runs/smoke``
    """
    from harness.experiments.watch import watch as watched

    page = output or WORK / "results" / "reports" / runs.resolve().name / "watch.html"
    watched(runs, page, every, once, say)
    return 0


@command
def doctor(
    overrides: Annotated[Sequence[str], "settings for every run"] = (),
    *,
    profile: Annotated[str, "name of a file in experiments/profiles/"] = "smoke",
    seconds_per_forward: Annotated[
        float | None, "seconds of a forward pass with one sample (default: measured or estimated)", 1e-09
    ] = None,
    measured: Annotated[Path | None, "gpu-check.json, written by adagrpo gpu-check, with figures for estimates"] = None,
    json: Annotated[bool, "print the findings as JSON instead, for programs"] = False,
) -> int:
    """Compare what a profile needs with this machine, and list what is missing.

    Example: ``adagrpo doctor --profile paper``
    """
    from harness.experiments.doctor.checks import check
    from harness.experiments.doctor.speed import read_measured

    report = check(profile, overrides, seconds_per_forward, read_measured(measured) if measured else {})
    say(dumps(report.record(), indent=1) if json else "\n".join(report.lines()))
    return 2 if report.missing else 0


@command
def gpu_check(
    *,
    device: Annotated[Literal["cuda", "cpu"], "device to check"] = "cuda",
    tiny: Annotated[bool, "use tiny widths: the same checks in a minute, on a CPU"] = False,
    only: Annotated[str | None, "name of the only check to run"] = None,
    output: Annotated[Path | None, "output folder (default: results/gpu-check)"] = None,
) -> int:
    """Check results, memory and speed of this machine's GPU against what is expected: the first ten minutes on it.

    Example: ``adagrpo gpu-check --tiny --device cpu``
    """
    from tempfile import TemporaryDirectory

    import torch

    from harness.experiments.gpu_check.bench import Bench
    from harness.experiments.gpu_check.report import run_checks

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: no CUDA device is here; --tiny --device cpu runs the same checks on the CPU")
    folder = output or WORK / "results" / "gpu-check"
    with TemporaryDirectory() as scratch:
        is_well = run_checks(Bench(torch.device(device), tiny, Path(scratch)), folder, say, only)
    say(f"{folder / 'index.html'}")
    return 0 if is_well else 1
