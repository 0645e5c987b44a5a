"""What a sweep tried and found: history, importance, slices, surface, parallel coordinates, curves, Pareto front."""

from collections.abc import Iterator
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from analysis.figures.drawing import GREY, INK, Drawing, Panel, draw_panel
from analysis.sweep.marks import BLUE, COLOUR_MAP, GREEN, ORANGE, mark, mark_special, split_states
from analysis.sweep.surface import draw_surface
from analysis.sweep.tables import TRAINING_REWARD, Objective, Parameter, SweepTables

_NUM_HIGHLIGHTED = 5
_MIN_FOR_SURFACE = 8


def draw_sweep(tables: SweepTables) -> list[Drawing]:
    """All figures that the tables suffice for."""
    return [draw_panel(panel) for panel in _panels(tables)]


def _panels(tables: SweepTables) -> Iterator[Panel]:
    several = len(tables.objectives) > 1
    if several and len(tables.complete) > 1:
        yield _pareto(tables)
    for objective in tables.objectives:
        if not tables.trials[objective.column].notna().any():
            continue
        suffix = f"-{objective.metric}".replace("/", "-") if several else ""
        of = f": {objective.label.lower()}" if several else ""
        yield Panel(
            f"history{suffix}",
            f"Trials in order{of}",
            lambda axes, o=objective: _history(axes, tables, o),  # type: ignore[misc]
            note="Mean over seeds, and the range from lowest to highest seed"
            if objective.metric == TRAINING_REWARD
            else "Mean over seeds",
            height=5.0,
        )
        pair = _most_important_ranges(tables, objective)
        if len(pair) == 2 and len(tables.feasible) >= _MIN_FOR_SURFACE:
            yield Panel(
                f"contour{suffix}",
                f"{pair[0].column} and {pair[1].column}{of}",
                lambda axes, p=pair, o=objective: draw_surface(axes, tables, o, p),  # type: ignore[misc]
                note="Surface: complete trials smoothed, without collapsed ones; blank where none is near",
                height=5.4,
            )
        for parameter in tables.parameters:
            yield Panel(
                f"slice-{parameter.column.replace('.', '-')}{suffix}",
                f"{parameter.column}{of}",
                lambda axes, p=parameter, o=objective: _slice(axes, tables, o, p),  # type: ignore[misc]
                note="Darker: later trials",
                height=4.8,
            )
        if not tables.importance.empty:
            yield Panel(
                f"importance{suffix}",
                f"What decides{of}",
                lambda axes, o=objective: _importance(axes, tables, o),  # type: ignore[misc]
                height=1.3 + 0.35 * len(tables.parameters),
            )
        if len(tables.feasible) > 1:
            yield Panel(
                f"parallel{suffix}",
                f"All parameters at once{of}",
                lambda axes, o=objective: _parallel(axes, tables, o),  # type: ignore[misc]
                note=f"One line a complete trial, without collapsed ones; the {_NUM_HIGHLIGHTED} best are thick",
            )
    if not tables.curves.empty:
        yield Panel(
            "intermediate",
            "Trained reward during trials",
            lambda axes: _curves(axes, tables),
            note="Mean over the seeds begun, validation prompts",
            height=5.0,
        )


# --- figures --------------------------------------------------------------------------------------------------------


