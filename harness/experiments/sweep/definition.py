"""What a sweep is: a file in experiments/sweeps/, checked against the configuration that it varies."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from harness.config import (
    ConfigError,
    Positive,
    RunConfig,
    Section,
    Seed,
    check_name,
    compose,
    experiment_path,
    merge,
    nearest,
    nest,
    one_line,
    parse_overrides,
    read_yaml,
)
from harness.experiments.sweep.space import Parameter, Scalar, grid_points, parse_space

TRAINING_REWARD = "training_reward"
"""Objective: the trained reward on validation prompts, whatever it is made of."""
COMPUTE = "compute"
"""Objective: network forwards spent on training, a trained sample counting 3."""
COSTS = ("sample_forwards", "train_forwards", "reward_calls", COMPUTE)
"""Objectives that are not measured on prompts."""

Direction = Literal["maximize", "minimize"]


class SamplerConfig(Section):
    """How points are chosen."""

    kind: Literal["tpe", "random", "grid", "gp"] = "tpe"
    seed: int = Field(0, ge=0, lt=2**32)  # as many bits as numpy takes
    """One worker and one seed give the same trials."""
    startup_trials: int = Field(10, ge=1)
    """tpe and gp: random trials before they begin to learn."""

    @model_validator(mode="after")
    def _check_keys(self) -> "SamplerConfig":
        _only_used_keys(self, "sampler", {"startup_trials": ("tpe", "gp")})
        return self


class PrunerConfig(Section):
    """When a trial is given up, from its validations at the interval."""

    kind: Literal["none", "median", "hyperband"] = "none"
    startup_trials: int = Field(5, ge=0)
    """median: trials that are finished before any is given up."""
    warmup_iterations: int = Field(0, ge=0)
    """median: iterations of its first seed that a trial always gets."""
    reduction_factor: int = Field(3, ge=2)
    """hyperband: one of so many trials goes on at each rung."""

    @model_validator(mode="after")
    def _check_keys(self) -> "PrunerConfig":
        used = {"startup_trials": ("median",), "warmup_iterations": ("median",), "reduction_factor": ("hyperband",)}
        _only_used_keys(self, "pruner", used)
        return self


def _only_used_keys(section: SamplerConfig | PrunerConfig, name: str, used_by: Mapping[str, Sequence[str]]) -> None:
    for key, kinds in used_by.items():
        if key in section.model_fields_set and section.kind not in kinds:
            raise ValueError(f"{name}.{key}: the kind {section.kind} does not use it")


class SweepConfig(Section):
    """A sweep file."""

    profile: str
    """File in experiments/profiles/."""
    method: str | None = None
    """File in experiments/methods/; None for the profile's own."""
    settings: dict[str, Any] = Field({})
    """Dotted keys of all trials' runs."""
    seeds: tuple[Seed, ...] = Field(min_length=1)
    """Of each trial's runs: all trials have the same, so that they are paired."""
    objectives: dict[str, Direction] = Field({TRAINING_REWARD: "maximize"}, min_length=1)
    """Metric on validation prompts, or cost, and what is good; with several, the Pareto front is sought."""
    space: dict[str, Any] = Field(min_length=1)
    """Config path -> range or list of choices; see ``parse_space``."""
    reference: dict[str, Any] | None = None
    """A value of each path: the first trial, never given up, and what the best are compared with."""
    sampler: SamplerConfig = SamplerConfig()
    pruner: PrunerConfig = PrunerConfig()
    trials: int | None = Field(None, ge=1)
    """How many trials the study is to have, finished or pruned, over all times that the sweep is called; None for as
    many as ``hours`` suffice for, or all points of a grid."""
    hours: Positive | None = None
    """No trial begins later than this after the call."""

    @model_validator(mode="after")
    def _check_budget(self) -> "SweepConfig":
        if self.trials is None and self.hours is None:
            raise ValueError("a sweep needs a budget: set trials, hours or both")
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
        """Folder of the trials' runs in results/runs/."""
        return f"sweep-{self.name}"

    @property
    def confirmation_experiment(self) -> str:
        """Folder of the runs that measure the best again."""
        return f"{self.experiment}-confirm"

    @cached_property
    def base(self) -> RunConfig:
        """The reference's first run; without a reference, what the file says without the space."""
        return self.configs(self.reference_values, self.file.seeds[:1])[0]

    @property
    def reference_values(self) -> dict[str, Any]:
        """The reference as configuration values; empty without one."""
        return dict(self.file.reference or {})

    @cached_property
    def num_trials(self) -> int | None:
        """The budget: of a grid, no more than there are points; None where time alone limits it."""
        budget = self.file.trials
        if self.file.sampler.kind != "grid":
            return budget
        points = len(self.planned_points())
        return points if budget is None else min(budget, points)

    def is_full(self, num_trials: int) -> bool:
        """Whether so many trials are all that the study is to have."""
        return self.num_trials is not None and num_trials >= self.num_trials

    def suggested(self, values: Mapping[str, Any]) -> dict[str, Scalar]:
        """A point's configuration values as a study holds them; only of the paths that it has.

        Raises:
            ConfigError: a value is outside the space.
        """
        return {p.path: p.suggested(values[p.path]) for p in self.parameters if p.path in values}

    def planned_points(self) -> list[dict[str, Scalar]]:
        """What is tried before any sampler is asked, in order: the reference, and all points of a grid."""
        points = []
        if self.file.reference is not None:
            points.append(self.suggested(self.file.reference))
        if self.file.sampler.kind == "grid":
            grid = grid_points(self.parameters, self.file.sampler.seed)
            points += [point for point in grid if point not in points]
        return points

    def configs(self, values: Mapping[str, Any], seeds: Sequence[int], test: bool = False) -> list[RunConfig]:
        """The runs of a point, one a seed.

        Args:
            values: config path -> configuration value; a path left out keeps what the file says without the space.
            seeds: of the runs.
            test: whether they are measured on test prompts when they are trained, as ordinary runs are. Trials are not.

        Raises:
            ConfigError: a run cannot have these values.
        """
        settings = _nested(self.file.settings)
        method = values.get("method", self.file.method)
        for path, value in values.items():
            if path != "method":
                settings = merge(settings, nest(path, value))
        settings["experiment"] = self.confirmation_experiment if test else self.experiment
        settings = merge(settings, {"evaluation": {"test": test, "base_test": False}})
        return [self._compose(method, settings | {"seed": seed}) for seed in seeds]

    def _compose(self, method: str | None, settings: Mapping[str, Any]) -> RunConfig:
        return compose(self.file.profile, method, settings, self.overrides)


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
    try:
        file = SweepConfig.model_validate(content if trials is None else content | {"trials": trials})
    except ValidationError as error:
        raise ConfigError(f"{path}: {one_line(error, SweepConfig)}") from None
    try:
        parameters = parse_space(file.space, file.sampler.kind)
        loaded = Sweep(
            check_name(path.stem if name is None else name, "--name"), path, file, parameters, tuple(overrides)
        )
        _check_seeds(file)
        _check_reference(loaded)
        _check_keys_are_free(loaded)
        _check_points(loaded)
        _check_objectives(loaded)
        _check_execution(loaded)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return loaded


