"""Study: experiments that run in order and share runs, each of which is kept, when finished, as a small file."""

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from analysis.cells.costs import Rates, measured_rates
from analysis.runs.gallery import NUM_PROMPTS
from analysis.runs.shards import SUFFIX, read_shard_environment, write_shards
from analysis.runs.sources import changes_since
from harness.config import EXPERIMENTS, ROOT, ConfigError, RunConfig, Section, nearest, read_yaml, validated
from harness.config.cells import cell_names
from harness.experiments.grid import expand_grid
from harness.experiments.jobs.runner import Outcome, Say
from harness.experiments.plan import expected_seconds
from harness.experiments.runs import run_all
from harness.foundation import processor
from harness.foundation.errors import FileError
from harness.foundation.places import WORK
from harness.runs import directory, identity
from harness.runs.directory import RunDirectory

DEFAULT = EXPERIMENTS / "study" / "all.yaml"


class StudyConfig(Section):
    """Content of a study's file; the experiments are grid files beside it."""

    shards: str
    """Folder of the finished runs' shards, absolute or relative to the folder that contains results/."""
    experiments: tuple[str, ...] = Field(min_length=1)
    """Names of the experiments, in the order in which they run."""
    budget_hours: float | None = Field(None, gt=0)
    """Recorded run time, in hours, that all runs together may take."""
    picture_seeds: tuple[int, ...] = ()
    """Seeds whose pictures are kept: those of all runs would be most of what is committed."""
    rates_from: str | None = None
    """Folder of runs whose speed is used for estimates until the study has finished runs of its own."""


class PlannedRun(NamedTuple):
    """A run of a study."""

    config: RunConfig
    run: RunDirectory
    """Directory in which the run is or would be executed."""
    shard: Path
    """File in which the finished run is kept."""

    @property
    def is_kept(self) -> bool:
        """Whether the run's shard exists."""
        return self.shard.is_file()

    def is_due(self, rerun_changed: bool) -> bool:
        """Whether the run needs execution: it has no shard or, if asked for, one that was made by other code."""
        return not self.is_kept or (rerun_changed and bool(self.changes))

    @property
    def processor(self) -> str:
        """Processor that made the run's shard; empty if it has none, or if that is damaged."""
        try:
            return str(read_shard_environment(self.shard).get("processor", "")) if self.is_kept else ""
        except ConfigError:
            return ""

    @property
    def changes(self) -> list[str]:
        """Changes of the code since its shard was made or, without one, since the run in its directory."""
        if not self.is_kept:
            return identity.changes_of(self.run.folder)
        try:
            return changes_since(read_shard_environment(self.shard))
        except ConfigError:
            return ["code not recorded"]  # a damaged shard does not tell; whoever reads its numbers gets the error


class Study(NamedTuple):
    """Path and content of a study's file."""

    path: Path
    file: StudyConfig

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all experiments, in order."""
        return self.file.experiments

    @property
    def shards(self) -> Path:
        """Folder of the finished runs' shards."""
        return WORK / self.file.shards

    def configs(self, name: str, only: str | None = None, seeds: Sequence[int] | None = None) -> list[RunConfig]:
        """Configurations of an experiment's runs. Raises ConfigError as in ``expand_grid``, or for an unknown name."""
        if name not in self.names:
            raise ConfigError(f"study {self.path}: unknown experiment {name!r}; {nearest(name, self.names)}")
        return expand_grid(str(self.path.with_name(f"{name}.yaml")), only=only, seeds=seeds)

    def planned(self, configs: Iterable[RunConfig]) -> list[PlannedRun]:
        """Directories and shards of runs, without repetitions. Raises ConfigError as in ``find_run``."""
        planned: dict[Path, PlannedRun] = {}
        for config in configs:
            run = directory.find_run(config, directory.RUNS)
            planned.setdefault(run.folder, PlannedRun(config, run, shard_of(self.shards, run)))
        return list(planned.values())

    def execute(
        self, planned: Sequence[PlannedRun], slots: int | None, say: Say, rerun_changed: bool = False
    ) -> Outcome:
        """Execute the runs that have no shard yet; the shard of each is written as soon as it is finished.

        Args:
            planned: runs in order of priority; those with fewer processes come first.
            slots: number of runs at a time, see ``run_all``.
            say: called with lines of progress.
            rerun_changed: also execute runs whose shard was made by different code.

        Raises:
            ConfigError, KeyboardInterrupt: as in ``run_all``.
        """
        missing = [one for one in planned if one.is_due(rerun_changed)]
        say(f"{len(planned) - len(missing)} of {len(planned)} runs are kept already")
        for line in seeds_on_processors(planned):
            say(line)
        outcome = Outcome()
        # Groups of runs that can be launched together, see ``local_slots``.
        for _, group in groupby(sorted(missing, key=_processes), _processes):
            runs = [directory.prepare_run(one.config, directory.RUNS, rerun_changed) for one in group]
            part = run_all(runs, slots, say, on_finished=partial(keep, self.shards, self.file.picture_seeds))
            outcome.finished.extend(part.finished)
            outcome.failed.update(part.failed)
        return outcome


