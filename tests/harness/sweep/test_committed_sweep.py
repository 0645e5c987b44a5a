"""The committed sweep: its tables are its study's, and its conclusion is what its tables give."""

import re
import shutil
from pathlib import Path

import pytest

from analysis.sweep import write_sweep_report
from harness.config import ROOT
from harness.experiments.sweep.definition import load_sweep
from harness.experiments.sweep.study import find_study, open_storage
from harness.experiments.sweep.tables import write_tables

FOLDER = ROOT / "results" / "sweep-ema_fusion"
NUMBER = re.compile(r"(?<![\w.])[-−+]?\d+\.\d+(?:e[-+]\d+)?")
pytestmark = pytest.mark.golden


def assert_same(ours: Path, committed: Path) -> None:
    """Equal texts, but for the last digit of numbers, which depends on the processor."""
    texts = [path.read_text(encoding="utf-8") for path in (ours, committed)]
    assert NUMBER.sub("#", texts[0]) == NUMBER.sub("#", texts[1])
    for found, expected in zip(*map(NUMBER.findall, texts), strict=True):
        digits = len(expected.partition("e")[0].partition(".")[2])
        values = [float(text.replace("−", "-")) for text in (found, expected)]
        assert values[0] == pytest.approx(values[1], rel=1e-5, abs=1.01 * 10.0**-digits)


@pytest.mark.parametrize("name", ["study.json", "trials.csv", "curves.csv", "importance.csv"])
def test_the_tables_are_those_of_the_study(tmp_path: Path, name: str) -> None:
    shutil.copy(FOLDER / "study.db", tmp_path)
    sweep = load_sweep("ema_fusion")
    write_tables(sweep, find_study(sweep, open_storage(f"sqlite:///{tmp_path / 'study.db'}")), tmp_path / "out")
    assert_same(tmp_path / "out" / name, FOLDER / name)


def test_the_conclusion_is_drawn_again_from_the_tables(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "copy")
    for name in ("summary.md", "differences.csv", "report.html"):
        (tmp_path / "copy" / name).unlink()
    _, conclusion = write_sweep_report(tmp_path / "copy")
    assert conclusion[-1] == "None of the best trials is better than the reference beyond the noise of seeds."
    for name in ("summary.md", "differences.csv"):
        assert_same(tmp_path / "copy" / name, FOLDER / name)
