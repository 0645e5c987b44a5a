"""Response surface of a sweep: a quadratic in its most important numbers, fitted to trials by least squares.

The method is that of Box and Wilson (1951): ``y = b0 + b1 u + b2 v + b3 u^2 + b4 u v + b5 v^2 + noise``, where u and v
are parameters scaled to [-1, 1] over the searched range, logarithmically where the search is. Intervals are of
Student's t, over trials, for the sweep's seeds: other seeds may answer differently. It is fitted twice: to the first
seed's reward at the last validation that no trial was given up before, which all trials have, and to the final values
of the trials that were not given up, which are the more successful ones.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, product
from typing import Any

import numpy as np
import pandas as pd
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy import stats

from analysis.decisions import Contrast
from analysis.formats import Entry, WideTable, interval_text
from analysis.statistics import Interval
from analysis.sweep.tables import DEFINITION, TRAINING_REWARD, SweepStudy, short, violated

_MOST_PARAMETERS = 2
_FEWEST_SPARE = 5
"""Least number of trials beyond the number of coefficients."""
_LEVELS = (-2 / 3, 0.0, 2 / 3)
"""Middles of the thirds of a parameter's range."""
_COLUMNS = ["difference", "low", "high"]


@dataclass(frozen=True)
class _Fit:
    """A fitted surface."""

    when: str
    reference: np.ndarray
    """Scaled point of the reference."""
    coefficients: np.ndarray
    covariance: np.ndarray
    spare: int
    """Degrees of freedom of the noise."""

    def change(self, start: np.ndarray, end: np.ndarray) -> dict[str, float]:
        """Difference between two points, and its 95 % interval, by ``_COLUMNS``."""
        weights = (_terms(end) - _terms(start))[0]
        error = math.sqrt(weights @ self.covariance @ weights)
        found = Contrast(float(weights @ self.coefficients), error, self.spare)
        return dict(zip(_COLUMNS, (found.mean, *found.bounds(0.025)), strict=True))

    def p_value(self, index: int) -> float:
        """F test of all terms that contain a parameter."""
        own = [number for number, term in enumerate(_exponents(len(self.reference))) if index in term]
        b, inner = self.coefficients[own], self.covariance[np.ix_(own, own)]
        return float(stats.f.sf(b @ np.linalg.solve(inner, b) / len(own), len(own), self.spare))