def keep(shards: Path, picture_seeds: Collection[int], run: RunDirectory) -> None:
    """Write the shard of a finished run, with pictures for some seeds; stderr reports a damaged run or a full disk."""
    try:
        write_shards(run.folder, shards, NUM_PROMPTS if run.config.seed in picture_seeds else 0)
    except (ConfigError, FileError) as error:
        print(f"not kept: {error}", file=sys.stderr)


def shard_of(shards: Path, run: RunDirectory) -> Path:
    """File in which a finished run is kept."""
    return shards / run.folder.parent.name / f"{run.run_id}{SUFFIX}"


def _processes(planned: PlannedRun) -> tuple[int, str, int]:
    runtime = planned.config.runtime
    return runtime.processes, runtime.device, runtime.threads


def read_study(path: Path = DEFAULT) -> Study:
    """Read a study's file. Raises ConfigError if it is not valid."""
    return Study(path, validated(StudyConfig, read_yaml(path), str(path)))


# --- what it will take ------------------------------------------------------------------------------------------------


def plan_lines(study: Study, experiments: Mapping[str, Sequence[PlannedRun]]) -> list[str]:
    """Table of experiments (cells, runs, those shared with earlier rows, kept, left, core-hours left), then totals."""
    own = measured_rates(study.shards)
    source = ROOT / study.file.rates_from if own is None and study.file.rates_from else study.shards
    rates = own or measured_rates(source)
    lines = [f"{'experiment':16}{'cells':>6}{'runs':>6}{'shared':>8}{'kept':>6}{'left':>6}{'core-hours left':>17}"]
    every: dict[Path, PlannedRun] = {}
    for name, planned in experiments.items():
        new = [one for one in planned if one.shard not in every]
        every |= {one.shard: one for one in new}
        left, cells = _left(new), len(set(cell_names([one.config for one in planned])))
        hours = f"{_hours(left, rates):.2f}" if rates else "unknown"
        counts = f"{len(planned):6}{len(planned) - len(new):8}{len(new) - len(left):6}{len(left):6}"
        lines.append(f"{name:16}{cells:6}{counts}{hours:>17}")
    lines += [f"\n{line}" for line in identity.note_on_code(one.changes for one in every.values())]
    lines += [f"\n{line}" for line in seeds_on_processors(every.values())]
    left, recorded = _left(every.values()), own.recorded_hours if own else 0.0
    lines.append(f"\n{len(every)} runs, {len(left)} left; {recorded:.2f} core-hours recorded in all shards so far")
    if rates is None:
        return [*lines, "core-hours: not known before a run has finished"]
    needed, budget = _hours(left, rates), study.file.budget_hours
    over = recorded + needed - (budget or 0.0)
    against = f"OVER by {over:.2f}" if over > 0 else f"{-over:.2f} to spare"
    return [
        *lines,
        f"about {needed:.2f} core-hours left, {recorded + needed:.2f} in all"
        + (f"; budget {budget:g}: {against}" if budget else ""),
        f"medians of {rates.num_runs} finished runs in {source}: {1e3 * rates.per_forward:.2f} ms per forward, "
        f"{1e3 * rates.per_reward_call:.1f} ms per reward call, {1e3 * rates.per_picture:.0f} ms per picture evaluated",
    ]


def seeds_on_processors(planned: Iterable[PlannedRun]) -> list[str]:
    """Warnings about seeds that several processors made, or will have made: pairs across them do not count."""
    of_seed: dict[tuple[str, int], set[str]] = {}
    for one in planned:
        made_on = one.processor if one.is_kept else processor.with_capability()
        of_seed.setdefault((one.config.experiment, one.config.seed), set()).update(filter(None, [made_on]))
    mixed = [f"{experiment} {seed}" for (experiment, seed), found in of_seed.items() if len(found) > 1]
    if not mixed:
        return []
    return [
        f"seeds whose runs are, or on this machine would be, of several processors: {', '.join(mixed)}; pairs across "
        "processors do not count: finish them on the same one, or remove such a seed's shards and run it anew"
    ]


def _left(planned: Iterable[PlannedRun]) -> list[PlannedRun]:
    return [one for one in planned if not one.is_kept]


def _hours(planned: Sequence[PlannedRun], rates: Rates) -> float:
    return sum(expected_seconds(one.config, rates) for one in planned) / 3600
