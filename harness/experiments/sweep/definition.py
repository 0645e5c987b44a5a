"""What a sweep is: a file in experiments/sweeps/, checked against the configuration that it varies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from math import inf, prod
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from analysis.sweep.tables import TRAINING_REWARD
from harness.config import (
    ConfigError,
    Positive,
    RunConfig,
    Section,
    Seed,
    check_name,
    compose,
    experiment_path,
    leaves,
    merge,
    nearest,
    nest,
    parse_overrides,
    read_yaml,
    validated,
)
from harness.experiments.sweep.space import Parameter, Point, as_point, parse_space

COMPUTE = "compute"
"""Objective that is not measured on prompts: network forwards spent on training, a trained sample counting 3."""


class SamplerConfig(Section):
    """How points are chosen."""

    kind: Literal["tpe", "random", "grid"] = "tpe"
    seed: int = Field(0, ge=0, lt=2**32)  # as many bits as numpy takes
    """One worker and one seed give the same trials."""
    startup_trials: int = Field(10, ge=1)
    """tpe: random trials before it begins to learn."""


class PrunerConfig(Section):
    """When a trial is given up, from its validations at the interval."""

    kind: Literal["none", "median"] = "none"
    startup_trials: int = Field(5, ge=0)
    """median: trials that are finished before any is given up."""
    warmup_iterations: int = Field(0, ge=0)
    """median: iterations of its first seed that a trial always gets."""


class SweepConfig(Section):
    """A sweep file."""

    profile: str
    """File in experiments/profiles/."""
    method: str | None = None
    """File in experiments/methods/; None for the profile's own."""
    settings: dict[str, Any] = Field({})
    """Dotted keys of all trials' runs."""
    seeds: tuple[Seed, ...] = Field(min_length=1)
    """Seeds of each trial's runs: all trials have the same, so that they are paired."""
    objectives: dict[str, Literal["maximize", "minimize"]] = Field({TRAINING_REWARD: "maximize"}, min_length=1)
    """Metric on validation prompts, or ``compute``, and what is good; with several, the Pareto front is sought."""
    space: dict[str, Any] = Field(min_length=1)
    """Config path -> range or list of choices; see ``parse_space``."""
    reference: dict[str, Any]
    """A value of each path: the first trial, never given up, and what the best are compared with."""
    sampler: SamplerConfig = SamplerConfig()
    pruner: PrunerConfig = PrunerConfig()
    trials: int | None = Field(None, ge=1)
    """How many trials the study is to have, finished or pruned, over all times that the sweep is called; None for as
    many as ``hours`` suffice for, or all points of a grid."""
    hours: Positive | None = None
    """No trial begins later than this after the call."""

    @model_validator(mode="after")
    def _check(self) -> "SweepConfig":
        if self.trials is None and self.hours is None:
            raise ValueError("a sweep needs a budget: set trials, hours or both")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} must differ")
        return self


@dataclass(frozen=True)
class Sweep:
    """A sweep file, ready to be executed.

    Attributes:
        name: of the study and of its runs' folder.
        path: of the file.
        file: its content.
        parameters: its search space.
        overrides: dotted ``key=value`` strings for all runs.
    """

    name: str
    path: Path
    file: SweepConfig
    parameters: tuple[Parameter, ...]
    overrides: tuple[str, ...]

    @property
    def experiment(self) -> str:
        """Folder of the trials' runs in results/runs/; of those that measure the best again, with ``-confirm``."""
        return f"sweep-{self.name}"

    @cached_property
    def base(self) -> RunConfig:
        """The reference's first run."""
        return self.configs(self.file.reference, self.file.seeds[:1])[0]

    @property
    def reference(self) -> Point:
        """The reference as a study holds it."""
        return as_point(self.parameters, self.file.reference)

    @property
    def num_trials(self) -> int | None:
        """The budget: of a grid, no more than there are points; None where time alone limits it."""
        if self.file.sampler.kind != "grid":
            return self.file.trials
        points = prod(parameter.num_values for parameter in self.parameters)
        return int(min(points, self.file.trials or points))

    def is_full(self, num_trials: int) -> bool:
        """Whether so many trials are all that the study is to have."""
        return self.num_trials is not None and num_trials >= self.num_trials

    def configs(self, values: Mapping[str, Any], seeds: Sequence[int], test: bool = False) -> list[RunConfig]:
        """The runs of a point, one per seed.

        Args:
            values: config path -> configuration value.
            seeds: of the runs.
            test: whether they are measured on test prompts when they are trained, as ordinary runs are. Trials are not.

        Raises:
            ConfigError: a run cannot have these values.
        """
        settings = _nested(self.file.settings | {path: v for path, v in values.items() if path != "method"})
        settings["experiment"] = f"{self.experiment}-confirm" if test else self.experiment
        settings = merge(settings, {"evaluation": {"test": test, "base_test": False}})
        method = values.get("method", self.file.method)
        return [
            compose(self.file.profile, method, settings | {"seed": seed}, self.overrides, written_in=self.path)
            for seed in seeds
        ]


