"""Definition of a sweep: a file in experiments/sweeps/, checked against the configuration that it varies."""

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
"""Objective that is not measured on prompts: forward passes spent on training, a trained sample counting 3."""


class SamplerConfig(Section):
    """Choice of points."""

    kind: Literal["tpe", "random", "grid"] = "tpe"
    seed: int = Field(0, ge=0, lt=2**32)  # as many bits as numpy takes
    """Seed of the sampler: with one worker, the same seed gives the same trials."""
    startup_trials: int = Field(10, ge=1)
    """tpe: number of random trials before it begins to learn."""


class PrunerConfig(Section):
    """Early end of trials, decided at their interval validations."""

    kind: Literal["none", "median"] = "none"
    startup_trials: int = Field(5, ge=0)
    """median: number of trials that finish before any is pruned."""
    warmup_iterations: int = Field(0, ge=0)
    """median: number of iterations, from the start of its first seed, that a trial always gets."""


class SweepConfig(Section):
    """Content of a sweep's file."""

    profile: str
    """Name of a file in experiments/profiles/."""
    method: str | None = None
    """Name of a file in experiments/methods/; None for the profile's own."""
    settings: dict[str, Any] = Field({})
    """Settings of all trials' runs, by dotted key."""
    seeds: tuple[Seed, ...] = Field(min_length=1)
    """Seeds of each trial's runs: the same for all trials, so that they are paired."""
    objectives: dict[str, Literal["maximize", "minimize"]] = Field({TRAINING_REWARD: "maximize"}, min_length=1)
    """Metrics on validation prompts, or ``compute``, with their direction; for several the Pareto front is sought."""
    space: dict[str, Any] = Field(min_length=1)
    """Range or list of choices by config path, see ``parse_space``."""
    reference: dict[str, Any]
    """Value of each path in ``space``: the first trial, which is never pruned, and the baseline for the best ones."""
    sampler: SamplerConfig = SamplerConfig()
    pruner: PrunerConfig = PrunerConfig()
    trials: int | None = Field(None, ge=1)
    """Number of trials, finished or pruned, that the study gets over all calls of the sweep; None for as many as fit
    into ``hours``, or all points of a grid."""
    hours: Positive | None = None
    """Hours after the call from which on no trial begins."""

    @model_validator(mode="after")
    def _check(self) -> "SweepConfig":
        if self.trials is None and self.hours is None and self.sampler.kind != "grid":
            raise ValueError("a sweep needs a budget: set trials, hours or both")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} must differ")
        return self


@dataclass(frozen=True)
class Sweep:
    """A checked sweep, ready to be executed.

    Attributes:
        name: name of the study, and part of the name of its runs' folder.
        path: path of the sweep's file.
        file: content of the file.
        parameters: dimensions of its search space.
        overrides: dotted ``key=value`` strings for all runs.
    """

    name: str
    path: Path
    file: SweepConfig
    parameters: tuple[Parameter, ...]
    overrides: tuple[str, ...]

    @property
    def experiment(self) -> str:
        """Folder of the trials' runs in results/runs/; runs of a confirmation are in one with ``-confirm`` added."""
        return f"sweep-{self.name}"

    @cached_property
    def base(self) -> RunConfig:
        """Configuration of the reference's first run."""
        return self.configs(self.file.reference, self.file.seeds[:1])[0]

    @property
    def reference(self) -> Point:
        """The reference in the study's representation."""
        return as_point(self.parameters, self.file.reference)

    @property
    def num_trials(self) -> int | None:
        """Number of trials in the budget, for a grid at most the number of points; None if only time limits it."""
        if self.file.sampler.kind != "grid":
            return self.file.trials
        points = prod(parameter.num_values for parameter in self.parameters)
        return int(min(points, self.file.trials or points))

    @property
    def about(self) -> str:
        """What its trials are, in a few words."""
        about = f"profile {self.file.profile}, {self.base.method.kernel}, {self.base.iterations} iterations"
        return f"{about}, sampler {self.file.sampler.kind}, pruner {self.file.pruner.kind}"

    def is_full(self, num_trials: int) -> bool:
        """Whether ``num_trials`` trials are all that the study gets."""
        return self.num_trials is not None and num_trials >= self.num_trials

    def configs(self, values: Mapping[str, Any], seeds: Sequence[int], test: bool = False) -> list[RunConfig]:
        """Configurations of a point's runs, one per seed.

        Args:
            values: configuration values by config path.
            seeds: seeds of the runs.
            test: whether the trained models are measured on test prompts, as in ordinary runs; those of trials are not.

        Raises:
            ConfigError: the values are not valid for a run.
        """
        method = values.get("method", self.file.method)
        common = self.file.settings | {path: value for path, value in values.items() if path != "method"}
        common |= {"experiment": f"{self.experiment}-confirm" if test else self.experiment}
        common |= {"evaluation.test": test, "evaluation.base_test": False}
        return [
            compose(self.file.profile, method, _nested(common | {"seed": seed}), self.overrides, written_in=self.path)
            for seed in seeds
        ]


def load_sweep(sweep: str, name: str | None = None, overrides: Sequence[str] = (), trials: int | None = None) -> Sweep:
    """Read and check a sweep; nothing heavy is loaded and nothing is written.

    Args:
        sweep: name of a file in experiments/sweeps/, or a path to one.
        name: name of the study; None for that of the file.
        overrides: dotted ``key=value`` strings for all runs.
        trials: number of trials instead of the file's.

    Raises:
        ConfigError: something is not valid; one line names the file and the key, and the nearest valid one.
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
    """Raise ConfigError if a setting or override sets what the sweep itself sets: one of the two would be ignored."""
    taken = [*(p.path for p in sweep.parameters), "seed", "experiment", "evaluation.test", "evaluation.base_test"]
    for key in leaves(_nested(sweep.file.settings)) | leaves(parse_overrides(sweep.overrides)):
        for path in taken:
            if f"{key}.".startswith(f"{path}.") or path.startswith(f"{key}."):
                raise ConfigError(f"{key}: the sweep itself sets {path}")


def _check_points(sweep: Sweep) -> None:
    """Raise ConfigError unless every bound and choice is valid together with the reference's other values.

    Two values that are valid beside the reference may not be valid together; a trial of such a point is pruned at once.
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
    """Raise ConfigError if an objective is not measured, a run needs several processes, or trials cannot be pruned."""
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
