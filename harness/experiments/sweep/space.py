"""The search space: what a sweep file says about each config path, checked against the configuration's own types."""

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import numpy as np
import yaml
from pydantic import Field, ValidationError

from harness.config import ConfigError, Section, fields_at, one_line, unknown_key

if TYPE_CHECKING:
    from optuna import Trial

Scalar = bool | int | float | str | None
_FIXED = ("experiment", "seed", "logging", "runtime", "prompts", "evaluation")
"""Sections and keys that a sweep sets itself, or that do not change what training does."""
_RESERVED_COLUMNS = ("trial", "state", "origin", "feasible", "collapse", "base", "seeds", "seconds", "value")


class RangeConfig(Section):
    """A range of numbers in a sweep file."""

    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool = False
    """Uniform in the logarithm."""
    step: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Distance of the values that are tried, from ``low`` up."""
    points: int | None = Field(None, ge=2)
    """With the grid sampler: how many values, evenly spaced (in the logarithm with ``log``)."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included."""

    path: str
    column: str
    """Short name, in tables and figures."""
    is_int: bool
    low: float
    high: float
    log: bool
    step: float | None
    points: int | None

    def suggest(self, trial: "Trial") -> Scalar:
        """The study's value for a trial."""
        if self.is_int:
            step = int(self.step or 1)
            return trial.suggest_int(self.path, int(self.low), int(self.high), log=self.log, step=step)
        return trial.suggest_float(self.path, self.low, self.high, log=self.log, step=self.step)

    def config_value(self, suggested: Any) -> Any:
        """The value in a configuration."""
        return suggested

    def suggested(self, config_value: Any) -> Scalar:
        """The value in a study. Raises ConfigError if it is outside the range."""
        if isinstance(config_value, bool) or not isinstance(config_value, int | float):
            raise ConfigError(f"{self.path}: {config_value!r} is no number")
        if not self.low <= config_value <= self.high:
            raise ConfigError(f"{self.path}: {config_value} is outside the range, {self.low:g} to {self.high:g}")
        step = 1.0 if self.is_int and self.step is None else self.step
        if step is not None and not _is_whole((config_value - self.low) / step):
            raise ConfigError(f"{self.path}: {config_value} is no step of the range, {self.low:g} + n * {step:g}")
        return int(config_value) if self.is_int else float(config_value)

    def extremes(self) -> tuple[Any, ...]:
        """Values whose validity stands for all others': the configuration's bounds are intervals."""
        return (int(self.low), int(self.high)) if self.is_int else (self.low, self.high)

    def grid(self) -> list[Scalar]:
        """The values of the grid sampler. Raises ConfigError if the file does not say which."""
        if self.step is not None or (self.is_int and self.points is None):
            values = np.arange(self.low, self.high + 1e-9 * (self.high - self.low), self.step or 1)
        elif self.points is None:
            raise ConfigError(f"{self.path}: the grid sampler needs points or step")
        else:
            values = (np.geomspace if self.log else np.linspace)(self.low, self.high, self.points)
        # Twelve digits: a point must equal the reference where it is meant to.
        plain = [round(value) if self.is_int else float(f"{value:.12g}") for value in values]
        return list(dict.fromkeys(plain))

    def describe(self) -> dict[str, Any]:
        """Plain data: what makes it this parameter, for a study's own record and for tables."""
        numbers = {"low": self.low, "high": self.high, "log": self.log, "step": self.step, "integer": self.is_int}
        return {"path": self.path, "column": self.column, **numbers}


@dataclass(frozen=True)
class Choice:
    """One of several values, of any kind that YAML has."""

    path: str
    column: str
    choices: tuple[Any, ...]

    def suggest(self, trial: "Trial") -> Scalar:
        """The study's value for a trial."""
        return trial.suggest_categorical(self.path, self.labels)

    @property
    def labels(self) -> list[Scalar]:
        """The choices as a study can hold them: lists and mappings as YAML text."""
        return [_label(choice) for choice in self.choices]

    def config_value(self, suggested: Any) -> Any:
        """The value in a configuration."""
        return self.choices[self.labels.index(suggested)]

    def suggested(self, config_value: Any) -> Scalar:
        """The value in a study. Raises ConfigError if it is none of the choices."""
        label = _label(config_value)
        if label not in self.labels:
            known = ", ".join(str(choice) for choice in self.labels)
            raise ConfigError(f"{self.path}: {label} is none of the choices, {known}")
        return label

    def extremes(self) -> tuple[Any, ...]:
        """Values whose validity stands for all others': all of them."""
        return self.choices

    def grid(self) -> list[Scalar]:
        """The values of the grid sampler."""
        return self.labels

    def describe(self) -> dict[str, Any]:
        """Plain data: what makes it this parameter, for a study's own record and for tables."""
        return {"path": self.path, "column": self.column, "choices": self.labels}