def load_sweep(sweep: str, name: str | None = None, overrides: Sequence[str] = (), trials: int | None = None) -> Sweep:
    """Read and check a sweep; nothing heavy is loaded and nothing is written.

    Args:
        sweep: name of a file in experiments/sweeps/, or a path to one.
        name: of the study; None for the file's.
        overrides: dotted ``key=value`` strings for all runs.
        trials: instead of the file's.

    Raises:
        ConfigError: one line that names the file and the key, and the nearest valid one.
    """
    path = experiment_path("sweeps", sweep)
    content = read_yaml(path)
    file = validated(SweepConfig, content if trials is None else content | {"trials": trials}, str(path))
    name = check_name(path.stem if name is None else name, "--name")
    try:
        loaded = Sweep(name, path, file, parse_space(file.space), tuple(overrides))
        _check_keys_are_free(loaded)
        _check_points(loaded)
        _check_objectives(loaded)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return loaded


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    return reduce(merge, (nest(key, value) for key, value in settings.items()), {})


def _check_keys_are_free(sweep: Sweep) -> None:
    """No setting or override may set what the sweep sets: one of the two would be ignored."""
    taken = [*(p.path for p in sweep.parameters), "seed", "experiment", "evaluation.test", "evaluation.base_test"]
    for key in leaves(_nested(sweep.file.settings)) | leaves(parse_overrides(sweep.overrides)):
        for path in taken:
            if f"{key}.".startswith(f"{path}.") or path.startswith(f"{key}."):
                raise ConfigError(f"{key}: the sweep itself sets {path}")


def _check_points(sweep: Sweep) -> None:
    """Every bound and choice makes a run that is valid, beside the reference's other values, which are valid.

    Two that are valid beside the reference may not go together; a trial of such a point is given up at once.
    """
    _ = sweep.base
    for parameter in sweep.parameters:
        if sweep.file.sampler.kind == "grid" and parameter.num_values == inf:
            raise ConfigError(f"space: {parameter.path}: the grid sampler needs a step, or a list of choices")
        for value in parameter.extremes():
            try:
                sweep.configs(sweep.file.reference | {parameter.path: value}, sweep.file.seeds[:1])
            except ConfigError as error:
                raise ConfigError(f"space: {parameter.path}: {error}") from None
    _ = sweep.reference


def _check_objectives(sweep: Sweep) -> None:
    """Raise ConfigError unless they are measured, and where trials are pruned, more than once and comparably."""
    file, base = sweep.file, sweep.base
    measured = [TRAINING_REWARD, COMPUTE, *dict.fromkeys((*base.reward, *base.evaluation.judges))]
    for metric in file.objectives:
        if metric.partition("/")[0] not in measured:
            raise ConfigError(f"objectives: {metric!r} is not measured; {nearest(metric, measured)}")
    if base.runtime.processes > 1:
        raise ConfigError("runtime.processes: a trial's runs are executed in one process; set it to 1")
    pruner = f"pruner.kind={file.pruner.kind}"
    if file.pruner.kind == "none":
        return
    if len(file.objectives) > 1 or COMPUTE in file.objectives:
        raise ConfigError(f"{pruner}: needs one objective that is measured at validations; use none")
    if any(parameter.path == "iterations" for parameter in sweep.parameters):
        raise ConfigError(f"{pruner}: compares trials of equal iterations; use none")
    if base.evaluation.interval >= base.iterations:
        raise ConfigError(
            f"{pruner}: evaluation.interval={base.evaluation.interval} leaves no validation before the end, "
            f"iterations={base.iterations}; lower it"
        )
