"""Search space: the entries of a sweep's file for each config path, as Optuna distributions."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial, TrialState, create_trial
from pydantic import Field

from harness.config import ConfigError, Section, fields_at, validated

Scalar = bool | int | float | str | None
Point = dict[str, Scalar]
"""Values by config path in a study's representation: a list or mapping is YAML text."""
_FIXED = ("experiment", "seed", "logging", "runtime", "prompts", "evaluation")
"""Sections and keys that a sweep sets itself, or that do not change training."""
_RESERVED_COLUMNS = ("trial", "state", "origin", "feasible", "collapse", "base", "seeds", "seconds", "value")


class RangeConfig(Section):
    """Range of numbers in a sweep's file."""

    low: float
    high: float
    log: bool = False
    """Sample uniformly in the logarithm."""
    step: float | None = Field(None, gt=0)
    """Distance between the values that are tried, from ``low`` up."""


@dataclass(frozen=True)
class Parameter:
    """A dimension of the search space.

    Attributes:
        path: path in the configuration.
        column: short name in tables and figures.
        distribution: distribution of its values in the study's representation.
        choices: choices of a list, as configuration values; empty for a range.
    """

    path: str
    column: str
    distribution: CategoricalDistribution | FloatDistribution | IntDistribution
    choices: tuple[Any, ...] = ()

    def suggest(self, trial: Trial) -> Scalar:
        """Have a trial choose a value, in the study's representation."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return trial.suggest_categorical(self.path, d.choices)
        if isinstance(d, IntDistribution):
            return trial.suggest_int(self.path, d.low, d.high, log=d.log, step=d.step)
        return trial.suggest_float(self.path, d.low, d.high, log=d.log, step=d.step)

    def config_value(self, suggested: Any) -> Any:
        """Configuration value of a suggested value."""
        d = self.distribution
        return self.choices[d.choices.index(suggested)] if isinstance(d, CategoricalDistribution) else suggested

    def extremes(self) -> tuple[Any, ...]:
        """Values whose validity implies that of all others, since the bounds of settings are intervals."""
        d = self.distribution
        return self.choices if isinstance(d, CategoricalDistribution) else (d.low, d.high)

    @property
    def num_values(self) -> float:
        """Number of values; infinite for a range without step."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return len(d.choices)
        return math.inf if d.step is None else round((d.high - d.low) / d.step) + 1

    def describe(self) -> dict[str, Any]:
        """Definition of the parameter as plain data, for the study's own record."""
        d, names = self.distribution, {"path": self.path, "column": self.column}
        if isinstance(d, CategoricalDistribution):
            return names | {"choices": list(d.choices)}
        is_int = isinstance(d, IntDistribution)
        return names | {"low": d.low, "high": d.high, "log": d.log, "step": d.step, "integer": is_int}


def parse_space(space: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """Parameters of a sweep file's ``space``.

    Args:
        space: range (``low``, ``high``, ...) or list of choices, by config path; the path ``method`` stands for files
            in experiments/methods/.

    Raises:
        ConfigError: the sweep itself sets a path, or its entry is neither a range nor a list of choices. Whether the
            configuration accepts the values is only known when it is composed.
    """
    ends = [path.rpartition(".")[2] for path in space]
    parameters = []
    for (path, content), end in zip(space.items(), ends, strict=True):
        column = end if ends.count(end) == 1 and end not in _RESERVED_COLUMNS else path
        try:
            parameters.append(_parse(path, column, content))
        except (ValueError, UserWarning) as error:  # Optuna's about ranges, beside ours
            raise ConfigError(f"space: {path}: {' '.join(str(error).split())}") from None
    return tuple(parameters)


def _parse(path: str, column: str, content: Any) -> Parameter:
    if path.partition(".")[0] in _FIXED:
        raise ConfigError("is set by the sweep, or does not change what training does")
    if path == "method" and not (isinstance(content, list) and all(isinstance(choice, str) for choice in content)):
        raise ConfigError("list names of files in experiments/methods/")
    if isinstance(content, list):
        labels = [_label(choice) for choice in content]
        if len(set(labels)) < max(2, len(labels)):
            raise ConfigError(f"{content} must list at least two different choices")
        return Parameter(path, column, CategoricalDistribution(labels), tuple(content))
    if not isinstance(content, Mapping):
        raise ConfigError("write a range, as in {low: 0.1, high: 1}, or a list of choices")
    given = validated(RangeConfig, content, "range")
    low, high, step = given.low, given.high, given.step
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # raised if the step does not lead to ``high``
        if not _is_whole_number(path):
            return Parameter(path, column, FloatDistribution(low, high, given.log, step))
        if any(number != int(number) for number in (low, high, step or 1)):
            raise ConfigError("takes whole numbers; so must low, high and step be")
        return Parameter(path, column, IntDistribution(int(low), int(high), given.log, int(step or 1)))


def as_point(parameters: Sequence[Parameter], values: Mapping[str, Any]) -> Point:
    """Values of a point, such as the reference, in the study's representation. Raises ConfigError outside the space."""
    distributions = {parameter.path: parameter.distribution for parameter in parameters}
    if unlike := distributions.keys() ^ values.keys():
        raise ConfigError(
            f"reference: needs a value of each path of the space and of no other: {', '.join(sorted(unlike))}"
        )
    point: dict[str, Any] = {path: _label(values[path]) for path in distributions}
    try:
        create_trial(state=TrialState.WAITING, params=point, distributions=dict(distributions))
        return {path: d.to_external_repr(d.to_internal_repr(point[path])) for path, d in distributions.items()}
    except (TypeError, ValueError) as error:
        raise ConfigError(f"reference: {' '.join(str(error).split())}") from None


def _is_whole_number(path: str) -> bool:
    *sections, key = path.split(".")
    try:
        field = fields_at(sections).get(key)
    except KeyError:
        return False  # there is no such path
    return field is not None and _mentions(field.annotation, int) and not _mentions(field.annotation, float)


def _mentions(annotation: Any, kind: type) -> bool:
    return annotation is kind or any(_mentions(part, kind) for part in get_args(annotation))


def _label(choice: Any) -> Scalar:
    if choice is None or isinstance(choice, bool | int | float | str):
        return choice
    return yaml.safe_dump(choice, default_flow_style=True, width=10_000).strip()