def _check_seeds(file: SweepConfig) -> None:
    if len(set(file.seeds)) < len(file.seeds) or min(file.seeds) < 0:
        raise ConfigError(f"seeds: {list(file.seeds)} must differ and be 0 or more")


def _check_reference(sweep: Sweep) -> None:
    paths = [parameter.path for parameter in sweep.parameters]
    if sweep.file.reference is None:
        return
    for path in sweep.file.reference:
        if path not in paths:
            raise ConfigError(f"reference: {path!r} is not in the space; {nearest(path, paths)}")
    for parameter in sweep.parameters:
        if parameter.path not in sweep.file.reference:
            raise ConfigError(f"reference: {parameter.path} is missing")
        parameter.suggested(sweep.file.reference[parameter.path])


def _check_keys_are_free(sweep: Sweep) -> None:
    """No setting or override may set what the sweep sets: one of the two would be ignored."""
    taken = [parameter.path for parameter in sweep.parameters]
    taken += ["seed", "experiment", "evaluation.test", "evaluation.base_test"]
    given = {"settings": _nested(sweep.file.settings), "override": parse_overrides(sweep.overrides)}
    for where, content in given.items():
        for key in _leaves(content):
            for path in taken:
                if key == path or key.startswith(f"{path}.") or path.startswith(f"{key}."):
                    raise ConfigError(f"{where} {key}: the sweep itself sets {path}")


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in settings.items():
        content = merge(content, nest(key, value))
    return content


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _check_points(sweep: Sweep) -> None:
    """Every bound and choice makes a run that is valid, beside the reference's other values, which are valid.

    Two that are valid beside the reference may not go together; a trial of such a point is given up at once.
    """
    _ = sweep.base, sweep.planned_points()
    for parameter in sweep.parameters:
        for value in parameter.extremes():
            try:
                sweep.configs(sweep.reference_values | {parameter.path: value}, sweep.file.seeds[:1])
            except ConfigError as error:
                raise ConfigError(f"space: {parameter.path}: {error}") from None


def _check_objectives(sweep: Sweep) -> None:
    measured = [TRAINING_REWARD, *COSTS, *dict.fromkeys((*sweep.base.reward, *sweep.base.evaluation.judges))]
    for metric in sweep.file.objectives:
        if metric.partition("/")[0] not in measured:
            raise ConfigError(f"objectives: {metric!r} is not measured; {nearest(metric, measured)}")


def _check_execution(sweep: Sweep) -> None:
    file, base = sweep.file, sweep.base
    if base.runtime.processes > 1:
        raise ConfigError("runtime.processes: a trial's runs are executed in one process; set it to 1")
    if file.pruner.kind == "none":
        return
    if len(file.objectives) > 1 or next(iter(file.objectives)) in COSTS:
        raise ConfigError(
            f"pruner.kind={file.pruner.kind}: needs one objective that is measured at validations; use none"
        )
    if any(parameter.path == "iterations" for parameter in sweep.parameters):
        raise ConfigError(f"pruner.kind={file.pruner.kind}: compares trials of equal iterations; use none")
    if base.evaluation.interval >= base.iterations:
        raise ConfigError(
            f"pruner.kind={file.pruner.kind}: evaluation.interval={base.evaluation.interval} leaves no validation "
            f"before the end, iterations={base.iterations}; lower it"
        )
