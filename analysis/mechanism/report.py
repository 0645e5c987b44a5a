"""The report of a measurement: CSV tables, figures, and summary.md."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.figures.drawing import Drawing, draw_panel
from analysis.figures.fusion import example_panels, sign_panel
from analysis.figures.mechanism import Shown, set_panels, weight_panels
from analysis.mechanism.effects import METRICS, Measured, comparison_frame, effect_frame
from analysis.mechanism.signs import sign_frame
from analysis.mechanism.summary import checkpoint_labels, summary
from analysis.mechanism.tables import EVERYTHING, MechanismTableError, MechanismTables, load_mechanism_tables


def write_mechanism_report(folder: Path) -> Path:
    """Write effects.csv, comparisons.csv, signs.csv, figures/ and summary.md; the same tables give the same bytes.

    Args:
        folder: holds the measurement's tables.

    Returns:
        The path of summary.md.

    Raises:
        MechanismTableError: a table is missing or broken.
    """
    tables = load_mechanism_tables(folder)
    measured = [Measured(tables, checkpoint) for checkpoint in tables.iterations]
    frames = frames_of(measured)
    for name, frame in frames.items():
        frame.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n", float_format="%.6g")
    for drawing in drawings(tables, frames["effects"], frames["signs"]):
        drawing.save(folder / "figures")
    path = folder / "summary.md"
    path.write_text(summary(measured, **frames), encoding="utf-8")
    return path


def frames_of(measured: Sequence[Measured]) -> dict[str, pd.DataFrame]:
    """All numbers of a measurement, one entry a checkpoint: effects, comparisons and signs."""
    return {
        "effects": effect_frame(measured),
        "comparisons": comparison_frame(measured),
        "signs": sign_frame(measured[0].tables),
    }


def drawings(tables: MechanismTables, effects: pd.DataFrame, signs: pd.DataFrame) -> list[Drawing]:
    """All figures of a measurement: a panel for each metric of each question, the paper's example groups, signs."""
    labels = checkpoint_labels(tables)
    shown = Shown(effects, labels, METRICS)
    strategies = {name: name for name in tables.strategies}
    by_difficulty = "Reward of the candidate's deterministic sample"
    panels = [
        *set_panels(shown, "selection", "Which prompts teach: by strategy", strategies, "Strategy"),
        *set_panels(shown, "difficulty", "Which prompts teach: by difficulty", tables.bins, by_difficulty),
        *weight_panels(shown),
        sign_panel(signs[signs["set"] == EVERYTHING], labels),
        *example_panels(),
    ]
    return [draw_panel(panel) for panel in panels]


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m analysis.mechanism FOLDER``: write the report again from a measurement's tables."""
    parser = argparse.ArgumentParser(prog="python -m analysis.mechanism", description="Write a measurement's report.")
    parser.add_argument("folder", type=Path, help="holds about.json, units.parquet and blocks.parquet")
    parsed = parser.parse_args(arguments)
    try:
        print(write_mechanism_report(parsed.folder))
    except MechanismTableError as error:
        parser.exit(2, f"{error}\n")
    return 0
