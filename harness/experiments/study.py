"""A study: experiments that run in order, share runs, and keep each finished one as a small file that is committed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from pydantic import Field, ValidationError

from analysis.runs.shards import read_shard_environment
from analysis.runs.sources import changes_since
from harness.config import EXPERIMENTS, ROOT, ConfigError, RunConfig, Section, nearest, one_line, read_yaml
from harness.config.cells import cell_names
from harness.experiments.doctor.compute import evaluation_pictures
from harness.experiments.grid import expand_grid
from harness.experiments.jobs.runner import Outcome, Say
from harness.experiments.jobs.runs import run_all
from harness.prompts.lists import read_prompts
from harness.runs import identity
from harness.runs.directory import RunDirectory, find_run, prepare_run
from harness.training.accounting import expected_cost

DEFAULT = EXPERIMENTS / "studies" / "all.yaml"


class StudyConfig(Section):
    """A study's file; its experiments are grid files beside it."""

    shards: str
    """Folder of finished runs, absolute or relative to the repository."""
    experiments: tuple[str, ...] = Field(min_length=1)
    """In the order in which they run."""
    tuning: str | None = None
    """The experiment that chooses the settings of the others; it runs first."""
    budget_hours: float | None = Field(None, gt=0)
    """Of recorded run time, all runs together."""
    rates_from: str | None = None
    """Folder of runs whose pace serves for estimates until the study has runs of its own."""


class Study(NamedTuple):
    """A study's file, read."""

    path: Path
    file: StudyConfig

    @property
    def names(self) -> tuple[str, ...]:
        """All experiments in order, tuning first."""
        return ((self.file.tuning,) if self.file.tuning else ()) + self.file.experiments

    @property
    def shards(self) -> Path:
        """Folder of finished runs."""
        return ROOT / self.file.shards

    def configs(self, name: str, only: str | None = None, seeds: Sequence[int] | None = None) -> list[RunConfig]:
        """The runs of an experiment. Raises ConfigError as ``expand_grid``, and for an unknown name."""
        if name not in self.names:
            raise ConfigError(f"study {self.path}: unknown experiment {name!r}; {nearest(name, self.names)}")
        return expand_grid(str(self.path.with_name(f"{name}.yaml")), only=only, seeds=seeds)


class PlannedRun(NamedTuple):
    """A run of a study."""

    config: RunConfig
    run: RunDirectory
    """Where it is or would be executed."""
    shard: Path
    """Where it is kept once it is finished."""

    @property
    def is_kept(self) -> bool:
        """Whether it needs no execution any more: its shard is there."""
        return self.shard.is_file()

    @property
    def changes(self) -> list[str]:
        """``changes_since`` its shard was made, or what the directory it is executed in has."""
        if not self.is_kept:
            return identity.changes_of(self.run.folder)
        try:
            return changes_since(read_shard_environment(self.shard))
        except ConfigError:
            return ["code not recorded"]  # a damaged shard says nothing of its code; who reads its numbers is told


def read_study(path: Path = DEFAULT) -> Study:
    """Read a study's file. Raises ConfigError in one line."""
    try:
        return Study(path, StudyConfig.model_validate(read_yaml(path)))
    except ValidationError as error:
        raise ConfigError(f"{path}: {one_line(error, StudyConfig)}") from None


def plan_runs(study: Study, configs: Sequence[RunConfig], root: Path) -> list[PlannedRun]:
    """Where runs are and will be kept; one that occurs twice is there once.

    Args:
        study: that they belong to.
        configs: the runs.
        root: folder of run directories.

    Raises:
        ConfigError: as ``find_run``.
    """
    planned: dict[Path, PlannedRun] = {}
    for config in configs:
        run = find_run(config, root)
        planned.setdefault(
            run.folder, PlannedRun(config, run, study.shards / config.experiment / f"{run.run_id}.parquet")
        )
    return list(planned.values())