def _history(axes: Axes, tables: SweepTables, objective: Objective) -> None:
    column = objective.column
    states = split_states(tables.trials, column)
    if objective.metric == TRAINING_REWARD and not tables.curves.empty:
        ends = tables.curves.sort_values("iteration").groupby(["trial", "seed"])["value"].last()
        spread = ends.groupby("trial").agg(["min", "max"])
        spread = spread[spread.index.isin(states["complete"]["trial"])]
        axes.vlines(spread.index, spread["min"], spread["max"], color=BLUE, alpha=0.35, linewidth=1.2)
    for kind, rows in states.items():
        if len(rows):
            mark(axes, kind, rows["trial"], rows[column])
    good = states["complete"].sort_values("trial")
    if len(good):
        so_far = good[column].cummax() if objective.is_maximized else good[column].cummin()
        axes.step(good["trial"], so_far, where="post", color=GREEN, linewidth=1.6, label="Best so far")
    reference = tables.reference
    if reference is not None:
        axes.axhline(reference[column], color=ORANGE, linestyle="--", linewidth=1)
        mark(axes, "reference", reference["trial"], reference[column])
    if objective.metric == TRAINING_REWARD and tables.trials["base"].notna().any():
        axes.axhline(tables.trials["base"].mean(), color=INK, linestyle=":", linewidth=1, label="Untrained model")
    axes.set_xlabel("Trial")
    axes.set_ylabel(_axis_label(objective))
    axes.locator_params(axis="x", integer=True)


def _slice(axes: Axes, tables: SweepTables, objective: Objective, parameter: Parameter) -> None:
    column = objective.column
    if parameter.choices:
        xs = pd.Series(parameter.positions(tables.trials[parameter.column].fillna(parameter.choices[0])))
        xs.index = tables.trials.index
        axes.set_xticks(np.linspace(0, 1, len(parameter.choices)), parameter.choices)
        axes.margins(x=0.15)
    else:
        xs = tables.trials[parameter.column]
        if parameter.is_log:
            axes.set_xscale("log")
    order = Normalize(0, max(1, tables.trials["trial"].max()))
    shades = matplotlib.colormaps["Blues"]
    for kind, rows in split_states(tables.trials, column).items():
        if not len(rows):
            continue
        # Light to dark in the order of trials; late ones lie where the sampler found it worth while.
        colours: dict[str, Any] = (
            {"c": shades(0.3 + 0.7 * np.asarray(order(rows["trial"])))} if kind == "complete" else {}
        )
        mark(axes, kind, xs[rows.index], rows[column], **colours)
    mark_special(axes, tables, xs, tables.trials[column])
    axes.set_xlabel(parameter.path)
    axes.set_ylabel(_axis_label(objective))


def _importance(axes: Axes, tables: SweepTables, objective: Objective) -> None:
    own = tables.importance[tables.importance["objective"] == objective.metric].sort_values("importance")
    axes.barh(own["parameter"], own["importance"], color=BLUE, height=0.6)
    for place, share in enumerate(own["importance"]):
        axes.text(share + 0.01, place, f"{share:.2f}", va="center")
    axes.set_xlim(0, 1.12)
    axes.grid(visible=False)
    axes.set_xlabel(
        f"Importance for being among the best tenth\n(PED-ANOVA over {len(tables.complete)} complete trials)"
    )


def _parallel(axes: Axes, tables: SweepTables, objective: Objective) -> None:
    rows = tables.feasible.sort_values(objective.column, ascending=not objective.is_maximized, kind="stable")
    values = rows[objective.column].to_numpy(dtype=float)
    low, high = values.min(), values.max()
    heights = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
    lines = np.column_stack([*(p.positions(rows[p.column]) for p in tables.parameters), heights])
    goodness = heights if objective.is_maximized else 1 - heights
    places = np.arange(lines.shape[1])
    for rank in reversed(range(len(lines))):
        is_best = rank < _NUM_HIGHLIGHTED
        width, alpha = (2.0, 1.0) if is_best else (0.8, 0.55)
        axes.plot(places, lines[rank], color=COLOUR_MAP(0.92 * goodness[rank]), linewidth=width, alpha=alpha)
    for place, parameter in enumerate(tables.parameters):
        axes.vlines(place, 0, 1, color=INK, linewidth=0.8)
        ends = (parameter.choices[0], parameter.choices[-1]) if parameter.choices else (parameter.low, parameter.high)
        _mark_ends(axes, place, *(parameter.text(end) for end in ends))
    axes.vlines(places[-1], 0, 1, color=INK, linewidth=0.8)
    _mark_ends(axes, places[-1], f"{low:.3g}", f"{high:.3g}")
    axes.set_xticks(places, [*(p.column for p in tables.parameters), objective.label.lower()])
    axes.set_yticks([])
    axes.set_ylim(-0.12, 1.12)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)


