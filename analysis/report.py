"""The report of a folder of runs: tables, figures, and one self-contained page."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.chosen import CHOSEN_METRICS, chosen_frame, chosen_table
from analysis.claims_table import claims_frame, claims_markdown, claims_table
from analysis.figures import draw_study
from analysis.formats import latex, markdown
from analysis.logs import Logs, find_runs, load_logs
from analysis.page import render_page
from analysis.runlog import RunLogError
from analysis.spending import SPENDING_METRICS
from analysis.stability import stability_frame, stability_table
from analysis.study import Study, split_studies
from analysis.tables import (
    CellRow,
    cell_frame,
    cell_rows,
    cells_table,
    extra_gain_table,
    main_frame,
    main_table,
    paper_table,
    run_frame,
)


def write_report(runs_folder: Path, output: Path) -> Path:
    """Write report.html, tables/ and figures/; the same logs, as directories or as shards, give the same bytes.

    Args:
        runs_folder: holds run directories or shards at any depth, see ``load_runs``.
        output: folder to write to; made if missing.

    Returns:
        The page's path. tables/ gets cells, main (base and + AdaGRPO beside the paper's numbers), runs, stability and
        prompts (those that were trained on) as .csv, all but runs as .md and main as .tex, and of the study's runs
        claims as .csv and .md; figures/ gets .svg and .png of every figure, and main.png.

    Raises:
        RunLogError: there is no run, or a file of one cannot be read; names it.
    """
    if not find_runs(runs_folder):
        raise RunLogError(f"{runs_folder}: holds no run (no config.yaml and no shard at any depth)")
    logs = load_logs(runs_folder, (*SPENDING_METRICS, *CHOSEN_METRICS))
    studies = [(study, cell_rows(study), draw_study(study)) for study in split_studies(logs)]
    for _, _, figures in studies:
        for drawing in figures.drawings:
            drawing.save(output / "figures")
    _write_tables([(study, rows) for study, rows, _ in studies], logs, output / "tables")
    claims = claims_table([study for study, _, _ in studies], logs)
    if claims is not None:
        frame = claims_frame(claims)
        frame.to_csv(output / "tables" / "claims.csv", index=False, lineterminator="\n")
        (output / "tables" / "claims.md").write_text(claims_markdown(claims), encoding="utf-8")
    (output / "report.html").write_text(render_page(logs, studies, claims), encoding="utf-8")
    return output / "report.html"


def _write_tables(studies: Sequence[tuple[Study, Sequence[CellRow]]], logs: Logs, folder: Path) -> None:
    """Tables with all digits and run ids as CSV, and as people read them as Markdown and LaTeX."""
    folder.mkdir(parents=True, exist_ok=True)
    main, cells = [], []
    for study, rows in studies:
        main += [table for table in (main_table(study), extra_gain_table(study)) if table is not None]
        cells.append(cells_table(study, rows))
    frames = {
        "main": [main_frame(study) for study, _ in studies],
        "cells": [cell_frame(study, rows) for study, rows in studies],
        "runs": [run_frame(study) for study, _ in studies],
        "stability": [stability_frame(study) for study, _ in studies],
        "prompts": [chosen_frame(study, logs) for study, _ in studies],
    }
    for name, parts in frames.items():
        pd.concat(parts, ignore_index=True).to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
    beside_paper = [*main, paper_table()]
    (folder / "main.md").write_text("\n".join(map(markdown, beside_paper)), encoding="utf-8")
    (folder / "main.tex").write_text("\n".join(map(latex, beside_paper)), encoding="utf-8")
    (folder / "cells.md").write_text("\n".join(map(markdown, cells)), encoding="utf-8")
    for name, tables in (
        ("stability", [stability_table(study) for study, _ in studies]),
        ("prompts", [chosen_table(study, logs) for study, _ in studies]),
    ):
        shown = [table for table in tables if table is not None]
        (folder / f"{name}.md").write_text("\n".join(map(markdown, shown)), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m analysis.report RUNS OUTPUT``: write the report, print its path; 2 when runs cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report", description="Write the report of a folder of runs."
    )
    parser.add_argument("runs", type=Path, help="folder that holds run directories or shards, at any depth")
    parser.add_argument("output", type=Path, help="folder to write to")
    parsed = parser.parse_args(arguments)
    try:
        print(write_report(parsed.runs, parsed.output))
    except RunLogError as error:
        parser.exit(2, f"{error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
