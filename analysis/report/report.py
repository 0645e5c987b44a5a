"""The report of a folder of runs: tables, figures, and one self-contained page."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath

import pandas as pd

from analysis.cells.chosen import CHOSEN_METRICS, chosen_frame, chosen_table
from analysis.cells.logs import find_runs, load_logs
from analysis.cells.spending import SPENDING_METRICS
from analysis.cells.study import finished_environments, split_studies
from analysis.claims import EXPERIMENT
from analysis.figures import draw_study
from analysis.figures.claims import claims_panel
from analysis.figures.drawing import draw_panel
from analysis.figures.fusion import example_panels
from analysis.formats import WideTable, latex, markdown, write_frame
from analysis.gradients.report import MechanismPart, read_mechanism_report
from analysis.report.insertion import insert, split
from analysis.report.page import ClaimsPart, Part, render_page
from analysis.report.tables import (
    cell_frame,
    cells_table,
    extra_gain_table,
    main_frame,
    main_table,
    paper_table,
    run_frame,
)
from analysis.runs.sources import changes_since, note_on_changes
from analysis.verdicts.claims_table import ClaimsTable, claims_digest, claims_frame, claims_markdown, claims_table
from analysis.verdicts.conclusions import conclude, conclusions_frame, conclusions_markdown
from analysis.verdicts.stability import GROUP_SPREADS, stability_frame, stability_table
from harness.foundation.errors import ConfigError
from harness.foundation.files import write_atomically
from harness.foundation.places import ROOT

MECHANISM = ROOT / "results" / "mechanism"
"""The measurement of gradients that belongs to the study."""


def write_report(
    runs_folder: Path,
    output: Path,
    mechanism: Path | None = None,
    readme: Path | None = None,
    planned_seeds: int | None = None,
) -> Path:
    """Write report.html, tables/ and figures/; the same logs, as directories or as shards, give the same bytes.

    Args:
        runs_folder: holds run directories or shards at any depth, see ``find_runs``.
        output: folder to write to; made if missing.
        mechanism: folder of a measurement of gradients, to be shown on the page. None for ``MECHANISM``, if it is there
            and the runs are the study's.
        readme: file between whose markers the claims go, see ``analysis.report.insertion``.
        planned_seeds: see ``conclude``.

    Returns:
        The page's path. tables/ gets cells, main (base and + AdaGRPO beside the paper's numbers), runs, stability and
        prompts (those that were trained on) as .csv, all but runs as .md and main as .tex, and of the study's runs
        claims as .csv and .md; figures/ gets .svg of every figure, and .png of the wide ones, such as main.png. Figures
        of the measurement stay in its own folder.

    Raises:
        ConfigError: there is no run, or a file of one cannot be read; names it. Or no run of the study, for ``readme``.
        ConfigError: a file of the measurement is missing or broken.
        ConfigError: ``readme`` has no place for the claims; nothing is written then.
    """
    if not find_runs(runs_folder):
        raise ConfigError(f"{runs_folder}: holds no run (no config.yaml and no shard at any depth)")
    if readme is not None:
        split(readme)
    metrics = (*SPENDING_METRICS, *CHOSEN_METRICS, *GROUP_SPREADS)
    logs = load_logs(runs_folder, metrics, skip_damaged=True)
    for line in note_on_changes(map(changes_since, logs.environments)):
        print(line, file=sys.stderr)
    studies = split_studies(logs)
    claims = claims_table(studies, logs)
    if claims is None and readme is not None:
        raise ConfigError(f"{runs_folder}: holds no run of {EXPERIMENT}, so no claims for {readme}")
    measured = _measured(mechanism, claims)
    parts = [
        Part(
            study,
            cell_frame(study),
            draw_study(study),
            stability_frame(study),
            chosen_frame(study, logs),
            None
            if study.experiment == EXPERIMENT
            else conclude(study, finished_environments(study, logs), planned_seeds),
        )
        for study in studies
    ]
    judged = ClaimsPart(claims, draw_panel(claims_panel(claims.primary))) if claims else None
    examples = [draw_panel(panel) for panel in example_panels()] if claims or measured else []
    drawings = [drawing for part in parts for group in part.figures.values() for drawing in group.drawings] + examples
    for drawing in [*drawings, *([judged.drawing] if judged else [])]:
        drawing.save(output / "figures")
    _write_tables(parts, output / "tables")
    if claims is not None:
        _write_claims(claims, output, readme)
    write_atomically(output / "report.html", render_page(logs, parts, judged, measured, examples))
    return output / "report.html"


def _measured(folder: Path | None, claims: ClaimsTable | None) -> MechanismPart | None:
    if folder is None and claims is not None and (MECHANISM / "about.json").is_file():
        folder = MECHANISM
    return read_mechanism_report(folder) if folder is not None else None


def _write_claims(claims: ClaimsTable, output: Path, readme: Path | None) -> None:
    write_frame(claims_frame(claims), output / "tables" / "claims.csv")
    write_atomically(output / "tables" / "claims.md", claims_markdown(claims))
    if readme is not None:
        folder = PurePath(os.path.relpath(output, readme.parent)).as_posix()
        links = {"all claims": f"{folder}/tables/claims.md", "the page": f"{folder}/report.html"}
        insert(readme, claims_digest(claims, links))


def _write_tables(parts: Sequence[Part], folder: Path) -> None:
    """Tables with run ids as CSV, and as people read them as Markdown and LaTeX."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = {
        "main": [main_frame(part.study) for part in parts],
        "cells": [part.cells for part in parts],
        "runs": [run_frame(part.study) for part in parts],
        "stability": [part.stability for part in parts],
        "prompts": [part.chosen for part in parts],
    }
    for name, of_parts in frames.items():
        write_frame(pd.concat(of_parts, ignore_index=True), folder / f"{name}.csv")
    concluded = [(part.study, part.conclusions) for part in parts if part.conclusions]
    if concluded:
        frame = pd.concat([conclusions_frame(*one) for one in concluded], ignore_index=True)
        write_frame(frame, folder / "conclusions.csv")
        text = "\n".join(conclusions_markdown(*one) for one in concluded)
        write_atomically(folder / "conclusions.md", text)
    main = [table for part in parts for table in (main_table(part.study), extra_gain_table(part.study))]
    tables: dict[str, list[WideTable | None]] = {
        "main": [*main, paper_table()],
        "cells": [cells_table(part.study, part.cells) for part in parts],
        "stability": [stability_table(part.study, part.stability) for part in parts],
        "prompts": [chosen_table(part.study, part.chosen) for part in parts],
    }
    for name, found in tables.items():
        shown = [table for table in found if table is not None]
        write_atomically(folder / f"{name}.md", "\n".join(map(markdown, shown)))
        if name == "main":
            write_atomically(folder / "main.tex", "\n".join(map(latex, shown)))
