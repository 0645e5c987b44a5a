"""Report on a folder of runs: tables, figures, and one self-contained page."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import pandas as pd

from analysis.cells.chosen import CHOSEN_METRICS, chosen_frame, chosen_table
from analysis.cells.logs import Logs, find_runs, load_logs
from analysis.cells.spending import SPENDING_METRICS
from analysis.cells.study import Study, split_studies
from analysis.figures import Group, StudyFigures, draw_study
from analysis.figures.claims import claims_panel
from analysis.figures.drawing import Drawing, draw_panel, draw_together
from analysis.figures.levels import map_panels
from analysis.formats import WideTable, latex, markdown, write_frame
from analysis.report.head import is_comparison
from analysis.report.insertion import CLAIMS, FINDINGS, insert, require_block
from analysis.report.page import Part, render_page
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
from analysis.verdicts.compared import compare_runs, read_definition
from analysis.verdicts.conclusions import (
    Conclusions,
    conclude,
    conclusions_frame,
    conclusions_markdown,
    digest,
    planned_families,
    runs_of_plan,
)
from analysis.verdicts.levels import map_frame, prediction_frame, prediction_table
from analysis.verdicts.stability import GROUP_SPREADS, stability_frame, stability_table
from harness.foundation.errors import ConfigError
from harness.foundation.files import write_atomically

REPORT_METRICS = (*CHOSEN_METRICS, *GROUP_SPREADS)
"""Training metrics that a page shows, besides those of costs."""
_FILES = {"main": ("main", "extra_gain"), "cells": ("cells",), "stability": ("stability",), "prompts": ("chosen",)}
"""Tables of a study in each Markdown file."""


def write_report(
    runs_folder: Path,
    output: Path,
    readme: Path | None = None,
    planned_seeds: int | None = None,
) -> Path:
    """Write report.html, tables/ and figures/; the same logs, as directories or as shards, give the same bytes.

    Args:
        runs_folder: folder with run directories or shards at any depth, see ``find_runs``; if it is that of
            ``adagrpo compare --output``, its claims are those of the comparison.
        output: folder to write to; created if missing.
        readme: file whose markers enclose the first experiment's claims, or the findings of the study, see
            ``analysis.report.insertion``.
        planned_seeds: see ``conclude``.

    Returns:
        Path of the page. tables/ gets cells, main (base and + AdaGRPO beside the paper's numbers), runs, stability,
        prompts (those that were trained on) and conclusions (judged claims) as .csv, all but runs as .md, and main as
        .tex; figures/ gets every figure as .svg, and the wide ones, such as main, also as .png.

    Raises:
        ConfigError: there is no run, or no run can be read, or a comparison's file cannot; the message names the file.
        ConfigError: ``readme`` lacks the markers, or there are no claims to insert; it is not changed then.
    """
    if not find_runs(runs_folder):
        raise ConfigError(f"{runs_folder}: holds no run (no config.yaml and no shard at any depth)")
    if readme is not None:
        require_block(readme, (CLAIMS, FINDINGS))
    logs = load_logs(runs_folder, (*SPENDING_METRICS, *REPORT_METRICS), skip_damaged=True)
    for line in note_on_changes(map(changes_since, logs.summary["environment"])):
        print(line, file=sys.stderr)
    compared = read_definition(runs_folder)
    found = {
        study: compare_runs(study, compared)
        if compared and set(compared[0]) & set(study.summary["run_id"])
        else conclude(study, planned_seeds)
        for study in split_studies(logs)
    }
    if readme is not None:
        concluded = [(study, conclusions) for study, conclusions in found.items() if conclusions]
        if not concluded:
            raise ConfigError(f"{runs_folder}: holds no pair of finished runs, so no claims for {readme}")
        study, conclusions = concluded[0]
        folder = PurePath(os.path.relpath(output, readme.parent)).as_posix()
        links = {"all claims": f"{folder}/tables/conclusions.md", "the page": f"{folder}/report.html"}
        text = digest(conclusions, links)
        if planned_families(study):
            picture = f'<img src="{folder}/figures/{study.prefix}claims-1.svg" width="480" alt="The study\'s claims">'
            insert(readme, FINDINGS, f"{picture}\n\n{text}")
        else:
            insert(readme, CLAIMS, text)
    return write_pages(logs, found, output)


def write_pages(logs: Logs, found: Mapping[Study, Conclusions | None], output: Path) -> Path:
    """Write report.html, tables/ and figures/ of studies with their conclusions; returns the page's path."""
    parts = [part_of(study, one, _figures(study, one)) for study, one in found.items()]
    for drawing in [drawing for part in parts for group in part.figures.values() for drawing in group.drawings]:
        drawing.save(output / "figures")
    _write_tables(parts, output / "tables")
    levels, tested = _draw_map(parts, output), _test_map(parts, output)
    write_atomically(output / "report.html", render_page(logs, parts, levels, tested))
    return output / "report.html"


def _draw_map(parts: Sequence[Part], output: Path) -> list[Drawing]:
    """Write the map's table and figures once two of its experiments are decided; returns the figures."""
    decided = [part for part in parts if part.conclusions and planned_families(part.study)]
    frame = map_frame({part.study.experiment: part.conclusions.main for part in decided if part.conclusions})
    if frame.empty or frame["experiment"].nunique() < 2:
        return []
    write_frame(frame, output / "tables" / "map.csv")
    panels = map_panels(frame)
    drawings = [draw_panel(panel) for panel in panels]
    for drawing in (draw_together("map-together", "When choosing prompts pays", panels, 2), *drawings):
        drawing.save(output / "figures")
    return drawings


def _test_map(parts: Sequence[Part], output: Path) -> WideTable | None:
    """Write the table of the map's test once its three levels are decided; returns it for readers."""
    frame = prediction_frame([runs_of_plan(part.study) for part in parts if planned_families(part.study)])
    if frame.empty:
        return None
    write_frame(frame, output / "tables" / "map-test.csv")
    return prediction_table(frame)


def part_of(study: Study, conclusions: Conclusions | None, figures: StudyFigures) -> Part:
    """Compute the tables of a study."""
    cells, stability, chosen = cell_frame(study), stability_frame(study), chosen_frame(study)
    frames = {"main": main_frame(study), "cells": cells, "runs": run_frame(study)}
    tables = {"main": main_table(study), "extra_gain": extra_gain_table(study), "cells": cells_table(study, cells)}
    tables |= {"stability": stability_table(study, stability), "chosen": chosen_table(study, chosen)}
    return Part(study, frames | {"stability": stability, "prompts": chosen}, tables, figures, conclusions)


def _figures(study: Study, conclusions: Conclusions | None) -> StudyFigures:
    families, words = (conclusions.families, conclusions.words) if conclusions else ({}, {})
    claims = [
        claims_panel(f"{study.prefix}claims-{number}", title[:1].upper() + title[1:], family, words[title])
        for number, (title, family) in enumerate(families.items(), start=1)
    ]
    return {**draw_study(study, is_comparison(conclusions)), "claims": Group([draw_panel(one) for one in claims])}


def _write_tables(parts: Sequence[Part], folder: Path) -> None:
    """Write tables with all numbers as CSV, and tables for readers as Markdown and LaTeX."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in parts[0].frames:
        write_frame(pd.concat([part.frames[name] for part in parts], ignore_index=True), folder / f"{name}.csv")
    concluded = [(part.study, part.conclusions) for part in parts if part.conclusions]
    if concluded:
        frame = pd.concat([conclusions_frame(*one) for one in concluded], ignore_index=True)
        write_frame(frame, folder / "conclusions.csv")
        text = "\n".join(conclusions_markdown(*one) for one in concluded)
        write_atomically(folder / "conclusions.md", text)
    for name, keys in _FILES.items():
        shown = [table for part in parts for key in keys if (table := part.tables[key]) is not None]
        if name == "main":
            shown.append(paper_table())
            write_atomically(folder / "main.tex", "\n".join(map(latex, shown)))
        write_atomically(folder / f"{name}.md", "\n".join(map(markdown, shown)))