def _mark_ends(axes: Axes, place: float, low: str, high: str) -> None:
    axes.text(place, -0.03, low, ha="center", va="top", fontsize=9)
    axes.text(place, 1.03, high, ha="center", va="bottom", fontsize=9)


def _curves(axes: Axes, tables: SweepTables) -> None:
    curves = tables.curves.groupby(["trial", "iteration"])["value"].mean().reset_index()
    best, reference = tables.best(), tables.reference
    special = {int(best["trial"].iloc[0])} if len(best) else set()
    special |= {int(reference["trial"])} if reference is not None else set()
    states = tables.trials.set_index("trial")
    told: set[str] = set()
    for trial, curve in curves.groupby("trial"):
        state = states.loc[trial]
        kind = "collapsed" if state["state"] == "complete" and not state["feasible"] else str(state["state"])
        if trial in special or kind not in ("complete", "pruned", "collapsed"):
            continue
        colour = {"complete": BLUE, "pruned": GREY, "collapsed": INK}[kind]
        label = None if kind in told else kind.capitalize()
        told.add(kind)
        axes.plot(curve["iteration"], curve["value"], color=colour, linewidth=0.8, alpha=0.55, label=label)
        if kind != "complete":
            end = curve.iloc[-1]
            axes.plot(end["iteration"], end["value"], "x", color=colour, markersize=5)
    for name, colour, row in _special_lines(best, reference):
        curve = curves[curves["trial"] == row["trial"]]
        axes.plot(curve["iteration"], curve["value"], color=colour, linewidth=2.2, label=name)
    axes.set_xlabel("Training iteration")
    axes.set_ylabel("Trained reward")


def _special_lines(best: pd.DataFrame, reference: pd.Series | None) -> Iterator[tuple[str, str, pd.Series]]:
    if len(best):
        yield "Best", GREEN, best.iloc[0]
    if reference is not None:
        yield "Reference", ORANGE, reference


def _pareto(tables: SweepTables) -> Panel:
    second, first = tables.objectives[:2]

    def draw(axes: Axes) -> None:
        for kind, rows in split_states(tables.complete, first.column).items():
            if len(rows):
                mark(axes, kind, rows[first.column], rows[second.column])
        front = tables.best().sort_values(first.column)
        # What a trial reaches, all can have that may spend more. With a third objective the front is no line.
        where: Literal["pre", "post"] = "pre" if first.is_maximized else "post"
        if len(tables.objectives) == 2:
            axes.step(
                front[first.column], front[second.column], where=where, color=GREEN, linewidth=1.6, label="Pareto front"
            )
        mark(axes, "best", front[first.column], front[second.column], label=False)
        reference = tables.reference
        if reference is not None:
            mark(axes, "reference", reference[first.column], reference[second.column])
        axes.set_xlabel(_axis_label(first))
        axes.set_ylabel(_axis_label(second))

    return Panel("pareto", f"{second.label} against {first.label.lower()}", draw, height=4.2)


def _axis_label(objective: Objective) -> str:
    return f"{objective.label}\n(validation prompts)" if objective.metric == TRAINING_REWARD else objective.label


def _most_important_ranges(tables: SweepTables, objective: Objective) -> list[Parameter]:
    """The two ranges that decide most, in the file's order; the first two where importance is not known."""
    ranges = [parameter for parameter in tables.parameters if not parameter.choices]
    shares = tables.importance[tables.importance["objective"] == objective.metric]
    ranked = dict(zip(shares["parameter"], shares["importance"], strict=True))
    chosen = sorted(ranges, key=lambda parameter: -ranked.get(parameter.column, 0.0))[:2]
    return [parameter for parameter in ranges if parameter in chosen]
