"""Comparison of cells with the first of them: the runs that it needs, and the conclusions from them."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from analysis.cells.logs import load_logs
from analysis.cells.spending import SPENDING_METRICS
from analysis.cells.study import split_studies
from analysis.formats import WideTable
from analysis.report.head import comparison_table
from analysis.report.report import REPORT_METRICS, write_pages
from analysis.verdicts.compared import DEFINITION, compare_runs
from analysis.verdicts.conclusions import Conclusions, conclusions_frame
from harness.config import ConfigError, RunConfig, check_overrides, compose, merge, parse_overrides, validate
from harness.experiments.grid import files_of
from harness.experiments.jobs.runner import Outcome, Say
from harness.experiments.runs import run_all
from harness.experiments.study import PlannedRun, keep, shard_of
from harness.foundation.files import make_folder, write_atomically
from harness.foundation.plugins import is_reference
from harness.foundation.trained_reward import TrainedReward
from harness.runs.directory import RUNS, RunDirectory, find_run, prepare_run

SHARDS = "runs"
_TAKEN = {"seed": "--seeds"}
_COMMAS = re.compile(r",(?![^{\[]*[}\]])(?=\s*[\w.]+=)")
"""Commas between settings, except those within a list or mapping."""


class Compared(NamedTuple):
    """Result of a comparison of cells."""

    output: Path
    conclusions: Conclusions
    table: WideTable
    """Table with one row per claim."""
    claims: list[dict[str, Any]]
    """Rows of tables/conclusions.csv, with ``pairs_needed``; None for unknown values."""


def configs_of(
    cells: Sequence[str], seeds: Sequence[int], profile: str, common: Sequence[str] = ()
) -> list[list[RunConfig]]:
    """Runs of each cell, one per seed, all of one experiment: the profile's, or that of the first run folder given.

    Args:
        cells: settings separated by commas, such as ``selection=curriculum,fusion.enabled=true``; the reference of a
            plug-in that chooses prompts; ``base``, for no settings; or a run's folder. If there is such a folder,
            settings change its configuration (the first one's), else the profile.
        seeds: seeds of every cell, also of one that is given as a folder.
        profile: name or path of the profile.
        common: settings of all cells, as ``key=value``.

    Raises:
        ConfigError: one of them cannot be composed, or sets a value twice; or they train on different rewards, or are
            of different experiments.
    """
    folders = {cell: RunDirectory(Path(cell)).config for cell in cells if (Path(cell) / "config.yaml").is_file()}
    base = next(iter(folders.values()), None)
    found = []
    for cell in cells:
        settings = [*common, *([] if cell in folders else _settings(cell))]
        # Settings of a method's file may be changed, but no second file may be named.
        check_overrides((f"use_{one}" if files_of(parse_overrides([one])) else one for one in settings), _TAKEN)
        configs = []
        for seed in seeds:
            if base is None:
                configs.append(_composed(profile, [*settings, f"seed={seed}"]))
            else:
                start = folders.get(cell, base).model_dump(mode="json")
                own = parse_overrides([f"experiment={base.experiment}", *settings, f"seed={seed}"])
                configs.append(validate(merge(start, own), cell))
        found.append(configs)
    rewards = {TrainedReward(configs[0].reward).name for configs in found}
    experiments = {configs[0].experiment for configs in found}
    for what, names in (("train on different rewards", rewards), ("are of different experiments", experiments)):
        if len(names) > 1:
            raise ConfigError(f"cells {what}, {' and '.join(sorted(names))}: nothing to compare them by")
    return found


def _settings(cell: str) -> list[str]:
    if cell == "base":
        return []
    is_rule = "=" not in cell and is_reference(cell)
    settings = [f"selection={cell}"] if is_rule else [part.strip() for part in _COMMAS.split(cell)]
    if "=" not in settings[0]:
        raise ConfigError(
            f"cell {cell!r}: is no run's folder; write settings, as in selection=curriculum, the file of a rule, as in "
            "my.py:Rule, or base"
        )
    return settings


def _composed(profile: str, settings: Sequence[str]) -> RunConfig:
    """Compose a run; a setting that names a file of experiments/, as in a grid's cells, is replaced by that file."""
    named = {setting: files_of(parse_overrides([setting])) for setting in settings}
    files = {kind: name for own in named.values() for kind, name in own.items()}
    return compose(profile, overrides=[setting for setting, own in named.items() if not own], **files)  # type: ignore[arg-type]


def execute(
    cells: Sequence[Sequence[RunConfig]], output: Path | None, slots: int | None, say: Say, rerun_changed: bool
) -> tuple[list[list[RunDirectory]], Outcome]:
    """Execute the runs of cells that are missing, seed by seed; returns each cell's runs, and what became of them.

    Args:
        cells: result of ``configs_of``.
        output: folder in whose runs/ each finished run is kept as a shard, and one that is kept there is not executed;
            None to leave runs in results/runs alone.
        slots, say: see ``run_all``.
        rerun_changed: also execute runs that were made by different code.
    """
    kept: dict[str, Any] = {}
    if output is not None:
        make_folder(output)
        kept["on_finished"] = partial(keep, output / SHARDS, [cells[0][0].seed])
    found = [[(config, find_run(config, RUNS)) for config in of_cell] for of_cell in cells]
    missing = [
        prepare_run(config, RUNS, rerun_changed)
        for of_seed in zip(*found, strict=True)
        for config, run in of_seed
        if output is None or PlannedRun(config, run, shard_of(output / SHARDS, run)).is_due(rerun_changed)
    ]
    outcome = run_all(missing, slots, say, **kept) if missing else Outcome()
    return [[run for _, run in of_cell] for of_cell in found], outcome


def is_kept(run: RunDirectory, output: Path | None) -> bool:
    """Whether a folder to write to already holds a run's shard."""
    return output is not None and shard_of(output / SHARDS, run).is_file()


def judged(runs: Sequence[Sequence[RunDirectory]], output: Path | None) -> Compared:
    """Compare cells by their runs, and write tables, figures and the page.

    Args:
        runs: runs of each cell, one per seed; the other cells are compared with the first. One that ``execute`` has
            kept in ``output`` is read there.
        output: folder to write to; None for one in results/reports that is named after the runs.

    Raises:
        ConfigError: there are no runs of two cells.
    """
    of_cells = [[run.run_id for run in own] for own in runs]
    paths = [path for own in runs for run in own if (path := _log_of(run, output)) is not None]
    logs = load_logs(paths, (*SPENDING_METRICS, *REPORT_METRICS), skip_damaged=True)
    [study] = split_studies(logs)
    conclusions = compare_runs(study, of_cells)
    name = hashlib.sha256("".join(sorted(set().union(*of_cells))).encode()).hexdigest()[:8]
    folder = output or runs[0][0].folder.parents[2] / "reports" / f"{study.experiment}-compare-{name}"
    write_pages(logs, {study: conclusions}, folder)
    if output is not None:  # whose page adagrpo report can draw again
        write_atomically(output / SHARDS / DEFINITION, json.dumps(of_cells, indent=1) + "\n")
    needed = [one.pairs_needed for family in conclusions.families.values() for one in family]
    rows = conclusions_frame(study, conclusions).to_dict("records")
    claims = [_plain(row) | {"pairs_needed": n} for row, n in zip(rows, needed, strict=True)]
    return Compared(folder, conclusions, comparison_table(study, conclusions), claims)


def _log_of(run: RunDirectory, output: Path | None) -> Path | None:
    if output is not None and is_kept(run, output):
        return shard_of(output / SHARDS, run)
    return run.folder if (run.folder / "metrics.jsonl").is_file() else None


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): None if value != value else value for key, value in row.items()}
