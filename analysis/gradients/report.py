"""The report of a measurement: CSV tables, figures, and summary.md."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from analysis.figures.drawing import Drawing, draw_panel
from analysis.figures.fusion import example_panels, sign_panel
from analysis.figures.mechanism import set_panel, weight_panel
from analysis.formats import write_frame
from analysis.gradients.effects import METRICS, Measured, checkpoint_frame, comparison_frame, effect_frame
from analysis.gradients.signs import sign_frame
from analysis.gradients.summary import summary
from analysis.gradients.tables import EVERYTHING, Measurement
from harness.foundation.files import write_atomically


def write_mechanism_report(folder: Path) -> Path:
    """Write checkpoints.csv, effects.csv, comparisons.csv, signs.csv, figures/ and summary.md beside the tables.

    The same tables give the same bytes.

    Returns:
        The path of summary.md.

    Raises:
        ConfigError: a table is missing or broken.
    """
    tables = Measurement(folder)
    measured = [Measured(tables, checkpoint) for checkpoint in tables.iterations]
    frames = {
        "checkpoints": checkpoint_frame(measured),
        "effects": effect_frame(measured),
        "comparisons": comparison_frame(measured),
        "signs": sign_frame(tables),
    }
    for name, frame in frames.items():
        write_frame(frame, folder / f"{name}.csv")
    for drawing in [*_drawings(tables, frames), *map(draw_panel, example_panels())]:
        drawing.save(folder / "figures")
    path = folder / "summary.md"
    write_atomically(path, summary(tables, frames))
    return path


def _drawings(measurement: Measurement, frames: Mapping[str, pd.DataFrame]) -> list[Drawing]:
    """All figures of a measurement: a panel for each metric of each question, and signs."""
    labels, effects, signs = measurement.labels, frames["effects"], frames["signs"]
    strategies = {name: name for name in measurement.strategies}
    by_difficulty = "Reward of the candidate's deterministic sample"
    panels = [sign_panel(signs[signs["set"] == EVERYTHING], labels)]
    for metric, label in METRICS.items():
        rows = effects[effects["metric"] == metric]
        panels += [
            set_panel(f"selection-{metric}", "by strategy", rows, labels, strategies, ("Strategy", label)),
            set_panel(f"difficulty-{metric}", "by difficulty", rows, labels, measurement.bins, (by_difficulty, label)),
            weight_panel(f"fusion-{metric}", rows, labels, label),
        ]
    return [draw_panel(panel) for panel in panels]