def surface_frames(sweep: SweepStudy) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the surface says of points and of each parameter; both empty for several objectives, too few trials or
    rewards that never differ.

    Returns:
        Points, at the middles of the thirds of each range: ``when``, ``trials``, one column per parameter, and the
        ``difference`` from the reference with ``low`` and ``high``. Effects: ``when``, ``trials``, ``parameter``, the
        ``difference`` between the middles of the highest and the lowest third where the other parameter is the
        reference's, ``low``, ``high``, and ``p`` of an F test of all terms that contain the parameter.
    """
    scales, points, effects = _scales(sweep), [], []
    for fit in _fits(sweep, scales):
        about = {"when": fit.when, "trials": fit.spare + len(fit.coefficients)}
        for place in product(_LEVELS, repeat=len(scales)):
            cells = {sweep.columns[p]: _unscaled(u, s) for (p, s), u in zip(scales.items(), place, strict=True)}
            points.append(about | cells | fit.change(fit.reference, np.array(place)))
        for index, path in enumerate(scales):
            low, high = (_moved(fit.reference, index, level) for level in (_LEVELS[0], _LEVELS[-1]))
            effects.append(
                about | {"parameter": sweep.columns[path]} | fit.change(low, high) | {"p": fit.p_value(index)}
            )
    head = ["when", "trials"]
    return (
        pd.DataFrame(points, columns=[*head, *(sweep.columns[path] for path in scales), *_COLUMNS]),
        pd.DataFrame(effects, columns=[*head, "parameter", *_COLUMNS, "p"]),
    )


def surface_sentences(effects: pd.DataFrame) -> list[str]:
    """A sentence for each fit."""

    def part(row: Mapping[Hashable, Any]) -> str:
        chance = "p < 0.001" if row["p"] < 0.001 else f"p = {row['p']:.2g}"
        return (
            f"{row['parameter']} changes the reward by {interval_text(_interval(row))} (F test of its terms: {chance})"
        )

    return [
        f"Response surface, {when}, {trials} trials: from the lowest to the highest third of its range "
        f"{'; '.join(map(part, own.to_dict('records')))}."
        for (when, trials), own in effects.groupby(["when", "trials"], sort=False)
    ]


def surface_tables(points: pd.DataFrame) -> list[WideTable]:
    """A table of differences from the reference for each fit: values of the first parameter by those of the second."""
    tables = []
    for (when, trials), own in points.groupby(["when", "trials"], sort=False):
        first, *second = points.columns[2:-3]
        rows: dict[float, list[Entry | str]] = {}
        for row in own.to_dict("records"):
            entry = Entry(row["difference"], interval=_interval(row), signed=True)
            rows.setdefault(row[first], []).append(entry)
        columns = [f"{name} {short(value)}" for name in second for value in own[name].unique()] or ["Difference"]
        title = f"Response surface: difference of the trained reward from the reference, {when}, {trials} trials"
        tables.append(
            WideTable(title, ["", *columns], [(f"{first} {short(value)}", own) for value, own in rows.items()])
        )
    return tables


def _interval(row: Mapping[Hashable, Any]) -> Interval:
    return Interval(*(row[column] for column in _COLUMNS))


def _scales(sweep: SweepStudy) -> dict[str, Any]:
    """Distributions of the most important parameters that are numbers by path, in the order of the search space."""
    scales = {path: one for trial in sweep.trials[::-1] for path, one in trial.distributions.items()}
    kinds = FloatDistribution | IntDistribution
    numbers = [path for path in sweep.columns if isinstance(s := scales.get(path), kinds) and s.high > s.low]
    order = list(sweep.importance_frame()["parameter"])
    chosen = sorted(numbers, key=lambda path: order.index(sweep.columns[path]) if sweep.columns[path] in order else 99)
    return {path: scales[path] for path in numbers if path in chosen[:_MOST_PARAMETERS]}


def _fits(sweep: SweepStudy, scales: Mapping[str, Any]) -> list[_Fit]:
    if not scales or sweep.reference is None or list(sweep.objectives) != [TRAINING_REWARD]:
        return []
    finished = [t for t in sweep.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED) and not violated(t)]
    curves = sweep.curve_frame()
    seed = sweep.study.user_attrs[DEFINITION]["seeds"][0]
    early = curves[curves["seed"] == seed].pivot(index="trial", columns="iteration", values="value")
    early = early.reindex([trial.number for trial in finished]).dropna(axis="columns")
    fits, others = [], "" if len(scales) == len(sweep.columns) else ", other settings as they came"
    values = {trial.number: float(trial.values[0]) for trial in sweep.best}
    if len(early.columns) > 1 and len(values) < len(finished):  # else the end says more about the same trials
        last = early.columns.max()
        fits.append(_fit(sweep, scales, finished, dict(early[last]), f"seed {seed} at iteration {last}{others}"))
    fits.append(
        _fit(sweep, scales, [t for t in finished if t.number in values], values, f"at the end of training{others}")
    )
    return [fit for fit in fits if fit is not None]


def _fit(
    sweep: SweepStudy, scales: Mapping[str, Any], trials: Sequence[FrozenTrial], values: Mapping[int, float], when: str
) -> _Fit | None:
    trials = [trial for trial in trials if all(path in trial.params for path in scales)]
    scaled = np.array([[_scaled(trial.params[path], s) for path, s in scales.items()] for trial in trials])
    num_terms = len(_exponents(len(scales)))
    if len(trials) < num_terms + _FEWEST_SPARE or np.linalg.matrix_rank(design := _terms(scaled)) < num_terms:
        return None
    y = np.array([values[trial.number] for trial in trials])
    if np.ptp(y) == 0:
        return None
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ y
    spare = len(trials) - num_terms
    variance = float(np.square(y - design @ coefficients).sum()) / spare
    assert sweep.reference is not None  # checked by the caller
    reference = np.array([_scaled(sweep.reference.params[path], s) for path, s in scales.items()])
    return _Fit(when, reference, coefficients, variance * inverse, spare)


def _exponents(num_parameters: int) -> list[tuple[int, ...]]:
    """Parameters in each term: (), (0,), (1,), (0, 0), (0, 1), (1, 1)."""
    return [term for degree in (0, 1, 2) for term in combinations_with_replacement(range(num_parameters), degree)]


def _terms(points: np.ndarray) -> np.ndarray:
    """Terms of points ``[points, parameters]`` or of one point: ``[points, terms]``."""
    points = np.atleast_2d(points)
    return np.stack([points[:, list(term)].prod(axis=1) for term in _exponents(points.shape[1])], axis=1)


def _moved(point: np.ndarray, index: int, level: float) -> np.ndarray:
    moved = point.copy()
    moved[index] = level
    return moved


def _scaled(value: float, scale: Any) -> float:
    low, high, at = (math.log(x) if scale.log else x for x in (scale.low, scale.high, value))
    return 2 * (at - low) / (high - low) - 1


def _unscaled(u: float, scale: Any) -> float:
    low, high = (math.log(x) if scale.log else x for x in (scale.low, scale.high))
    at = low + (u + 1) / 2 * (high - low)
    return math.exp(at) if scale.log else at
