"""A sweep's tables as frames, and the scales of its parameters."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Values = NDArray[np.float64]
TRAINING_REWARD = "training_reward"


class SweepTableError(ValueError):
    """A sweep's file that cannot be read: which one, and why."""


@dataclass(frozen=True)
class Parameter:
    """A dimension of the search.

    Attributes:
        column: its name in tables and figures.
        path: in the configuration.
        choices: of a categorical one, as texts; empty for a range.
        low: of a range.
        high: of a range.
        is_log: whether a range is searched in the logarithm.
    """

    column: str
    path: str
    choices: tuple[str, ...]
    low: float
    high: float
    is_log: bool

    def positions(self, values: pd.Series) -> Values:
        """Where values lie on the parameter's scale: 0 to 1 from low to high, or the choices evenly spaced."""
        if self.choices:
            places = [self.choices.index(str(value)) / (len(self.choices) - 1) for value in values]
            return np.asarray(places, dtype=float)
        numbers, low, high = values.to_numpy(dtype=float), self.low, self.high
        if self.is_log:
            numbers, low, high = np.log(numbers), math.log(low), math.log(high)
        return np.asarray((numbers - low) / (high - low), dtype=float)

    def value_at(self, position: float) -> float:
        """The value of a range at a position."""
        if self.is_log:
            return float(self.low * (self.high / self.low) ** position)
        return self.low + (self.high - self.low) * position

    def text(self, value: object) -> str:
        """A value as people read it."""
        return str(value) if self.choices else f"{float(str(value)):.3g}"


@dataclass(frozen=True)
class Objective:
    """What is sought: its metric, its column, and whether more of it is better."""

    metric: str
    column: str
    is_maximized: bool

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.is_maximized else -1

    @property
    def label(self) -> str:
        """On axes."""
        return "Trained reward" if self.metric == TRAINING_REWARD else self.metric.replace("_", " ").capitalize()


@dataclass(frozen=True)
class SweepTables:
    """All that a sweep's folder holds.

    Attributes:
        about: study.json.
        trials: one row a trial; see the sweep's ``trial_row`` for the columns.
        curves: trained reward of each trial, seed and validation.
        importance: share of each parameter in each objective; may be empty.
        confirmation: metrics of the runs on fresh seeds; None before there are any.
    """

    about: dict[str, Any]
    trials: pd.DataFrame
    curves: pd.DataFrame
    importance: pd.DataFrame
    confirmation: pd.DataFrame | None

    @cached_property
    def parameters(self) -> list[Parameter]:
        """Dimensions of the search, in the file's order."""
        return [
            Parameter(
                entry["column"],
                entry["path"],
                tuple(str(choice) for choice in entry.get("choices", ())),
                entry.get("low", math.nan),
                entry.get("high", math.nan),
                bool(entry.get("log", False)),
            )
            for entry in self.about["parameters"]
        ]

    @cached_property
    def objectives(self) -> list[Objective]:
        """What is sought, in the file's order."""
        return [
            Objective(entry["metric"], entry["column"], entry["direction"] == "maximize")
            for entry in self.about["objectives"]
        ]

    @property
    def complete(self) -> pd.DataFrame:
        """Trials trained to the end, collapsed ones too."""
        return self.trials[self.trials["state"] == "complete"]

    @property
    def feasible(self) -> pd.DataFrame:
        """Trials trained to the end that did not collapse."""
        return self.complete[self.complete["feasible"]]

    @property
    def reference(self) -> pd.Series | None:
        """The reference's trial; None if it is not finished or there is none."""
        rows = self.complete[self.complete["origin"] == "reference"]
        return None if rows.empty else rows.iloc[0]

    def best(self) -> pd.DataFrame:
        """Feasible trials, best first: by the objective, or of several, the Pareto front by the first of them."""
        rows = self.feasible
        if len(self.objectives) > 1:
            rows = rows[pareto_front([objective.sign * rows[objective.column] for objective in self.objectives])]
        first = self.objectives[0]
        return rows.sort_values([first.column, "trial"], ascending=[not first.is_maximized, True], kind="stable")

    def point(self, row: pd.Series) -> str:
        """A trial's parameters, as in "decay 0.93, weight 4.2"."""
        return ", ".join(f"{p.column} {p.text(row[p.column])}" for p in self.parameters if not pd.isna(row[p.column]))


def pareto_front(goods: Sequence[pd.Series]) -> Values:
    """Which rows no other row beats: better in one good and at least as good in all.

    Args:
        goods: one series a good, more is better.

    Returns:
        A mask over rows.
    """
    matrix = np.stack([good.to_numpy(dtype=float) for good in goods], axis=1)
    at_least = np.all(matrix[None, :, :] >= matrix[:, None, :], axis=2)
    better = np.any(matrix[None, :, :] > matrix[:, None, :], axis=2)
    return np.asarray(~np.any(at_least & better, axis=1))


def load_sweep_tables(folder: Path) -> SweepTables:
    """Read a sweep's folder.

    Raises:
        SweepTableError: a file is missing or broken; names it.
    """
    path = folder / "study.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SweepTableError(f"{path}: cannot be read: {error}") from None
    texts: dict[Any, Any] = {entry["column"]: str for entry in about["parameters"] if "choices" in entry}
    confirmation = folder / "confirmation.csv"
    return SweepTables(
        about,
        # Without rows a column has no type of its own.
        _read(folder / "trials.csv", texts).astype({"feasible": bool}),
        _read(folder / "curves.csv", {}),
        _read(folder / "importance.csv", {}),
        _read(confirmation, texts).astype({"is_reference": bool}) if confirmation.exists() else None,
    )


def _read(path: Path, texts: dict[Any, Any]) -> pd.DataFrame:
    try:
        # A choice called "none" is a text like any other.
        return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise SweepTableError(f"{path}: cannot be read: {error}") from None