Parameter = Range | Choice


def parse_space(space: Mapping[str, Any], sampler: str) -> tuple[Parameter, ...]:
    """The parameters of a sweep file's ``space``.

    Args:
        space: config path -> a range (``low``, ``high``, ...), or a list of choices; the path ``method`` stands for
            files in experiments/methods/.
        sampler: kind of the sampler; ``points`` belong to the grid sampler alone.

    Raises:
        ConfigError: unknown path, empty range, or a range where the configuration takes no number.
    """
    columns = _columns(list(space))
    return tuple(_parse(path, columns[path], content, sampler) for path, content in space.items())


def grid_points(parameters: Sequence[Parameter], seed: int) -> list[dict[str, Scalar]]:
    """All combinations of the parameters' grids, shuffled, so that a part of them covers the space."""
    values = [parameter.grid() for parameter in parameters]
    points = [
        dict(zip((parameter.path for parameter in parameters), combination, strict=True))
        for combination in itertools.product(*values)
    ]
    random.Random(seed).shuffle(points)
    return points


def _parse(path: str, column: str, content: Any, sampler: str) -> Parameter:
    types = _value_types(path)
    if isinstance(content, list):
        if len(content) < 2 or len({_label(choice) for choice in content}) < len(content):
            raise ConfigError(f"{path}: {content} must list at least two different choices")
        return Choice(path, column, tuple(content))
    try:
        settings = RangeConfig.model_validate(content)
    except ValidationError as error:
        if not isinstance(content, Mapping):
            raise ConfigError(f"{path}: write a range, as in {{low: 0.1, high: 1}}, or a list of choices") from None
        raise ConfigError(f"{path}: {one_line(error, RangeConfig)}") from None
    if not types & {int, float}:
        raise ConfigError(f"{path}: takes no range of numbers; list the choices")
    is_int = float not in types
    _check_range(path, settings, is_int, sampler)
    return Range(path, column, is_int, *(getattr(settings, key) for key in RangeConfig.model_fields))


def _check_range(path: str, settings: RangeConfig, is_int: bool, sampler: str) -> None:
    low, high = settings.low, settings.high
    if not low < high:
        raise ConfigError(f"{path}: the range from {low:g} to {high:g} is empty; low must be less than high")
    if settings.log and low <= 0:
        raise ConfigError(f"{path}: a logarithmic range cannot begin at {low:g}; low must be above 0")
    if settings.step is not None and (settings.log or settings.points):
        raise ConfigError(f"{path}: step goes with neither log nor points")
    if settings.step is not None and not _is_whole((high - low) / settings.step):
        raise ConfigError(f"{path}: step={settings.step:g} does not lead from {low:g} to {high:g}")
    if settings.points is not None and sampler != "grid":
        raise ConfigError(f"{path}: points belong to the grid sampler, and this is {sampler}")
    if is_int and any(number != int(number) for number in (low, high, settings.step or 1)):
        raise ConfigError(f"{path}: takes whole numbers; so must low, high and step be")


def _value_types(path: str) -> set[type]:
    """The types of value that a config path may have. Raises ConfigError if there is no such path."""
    if path == "method":
        return {str}
    parts = path.split(".")
    if parts[0] in _FIXED:
        raise ConfigError(f"{path}: is set by the sweep, or does not change what training does")
    for depth, part in enumerate(parts):
        fields = fields_at(parts[:depth])
        if part not in fields:
            # Rewards are named freely; their weights are numbers.
            if parts[0] == "reward" and depth == 1 and len(parts) == 2:
                return {float}
            if not fields:
                raise ConfigError(f"{path}: {'.'.join(parts[:depth])} is a value and has no keys")
            raise ConfigError(unknown_key(parts[: depth + 1], fields))
    return _plain_types(fields[parts[-1]].annotation)


def _plain_types(annotation: Any) -> set[type]:
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    if isinstance(annotation, type) and not get_args(annotation):
        return {annotation}
    if get_origin(annotation) in (tuple, dict):
        return {get_origin(annotation)}
    parts = [part for part in get_args(annotation) if isinstance(part, type) or get_args(part)]
    return set().union(*map(_plain_types, parts))


def _is_whole(number: float) -> bool:
    return math.isclose(number, round(number), abs_tol=1e-9)


def _columns(paths: Sequence[str]) -> dict[str, str]:
    """A short name for each path: its last part, where that is no other's."""
    ends = [path.rpartition(".")[2] for path in paths]
    return {
        path: end if ends.count(end) == 1 and end not in _RESERVED_COLUMNS else path
        for path, end in zip(paths, ends, strict=True)
    }


def _label(choice: Any) -> Scalar:
    if choice is None or isinstance(choice, bool | int | float | str):
        return choice
    return yaml.safe_dump(choice, default_flow_style=True, width=10_000).strip()
