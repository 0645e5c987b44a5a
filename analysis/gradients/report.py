"""The report of a measurement: CSV tables, figures, and summary.md; and what a page shows of it."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from analysis.figures.drawing import Drawing, draw_panel
from analysis.figures.fusion import example_panels, sign_panel
from analysis.figures.mechanism import Shown, set_panels, weight_panels
from analysis.formats import write_frame
from analysis.gradients.effects import METRICS, Measured, checkpoint_frame, comparison_frame, effect_frame
from analysis.gradients.signs import sign_frame
from analysis.gradients.summary import Section, introduction, sections, summary
from analysis.gradients.tables import (
    EVERYTHING,
    Measurement,
    MechanismTableError,
    load_measurement,
    load_mechanism_tables,
)
from harness.files import write_atomically

_FRAMES = ("checkpoints", "effects", "comparisons", "signs")


class MechanismPart(NamedTuple):
    """What a page shows of a measurement."""

    opening: str
    checkpoints: Sequence[str]
    """A sentence each."""
    sections: Sequence[Section]
    drawings: Mapping[str, Drawing]
    """By name: at least those that the sections name."""


def write_mechanism_report(folder: Path) -> Path:
    """Write checkpoints.csv, effects.csv, comparisons.csv, signs.csv, figures/ and summary.md.

    The same tables give the same bytes.

    Args:
        folder: holds the measurement's tables.

    Returns:
        The path of summary.md.

    Raises:
        MechanismTableError: a table is missing or broken.
    """
    tables = load_mechanism_tables(folder)
    frames = frames_of([Measured(tables, checkpoint) for checkpoint in tables.iterations])
    for name, frame in frames.items():
        write_frame(frame, folder / f"{name}.csv")
    for drawing in [*drawings(tables, frames), *map(draw_panel, example_panels())]:
        drawing.save(folder / "figures")
    path = folder / "summary.md"
    write_atomically(path, summary(tables, frames))
    return path


def read_mechanism_report(folder: Path) -> MechanismPart:
    """What ``write_mechanism_report`` found, from its CSV files: nothing is resampled again.

    Raises:
        MechanismTableError: about.json or a CSV file is missing or broken.
    """
    measurement = load_measurement(folder)
    frames = {name: _read(folder / f"{name}.csv") for name in _FRAMES}
    opening, checkpoints = introduction(measurement, frames["checkpoints"])
    drawn = {drawing.name: drawing for drawing in drawings(measurement, frames)}
    return MechanismPart(opening, checkpoints, sections(measurement, frames), drawn)


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        again = f"python -m analysis.gradients {path.parent} writes it again"
        raise MechanismTableError(f"{path}: cannot be read: {error}; {again}") from None


def frames_of(measured: Sequence[Measured]) -> dict[str, pd.DataFrame]:
    """All numbers of a measurement, one entry a checkpoint."""
    return {
        "checkpoints": checkpoint_frame(measured),
        "effects": effect_frame(measured),
        "comparisons": comparison_frame(measured),
        "signs": sign_frame(measured[0].tables),
    }


def drawings(measurement: Measurement, frames: Mapping[str, pd.DataFrame]) -> list[Drawing]:
    """All figures of a measurement: a panel for each metric of each question, and signs."""
    labels, signs = measurement.labels, frames["signs"]
    shown = Shown(frames["effects"], labels, METRICS)
    strategies = {name: name for name in measurement.strategies}
    by_difficulty = "Reward of the candidate's deterministic sample"
    panels = [
        *set_panels(shown, "selection", "Which prompts teach: by strategy", strategies, "Strategy"),
        *set_panels(shown, "difficulty", "Which prompts teach: by difficulty", measurement.bins, by_difficulty),
        *weight_panels(shown),
        sign_panel(signs[signs["set"] == EVERYTHING], labels),
    ]
    return [draw_panel(panel) for panel in panels]


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m analysis.gradients FOLDER``: write the report again from a measurement's tables."""
    parser = argparse.ArgumentParser(prog="python -m analysis.gradients", description="Write a measurement's report.")
    parser.add_argument("folder", type=Path, help="holds about.json, units.parquet and blocks.parquet")
    parsed = parser.parse_args(arguments)
    try:
        print(write_mechanism_report(parsed.folder))
    except MechanismTableError as error:
        parser.exit(2, f"{error}\n")
    return 0