def execute(
    planned: Sequence[PlannedRun],
    slots: int | None,
    say: Say,
    keep: Callable[[RunDirectory], object],
    root: Path,
    rerun_changed: bool = False,
) -> Outcome:
    """Execute the runs that have no shard yet; each is kept as soon as it is finished.

    Args:
        planned: in the order in which they are wanted; those of one process a run come first.
        slots: runs at a time, see ``run_all``.
        say: receives lines of progress.
        keep: writes a finished run's shard.
        root: folder of run directories.
        rerun_changed: those too that other code has made.

    Raises:
        ConfigError, KeyboardInterrupt: as ``run_all``.
    """
    missing = [one for one in planned if not one.is_kept or (rerun_changed and one.changes)]
    say(f"{len(planned) - len(missing)} of {len(planned)} runs are kept already")
    outcome = Outcome()
    for group in _by_runtime(missing):
        runs = [prepare_run(one.config, root, rerun_changed) for one in group]
        for run in runs:
            if run.status()["state"] == "finished":
                keep(run)
        part = run_all(runs, slots, say, on_finished=keep)
        outcome.finished.extend(part.finished)
        outcome.failed.update(part.failed)
    return outcome


def _by_runtime(planned: Sequence[PlannedRun]) -> Iterator[list[PlannedRun]]:
    """Runs that can be launched together, see ``local_slots``."""
    groups: dict[tuple[int, str, int], list[PlannedRun]] = {}
    for one in planned:
        runtime = one.config.runtime
        groups.setdefault((runtime.processes, runtime.device, runtime.threads), []).append(one)
    for key in sorted(groups):
        yield groups[key]


# --- what it will take ----------------------------------------------------------------------------------------------


class Rates(Protocol):
    """Seconds of a unit of work, as measured; see ``analysis.cells.costs``."""

    @property
    def per_forward(self) -> float: ...
    @property
    def per_reward_call(self) -> float: ...
    @property
    def per_picture(self) -> float: ...


def expected_seconds(config: RunConfig, rates: Rates) -> float:
    """Recorded run time of a run, without the untrained model's evaluation, which an experiment makes once."""
    cost = expected_cost(config)
    validation = len(read_prompts(config.prompts.validation).prompts)
    test = len(read_prompts(config.prompts.test).prompts) if config.evaluation.test else 0
    pictures = evaluation_pictures(config, validation, test)
    pictures -= min(config.evaluation.validation_prompts, validation)
    pictures -= test * config.evaluation.test_noises if config.evaluation.base_test else 0
    training = cost.forwards * rates.per_forward + cost.reward_calls * rates.per_reward_call
    return config.iterations * training + pictures * rates.per_picture


def plan_lines(experiments: Mapping[str, Sequence[PlannedRun]], rates: Rates | None) -> list[str]:
    """A line an experiment: cells, runs, runs shared with earlier lines, kept, left, and core-hours left."""
    lines = [f"{'experiment':16}{'cells':>6}{'runs':>6}{'shared':>8}{'kept':>6}{'left':>6}{'core-hours left':>17}"]
    seen: set[Path] = set()
    for name, planned in experiments.items():
        own = [one for one in planned if one.shard not in seen]
        left = [one for one in own if not one.is_kept]
        seen |= {one.shard for one in own}
        hours = f"{hours_left(left, rates):.2f}" if rates else "unknown"
        cells = len(set(cell_names([one.config for one in planned])))
        kept, shared = len(own) - len(left), len(planned) - len(own)
        lines.append(f"{name:16}{cells:6}{len(planned):6}{shared:8}{kept:6}{len(left):6}{hours:>17}")
    return lines


def hours_left(planned: Sequence[PlannedRun], rates: Rates) -> float:
    """Core-hours of the runs that have no shard yet."""
    return sum(expected_seconds(one.config, rates) for one in planned if not one.is_kept) / 3600


# --- tuned settings -------------------------------------------------------------------------------------------------


def tuned_method(kernel: str) -> str:
    """Name of the method file that tuning writes."""
    return f"study_{kernel}"


def tuned_text(kernel: str, eta: float, learning_rate: float, evidence: Sequence[str]) -> str:
    """Content of the method file of a kernel.

    Args:
        kernel: that it extends the method file of.
        eta: chosen.
        learning_rate: chosen.
        evidence: lines that say why.
    """
    comment = "".join(f"# {line}\n" for line in evidence)
    return (
        f"{comment}extends: {kernel}\nmethod: {{eta: {eta:g}}}\noptimizer: {{learning_rate: {_yaml(learning_rate)}}}\n"
    )


def _yaml(value: float) -> str:
    """A float as YAML 1.1 knows it: with a dot even before an exponent."""
    mantissa, e, exponent = f"{value:g}".partition("e")
    return f"{mantissa}.0{e}{exponent}" if e and "." not in mantissa else f"{value:g}"
