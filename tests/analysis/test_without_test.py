"""The report of runs that read no test list: it shows what they reached on validation prompts."""

from pathlib import Path

from analysis.report.report import write_report
from harness.config import compose
from harness.runs.directory import prepare_run
from harness.training.session import Session
from tests.harness.conftest import SHORT


def test_validation_values_stand_where_no_test_was_made(tmp_path: Path) -> None:
    for selection in ("random", "curriculum"):
        overrides = [*SHORT, "evaluation.test=false", "evaluation.base_test=false", f"selection={selection}"]
        Session(prepare_run(compose("miniature-luck", overrides=overrides), tmp_path / "runs"), say=str).execute()
    write_report(tmp_path / "runs", tmp_path / "report")
    table = (tmp_path / "report" / "tables" / "cells.md").read_text()
    assert "validation prompts" in table
    assert "–" not in table.splitlines()[-1].split("|")[3]
    assert "paper's grid without" not in (tmp_path / "report" / "report.html").read_text()
