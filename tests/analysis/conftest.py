"""Small runs written by hand, for every test of the analysis."""

from pathlib import Path
from typing import Any

import fabricated
import pytest
from fabricated import WriteRun

from analysis.report.report import write_report


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Writes a run directory, see ``fabricated.write_run``, into ``tmp_path / "runs" / "grid"``."""

    def write(name: str, **settings: Any) -> Path:
        return fabricated.write_run(tmp_path / "runs" / "grid" / name, **settings)

    return write


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Two cells of two seeds each, to be changed at will."""
    _write_grid(tmp_path / "runs" / "grid")
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def same_grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for all tests, not to be changed."""
    folder = tmp_path_factory.mktemp("same")
    _write_grid(folder / "grid")
    return folder


@pytest.fixture(scope="session")
def report(same_grid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the report of ``same_grid``, not to be changed: it takes seconds to write."""
    return write_report(same_grid, tmp_path_factory.mktemp("report")).parent


def _write_grid(folder: Path) -> None:
    ours = {"selection": "curriculum", "fusion": True}
    fabricated.write_run(folder / "base-0", seed=0, test=0.70)
    fabricated.write_run(folder / "base-1", seed=1, test=0.74, rewards=(0.5, 0.62, 0.72))
    fabricated.write_run(folder / "ours-0", seed=0, test=0.80, **ours)
    fabricated.write_run(folder / "ours-1", seed=1, test=0.90, **ours)
