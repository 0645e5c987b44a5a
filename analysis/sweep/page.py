"""Page of a sweep: trials, results, and their confirmation on fresh seeds."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from matplotlib.axes import Axes
from optuna.trial import FrozenTrial
from optuna.visualization import matplotlib as plots

from analysis.figures.drawing import Drawing, capture
from analysis.figures.short_page import short_page
from analysis.formats import Entry, WideTable, markdown, markdown_text, write_frame
from analysis.sweep.confirmation import (
    confirmation_tables,
    draw_confirmation,
    judge,
    judged_metric,
    metric_label,
    sentences,
)
from analysis.sweep.surface import surface_frames, surface_sentences, surface_tables
from analysis.sweep.tables import DEFINITION, SweepStudy, short, violated
from harness.foundation.files import write_atomically

_NUM_BEST = 10
_PLOTS: dict[str, Callable[..., Any]] = {
    "history": plots.plot_optimization_history,
    "contour": plots.plot_contour,
    "slice": plots.plot_slice,
    "importance": plots.plot_param_importances,
    "parallel": plots.plot_parallel_coordinate,
}
_NOT_CONFIRMED = (
    "Not measured again yet: the best of many noisy trials is the luckiest, too, so its value is too good. "
    "`adagrpo sweep confirm` measures it on fresh seeds and test prompts."
)


def write_sweep_report(sweep: SweepStudy, about: str, budget: int | None, folder: Path) -> Path:
    """Write tables of trials, curves, importance and response surface, figures/, report.html and summary.md, always the
    same bytes.

    If the folder has confirmation.csv, differences.csv is also written, and the page judges the best trials by it.

    Args:
        sweep: the sweep's study, complete or not.
        about: description of its runs, such as "profile smoke, 10 iterations".
        budget: planned number of trials; None if only time limits it.
        folder: folder to write to; created if missing.

    Returns:
        Path of summary.md.
    """
    frames = {"trials": sweep.trial_frame(), "curves": sweep.curve_frame(), "importance": sweep.importance_frame()}
    for table, frame in frames.items():
        write_atomically(folder / f"{table}.csv", frame.to_csv(index=False, lineterminator="\n"))
    points, effects = surface_frames(sweep)
    for table, frame in (("surface", points), ("effects", effects)):
        write_frame(frame, folder / f"{table}.csv")
    name, introduction, best, figures = sweep.study.study_name, _introduction(sweep, about, budget), _best(sweep), []
    said, tables = [_NOT_CONFIRMED], list[WideTable]()
    if (folder / "confirmation.csv").exists():
        # By default pandas would read a choice called "none" as missing.
        runs = pd.read_csv(folder / "confirmation.csv", keep_default_na=False, na_values=[""])
        runs = runs.astype({"is_reference": bool})  # an empty column has no type of its own
        metric = judged_metric(sweep, runs)
        judged = judge(sweep, runs, metric)
        write_frame(judged, folder / "differences.csv")
        said = sentences(sweep, runs, metric, judged)
        if len(judged):
            tables = confirmation_tables(sweep, runs, metric, judged)
            figures = [draw_confirmation(judged, metric)]
    figures += _figures(sweep)
    for figure in figures:
        figure.save(folder / "figures")
    title, heading = f"Sweep {name}", f"Sweep “{name}”"
    said, tables = [*said, *surface_sentences(effects)], [*tables, best, *surface_tables(points)]
    page = short_page(title, heading, "sweep", introduction, said, tables, figures)
    write_atomically(folder / "report.html", page)
    parts = [markdown_text(f"# Sweep {name}"), markdown_text(" ".join(introduction))]
    parts += ["\n".join(f"- {sentence}" for sentence in said), *map(markdown, tables)]
    write_atomically(folder / "summary.md", "\n\n".join(parts))
    return folder / "summary.md"


def _introduction(sweep: SweepStudy, about: str, budget: int | None) -> list[str]:
    states = Counter(trial.state.name.lower().replace("fail", "failed") for trial in sweep.trials)
    counted = ", ".join(f"{count} {state}" for state, count in states.items()) or "none is begun"
    finished = f"{states['complete'] + states['pruned']}{'' if budget is None else f' of {budget}'}"
    collapsed = sum(bool(violated(trial)) for trial in sweep.trials)
    note = f"; {collapsed} collapsed: diverged, fell below the untrained model or had no valid run" if collapsed else ""
    sought = " and ".join(f"{direction} {metric}" for metric, direction in sweep.objectives.items())
    seeds = ", ".join(map(str, sweep.study.user_attrs[DEFINITION]["seeds"]))
    return [
        f"Searched: {', '.join(sweep.columns)}, to {sought}; {about}.",
        f"{finished} trials are finished: {counted}{note}.",
        f"A trial's value is the mean over the paired seeds {seeds} on validation prompts; test prompts were not read.",
    ]


def _best(sweep: SweepStudy) -> WideTable:
    several = len(sweep.objectives) > 1
    trials = sweep.best if several else sweep.best[:_NUM_BEST]
    title = f"{'The Pareto front' if several else f'The {len(trials)} best trials'} and the reference"
    if sweep.reference is not None and sweep.reference not in trials:
        trials = [*trials, sweep.reference]

    def row(trial: FrozenTrial) -> tuple[str, list[Entry | str]]:
        label = f"{trial.number}{' (reference)' if trial == sweep.reference else ''}"
        values = [Entry(value, digits=3 if abs(value) < 100 else 0) for value in trial.values]
        return label, [*map(short, sweep.cells(trial.params).values()), *values, str(len(trial.user_attrs["seeds"]))]

    head = ["Trial", *sweep.columns.values(), *map(metric_label, sweep.objectives), "Seeds"]
    return WideTable(title, head, [row(trial) for trial in trials])


def _figures(sweep: SweepStudy) -> Iterator[Drawing]:
    """Yield Optuna's figures for each objective, once there are enough trials."""
    study, importance = sweep.study, sweep.importance_frame()
    if importance.empty:
        return
    several, paths = len(sweep.objectives) > 1, {column: path for path, column in sweep.columns.items()}
    if several:
        names = [metric_label(metric) for metric in sweep.objectives]
        yield capture("pareto", "Pareto front", lambda: plots.plot_pareto_front(study, target_names=names))
    for index, metric in enumerate(sweep.objectives):
        decisive = [paths[column] for column in importance.loc[importance["objective"] == metric, "parameter"][:2]]
        common: dict[str, Any] = {"target_name": metric_label(metric)}
        common |= {"target": lambda trial, index=index: trial.values[index]} if several else {}
        for name, plot in _PLOTS.items():
            if name != "contour" or len(decisive) == 2:
                suffix = f"-{metric.replace('/', '-')}" if several else ""
                chosen = {"params": decisive} if name == "contour" else {}
                title = f"{name.capitalize()}: {metric_label(metric)}"
                yield capture(name + suffix, title, partial(plot, study, **chosen, **common))
    if any(trial.intermediate_values for trial in sweep.trials):
        yield capture("intermediate", "Trained reward during trials", lambda: _intermediate(study))


def _intermediate(study: optuna.Study) -> Axes:
    axes = plots.plot_intermediate_values(study)
    if legend := axes.get_legend():
        legend.remove()  # it would have an entry per trial
    return axes
