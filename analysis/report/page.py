"""The report's page: one self-contained HTML file."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import markupsafe
import pandas as pd

from analysis import paper
from analysis.cells.chosen import quoted_word
from analysis.cells.labels import METHOD_NAMES
from analysis.cells.logs import TRAINING_REWARD, Logs
from analysis.cells.settings import count_warnings, describe_environments, split_settings
from analysis.cells.study import MIN_SEEDS_FOR_INTERVAL, Study, adagrpo_pairs, missing_cells
from analysis.figures import StudyFigures
from analysis.figures.drawing import Drawing
from analysis.formats import WideTable, entry_text, number
from analysis.report.head import added_by_study, cautions, head_table, headline, is_comparison
from analysis.report.pictures import gallery, pictures_by_difficulty
from analysis.report.tables import paper_table
from analysis.runs.sources import changes_since, note_on_changes
from analysis.verdicts import conclusions
from analysis.verdicts.conclusions import Conclusions

_TEMPLATES = Path(__file__).parent / "templates"


class Part(NamedTuple):
    """A study, and the results that a report shows for it."""

    study: Study
    frames: Mapping[str, pd.DataFrame]
    """Contents of tables/NAME.csv, by name."""
    tables: Mapping[str, WideTable | None]
    """Tables for readers, by name; None without content."""
    figures: StudyFigures
    conclusions: Conclusions | None
    """Verdicts on the claims; None if no pair has finished."""


SECTIONS = {
    "conclusions": "What these runs decide",
    "main": "Base methods and + AdaGRPO",
    "gallery": "Pictures before and after training",
    "limits": "Limits",
    "chosen": "What each strategy trained on",
    "selection": "Which prompt to train on",
    "costs": "At equal cost",
    "experiments": "What was run",
    "stability": "Stability, hacking, collapse",
    "curves": "More curves",
    "cells": "All cells",
    "runs": "Runs behind these numbers",
}
"""Sections of the page, in order; each has a template and is shown if it has content."""
_FOLDED = ("chosen", "selection", "costs", "experiments", "stability", "curves", "cells", "runs")


def render_page(
    logs: Logs, parts: Sequence[Part], levels: Sequence[Drawing] = (), tested: WideTable | None = None
) -> str:
    """Render the page as HTML.

    Args:
        logs: all runs.
        parts: one part per study.
        levels: figures of the map; empty unless at least two of its experiments are decided.
        tested: table of the map's test; None unless all three are decided.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, entry=entry_text, duration=_duration, code=_code)
    environment.filters["count"] = partial(number, digits=0)
    environment.filters["quoted"] = lambda prompt: quoted_word(prompt) or prompt
    summary = logs.summary
    finished = summary[summary["state"] == "finished"]
    # The same cell in two experiments counts twice.
    of_cells = [seeds for part in parts for seeds in part.frames["cells"]["seeds"] if seeds]
    several = summary["experiment"].nunique() > 1
    studies = [_study(part, f"study-{number}", several) for number, part in enumerate(parts, start=1)]
    there = {"experiments", "cells", "runs", "limits"}.union(*(study["parts"] for study in studies))
    titles = SECTIONS if any(study["main"] for study in studies) else SECTIONS | {"main": "Reward during training"}
    return environment.get_template("report.html.j2").render(
        title="AdaGRPO: training report",
        sections={name: title for name, title in titles.items() if name in there},
        studies=studies,
        folded=_FOLDED,
        num_runs=len(summary),
        num_finished=len(finished),
        num_seeds=sorted({min(of_cells, default=0), max(of_cells, default=0)}),
        num_cells=len(of_cells),
        num_iterations=int(summary["iteration"].sum()),
        seconds=float(summary["train_seconds"].sum() + summary["evaluation_seconds"].sum()),
        unfinished=summary[summary["state"] != "finished"].to_dict("records"),
        damages=logs.damages,
        environment=describe_environments(summary["environment"]),
        days=sorted({day for text in finished["updated"] if (day := str(text)[:10])}),
        changes=note_on_changes(map(changes_since, summary["environment"])),
        min_seeds=MIN_SEEDS_FOR_INTERVAL,
        paper=paper_table(),
        paper_overhead=paper.overhead(),
        published=next((p for part in parts if (p := part.figures["published"].panels)), []),
        grid=conclusions,
        map=levels,
        map_test=tested,
        endpoint=" or ".join(dict.fromkeys(study["endpoint"] for study in studies)),
    )


def _study(part: Part, scope: str, names_experiment: bool) -> dict[str, Any]:
    study, figures = part.study, part.figures
    cells = part.frames["cells"]
    rows = [(cell, row) for (cell, _), row in zip(study.cells, cells.to_dict("records"), strict=True)]
    shared, varied = split_settings(study.summary["config"])
    final = study.final_values
    reached = final[(final["split"] == study.endpoint) & (final["metric"] == TRAINING_REWARD)]
    of_question = {
        **part.tables,
        "conclusions": part.conclusions,
        "gallery": gallery(study),
        "by_difficulty": pictures_by_difficulty(study),
    }
    return {
        **of_question,
        "scope": scope,
        "name": f"{study.experiment}, trained on {study.reward}" if names_experiment else f"Trained on {study.reward}",
        "experiment": study.experiment,
        "reward": study.reward,
        "parts": {name for name, found in of_question.items() if found}
        | {name for name in ("main", "selection", "costs", "chosen") if figures[name].panels}
        | ({"curves"} if figures["curves"].panels or figures["published"].panels else set()),
        "metrics": study.metrics,
        "endpoint": study.endpoint,
        "note": part.conclusions and conclusions.note(part.conclusions, study.endpoint),
        "head": head_table(study, part.conclusions),
        "headline": headline(part.conclusions),
        "added": added_by_study(study),
        "is_comparison": is_comparison(part.conclusions),
        "is_miniature": study.is_miniature,
        "cautions": cautions(part.conclusions.main) if part.conclusions and is_comparison(part.conclusions) else [],
        "model": shared.get("model.path", "several models, see below"),
        "figures": figures,
        "cells": rows,
        "before_splits": set(cells["before_split"]),
        # Cells without a variant come first: the last that is set is the plain base, if there is one.
        "base_compute": {cell.method: row["compute"] for cell, row in rows[::-1] if study.base_of(cell) == cell},
        "timed_runs": len(study.timed(study.summary)),
        "num_runs": len(study.summary),
        "processor": study.processor,
        "missing": {} if conclusions.planned_families(study) else _missing(study),
        "warnings": count_warnings(study.summary["config"], study.summary["environment"]),
        "shared": shared,
        "varied": varied,
        "test_rewards": dict(zip(reached["run_id"], reached["value"], strict=True)),
        "runs": [(cell, members.sort_values("seed").to_dict("records")) for cell, members in study.cells],
    }


def _missing(study: Study) -> list[tuple[str, list[str]]]:
    if len(study.grid_cells) <= 2 or not adagrpo_pairs(study):  # a run, a pair or only custom rules: not the grid
        return []
    return [(METHOD_NAMES[method], [cell.short for cell in cells]) for method, cells in missing_cells(study).items()]


def _code(text: str) -> markupsafe.Markup:
    """Convert Markdown's `code` spans to HTML, and escape the rest."""
    return markupsafe.Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(markupsafe.escape(text))))


def _duration(seconds: float) -> str:
    if pd.isna(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
