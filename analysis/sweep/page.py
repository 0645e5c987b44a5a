"""A sweep's page: what was tried, what was found, and what is left of it on fresh seeds."""

from pathlib import Path
from typing import NamedTuple

import jinja2
import pandas as pd

from analysis.figures.drawing import Drawing
from analysis.formats import interval_text, markdown_row, markdown_text, number, write_frame
from analysis.sweep.confirmation import (
    CONFIDENCE,
    Confirmed,
    conclusion,
    confirmed_table,
    draw_confirmation,
    judge,
    main_objective,
    reference_sentence,
    unmeasured,
)
from analysis.sweep.figures import draw_sweep
from analysis.sweep.tables import TRAINING_REWARD, Objective, SweepTables, load_sweep_tables
from harness.files import write_atomically

_TEMPLATES = Path(__file__).parent.parent / "report" / "templates"
_NUM_BEST = 10


class Table(NamedTuple):
    """A table as people read it."""

    title: str
    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """In GitHub's Markdown, under its title."""
        lines = map(markdown_row, [self.head, ["---"] * len(self.head), *self.rows])
        return "\n".join([markdown_text(self.title), "", *lines, ""])


class Judgement(NamedTuple):
    """What fresh seeds say."""

    sentences: list[str]
    tables: list[Table]
    figure: Drawing | None


def write_sweep_report(folder: Path) -> tuple[Path, list[str]]:
    """Write report.html, summary.md, figures/ and, where the best were measured again, differences.csv.

    Args:
        folder: holds the sweep's tables; the same tables give the same bytes.

    Returns:
        The page's path, and the conclusion from fresh seeds in sentences; none before there is one.

    Raises:
        SweepTableError: a table is missing or broken.
    """
    tables = load_sweep_tables(folder)
    figures = draw_sweep(tables)
    judgement = None if tables.confirmation is None else _judge(tables, folder)
    for figure in [*figures, *([judgement.figure] if judgement and judgement.figure else [])]:
        figure.save(folder / "figures")
    introduction, best = _introduction(tables), _best_table(tables)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("sweep.html.j2").render(
        name=tables.about["name"],
        introduction=introduction,
        confirmed=judgement and judgement.tables,
        conclusion=judgement and judgement.sentences,
        confirmation_figure=judgement and judgement.figure,
        best=best,
        figures=figures,
    )
    write_atomically(folder / "report.html", page)
    parts = [markdown_text(f"# Sweep {tables.about['name']}"), markdown_text(" ".join(introduction))]
    if judgement is None:
        parts += [
            "Not measured again yet: the best of many noisy trials is the luckiest, too, so its value is too good. "
            "`adagrpo sweep confirm` measures it on fresh seeds and test prompts."
        ]
    else:
        parts += ["\n".join(f"- {sentence}" for sentence in judgement.sentences)]
        parts += [table.markdown() for table in judgement.tables]
    write_atomically(folder / "summary.md", "\n\n".join([*parts, best.markdown()]))
    return folder / "report.html", judgement.sentences if judgement else []


def _introduction(tables: SweepTables) -> list[str]:
    about, trials = tables.about, tables.trials
    states = trials["state"].value_counts()
    counted = ", ".join(
        f"{states[s]} {s}" for s in ("complete", "pruned", "failed", "running", "waiting") if s in states
    )
    budget = "" if about["trials"] is None else f" of {about['trials']}"
    collapsed = int((~tables.complete["feasible"]).sum())
    seeds = ", ".join(map(str, about["seeds"]))
    searched = ", ".join(parameter.path for parameter in tables.parameters)
    sought = " and ".join(f"{entry['direction']} {entry['metric']}" for entry in about["objectives"])
    return [
        f"Searched: {searched}, to {sought}; profile {about['profile']}, {about['method']}, {about['iterations']} "
        f"iterations, sampler {about['sampler']['kind']}, pruner {about['pruner']['kind']}.",
        f"{int(trials['state'].isin(['complete', 'pruned']).sum())}{budget} trials are finished: {counted}"
        + (
            f"; {collapsed} of the complete ones collapsed: they diverged or fell below the untrained model."
            if collapsed
            else "."
        ),
        f"A trial's value is the mean over the paired seeds {seeds} on validation prompts; test prompts were not read.",
    ]


def _best_table(tables: SweepTables) -> Table:
    several = len(tables.objectives) > 1
    rows = tables.best() if several else tables.best().head(_NUM_BEST)
    reference = tables.reference
    if reference is not None and reference["trial"] not in list(rows["trial"]):
        rows = pd.concat([rows, reference.to_frame().T])
    title = (
        "The Pareto front and the reference"
        if several
        else f"The {min(_NUM_BEST, len(rows))} best trials and the reference"
    )
    head = ["Trial", *(p.column for p in tables.parameters), *(o.label for o in tables.objectives), "Seeds"]
    cells = [
        [
            f"{row['trial']}{' (reference)' if row['origin'] == 'reference' else ''}",
            *(p.text(row[p.column]) for p in tables.parameters),
            *(_number(row[o.column]) for o in tables.objectives),
            str(row["seeds"]),
        ]
        for _, row in rows.iterrows()
    ]
    return Table(title, head, cells)


def _judge(tables: SweepTables, folder: Path) -> Judgement:
    objective = main_objective(tables)
    confirmed = judge(tables, objective.metric)
    write_frame(confirmed_table(confirmed, objective), folder / "differences.csv")
    figure = draw_confirmation(confirmed, objective) if confirmed else None
    sentences = [reference_sentence(tables, objective), *conclusion(confirmed, objective), *unmeasured(tables)]
    return Judgement(sentences, [_main_table(confirmed, objective), *_other_tables(tables, objective)], figure)


def _main_table(confirmed: list[Confirmed], objective: Objective) -> Table:
    title = (
        f"{objective.label} on test prompts, paired differences from the reference, whose intervals all hold at once "
        f"with {100 * CONFIDENCE:g} % confidence. Too good by: the trial's own value in the sweep less that on fresh "
        "seeds and the same validation prompts"
    )
    head = ["Trial", "Parameters", "Seeds", "Value", "Difference", "The sweep said", "Too good by", "Verdict"]
    rows = [
        [
            str(one.trial),
            one.point,
            str(one.num_seeds),
            _number(one.value),
            interval_text(one.difference),
            number(one.claimed, signed=True),
            interval_text(one.too_good(objective)),
            one.verdict(objective),
        ]
        for one in confirmed
    ]
    return Table(title, head, rows)


def _other_tables(tables: SweepTables, objective: Objective) -> list[Table]:
    """The same trials in all other metrics: a reward that rises while other judges fall has been hacked."""
    assert tables.confirmation is not None
    # A single reward is also measured under its own name.
    same = set(tables.about["reward"]) | {TRAINING_REWARD} if len(tables.about["reward"]) == 1 else set()
    shown = same if objective.metric in same else {objective.metric}
    metrics = [metric for metric in dict.fromkeys(tables.confirmation["metric"]) if metric not in shown]
    judged = {metric: judge(tables, metric) for metric in metrics}
    if not metrics or not judged[metrics[0]]:
        return []
    trials = [one.trial for one in judged[metrics[0]]]
    rows = [[metric, *(interval_text(one.difference) for one in judged[metric])] for metric in metrics]
    title = "All other metrics on test prompts, paired differences from the reference"
    return [Table(title, ["Metric", *(f"Trial {trial}" for trial in trials)], rows)]


def _number(value: float) -> str:
    return number(value, digits=3 if abs(value) < 100 else 0)
