"""The committed sweeps: their tables and conclusions are what their studies and confirmations give."""

import re
import shutil
from pathlib import Path

import pytest

from analysis.sweep import page
from analysis.sweep.tables import SweepStudy
from harness.config import ROOT
from harness.experiments.sweep.definition import load_sweep
from harness.experiments.sweep.study import find_study, open_storage

FOLDERS = sorted((ROOT / "results").glob("sweep-*"))
NUMBER = re.compile(r"(?<![\w.])[-−+]?\d+\.\d+(?:e[-+]\d+)?")


@pytest.mark.golden
@pytest.mark.parametrize("committed", FOLDERS, ids=lambda folder: folder.name)
def test_the_tables_and_the_conclusion_are_drawn_again_from_the_study(
    committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("study.db", "confirmation.csv"):
        shutil.copy(committed / name, tmp_path)
    sweep = load_sweep(committed.name.removeprefix("sweep-"))
    study = find_study(sweep, open_storage(f"sqlite:///{tmp_path / 'study.db'}"))
    monkeypatch.setattr(page, "_figures", lambda sweep: iter(()))  # they take long, and are not compared
    page.write_sweep_report(SweepStudy(study), sweep.about, sweep.num_trials, tmp_path)
    for name in [*sorted(path.name for path in committed.glob("*.csv")), "summary.md"]:
        texts = [(folder / name).read_text(encoding="utf-8") for folder in (tmp_path, committed)]
        # Equal, but for the last digit of numbers, which depends on the processor.
        assert NUMBER.sub("#", texts[0]) == NUMBER.sub("#", texts[1])
        for found, expected in zip(*map(NUMBER.findall, texts), strict=True):
            digits = len(expected.partition("e")[0].partition(".")[2])
            values = [float(text.replace("−", "-")) for text in (found, expected)]
            assert values[0] == pytest.approx(values[1], rel=1e-5, abs=1.01 * 10.0**-digits)
