"""Best trials on fresh seeds and test prompts: whether they beat the reference, and how optimistic the sweep was.

``runs`` is confirmation.csv: one row per run, split and metric, with columns ``trial``, ``is_reference``, one per
parameter, ``seed``, ``run_id``, ``processor``, ``split`` (validation or test), ``metric`` and ``value``. Runs of
different processors make no pair.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.drawing import GREY, Drawing, Panel, draw_panel, series_colour
from analysis.formats import Entry, WideTable, entry_text, interval_text, number
from analysis.statistics import Interval, paired_interval
from analysis.sweep.tables import TRAINING_REWARD, SweepStudy

CONFIDENCE = 0.95
"""Joint confidence of a metric's intervals: each has 1 - (1 - .95) / (number of best trials), by Bonferroni."""
_DIFFERENCE, _TOO_GOOD = ["difference", "low", "high"], ["too_good", "too_good_low", "too_good_high"]
_COLUMNS = ["trial", "point", "seeds", "test", "reference_test", *_DIFFERENCE, "validation_difference"]
_COLUMNS += ["claimed_difference", "optimism", "sweep_value", "validation", *_TOO_GOOD, "verdict"]


def judged_metric(sweep: SweepStudy, runs: pd.DataFrame) -> str:
    """First objective that is measured on prompts, else the trained reward."""
    return next((metric for metric in sweep.objectives if metric in set(runs["metric"])), TRAINING_REWARD)


def judge(sweep: SweepStudy, runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Compare each of the best trials with the reference in a metric; trials without two common seeds are left out.

    Columns: ``trial``; ``point``, its parameters as text; ``seeds``, the number of common seeds; ``test`` and
    ``reference_test``, means on test prompts; their ``difference`` with ``low`` and ``high``;
    ``validation_difference``, the same on the sweep's prompts; ``claimed_difference``, the sweep's own, and
    ``optimism``, by how much that was too good; ``sweep_value``, the trial's value in the sweep, ``validation``, the
    same on fresh seeds, and ``too_good``, their difference; ``verdict``. NaN for metrics that are no objective.
    """
    own = runs[runs["metric"] == metric]
    best, reference = own[~own["is_reference"]], _by_seed(own[own["is_reference"]]).add_suffix("_reference")
    confidence = 1 - (1 - CONFIDENCE) / max(1, best["trial"].nunique())
    judged = []
    for _, rows in best.groupby("trial", sort=False):
        pairs = _by_seed(rows).join(reference).dropna(subset=["test", "test_reference"])
        pairs = pairs[pairs["processor"] == pairs["processor_reference"]]
        if len(pairs) > 1:
            judged.append(_judge_trial(sweep, metric, rows.iloc[0], pairs, confidence))
    return pd.DataFrame(judged, columns=_COLUMNS)


def _by_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns ``test``, ``validation`` and ``processor``, one row per seed; some metrics are measured on test prompts
    alone, and a table of older code names no processor."""
    values = rows.pivot(index="seed", columns="split", values="value").reindex(columns=["test", "validation"])
    made_on = rows.groupby("seed")["processor"].first().map(str) if "processor" in rows else ""
    return values.assign(processor=made_on)


def _judge_trial(
    sweep: SweepStudy, metric: str, run: pd.Series, pairs: pd.DataFrame, confidence: float
) -> dict[str, Any]:
    sign, trial, means = sweep.sign(metric), int(run["trial"]), pairs.mean(numeric_only=True)
    said = sweep.value(next(t for t in sweep.trials if t.number == trial), metric)
    claimed = said - sweep.value(sweep.reference, metric)
    difference = paired_interval(pairs["test"], pairs["test_reference"], confidence)
    too_good = Interval(math.nan, math.nan, math.nan)
    if math.isfinite(said):
        too_good = paired_interval(np.full(len(pairs), sign * said), sign * pairs["validation"], confidence)
    return {
        "trial": trial,
        "point": sweep.point_text(run),
        "seeds": len(pairs),
        "test": means["test"],
        "reference_test": means["test_reference"],
        **dict(zip(_DIFFERENCE, difference, strict=True)),
        "validation_difference": (pairs["validation"] - pairs["validation_reference"]).mean(),
        "claimed_difference": claimed,
        "optimism": sign * (claimed - difference.estimate),
        "sweep_value": said,
        "validation": means["validation"] if math.isfinite(said) else math.nan,
        **dict(zip(_TOO_GOOD, too_good, strict=True)),
        "verdict": _verdict(difference, sign),
    }


def _verdict(difference: Interval, sign: int) -> str:
    if difference.low <= 0 <= difference.high:
        return "no difference shown"
    return "better" if sign * difference.estimate > 0 else "worse"


def sentences(sweep: SweepStudy, runs: pd.DataFrame, metric: str, judged: pd.DataFrame) -> list[str]:
    """Conclusions as sentences."""
    said = [_reference_sentence(sweep, runs, metric)]
    if judged.empty:
        return [*said, "Nothing can be concluded: no trial and the reference have two finished seeds in common."]
    said += [_trial_sentence(row) for _, row in judged.iterrows()]
    better = ", ".join(map(str, judged.loc[judged["verdict"] == "better", "trial"]))
    said.append(
        f"Better than the reference beyond the noise of seeds: trial {better}."
        if better
        else "None of the best trials is better than the reference beyond the noise of seeds."
    )
    measured = {sweep.point_text(row) for _, row in runs.drop_duplicates("run_id").iterrows()}
    for best in sweep.best[:1]:
        if (point := sweep.point_text(sweep.cells(best.params))) not in measured:
            said.append(
                f"Trial {best.number} ({point}), the sweep's best by now, has not been measured again: "
                "`adagrpo sweep confirm` does."
            )
    return said


def _trial_sentence(row: pd.Series) -> str:
    sentence = (
        f"Trial {row['trial']} ({row['point']}): {_shown(row)} against the reference on "
        f"{row['seeds']} fresh seeds and test prompts: {row['verdict']}."
    )
    if math.isfinite(row["claimed_difference"]):
        far = f"too {'optimistic' if row['optimism'] >= 0 else 'pessimistic'} by {abs(row['optimism']):.3f}"
        sentence += f" The sweep itself had said {number(row['claimed_difference'], signed=True)}: it was {far}."
    if math.isfinite(row["sweep_value"]):
        sentence += (
            f" Its own value in the sweep, {row['sweep_value']:.3f}, is {row['validation']:.3f} on fresh seeds and the "
            f"same validation prompts: too good by {_shown(row, _TOO_GOOD)}."
        )
    return sentence


def _reference_sentence(sweep: SweepStudy, runs: pd.DataFrame, metric: str) -> str:
    """Sentence with the reference's parameters, and its own value on its fresh seeds."""
    own = runs[runs["is_reference"] & (runs["metric"] == metric)]
    values = _by_seed(own).dropna(subset=["test"])
    if len(values) < 2:
        return "The reference has no two finished seeds."
    mean = paired_interval(values["test"], np.zeros(len(values)), CONFIDENCE)
    shown = entry_text(Entry(mean.estimate, interval=mean))
    point = sweep.point_text(own.iloc[0])
    sentence = f"The reference is {point}: {shown} on {len(values)} fresh seeds and test prompts."
    said = sweep.value(sweep.reference, metric)
    if math.isnan(said):
        return sentence
    return (
        f"{sentence} On validation prompts it had {said:.3f} in the sweep and has {values['validation'].mean():.3f} "
        "on fresh seeds; it was not chosen for its value, so this is what the seeds alone do."
    )


def confirmation_tables(sweep: SweepStudy, runs: pd.DataFrame, metric: str, judged: pd.DataFrame) -> list[WideTable]:
    """Tables of the judged metric and of all others: a reward that rises while other judges fall was hacked."""
    title = (
        f"{metric_label(metric)} on test prompts, paired differences from the reference, whose intervals all hold at "
        f"once with {100 * CONFIDENCE:g} % confidence. Too good by: the trial's own value in the sweep less that on "
        "fresh seeds and the same validation prompts"
    )
    head = ["Trial", "Parameters", "Seeds", "Value", "Difference", "The sweep said", "Too good by", "Verdict"]
    rows = []
    for _, row in judged.iterrows():
        measured = [row["point"], str(row["seeds"]), number(row["test"]), _shown(row)]
        claimed = [number(row["claimed_difference"], signed=True), _shown(row, _TOO_GOOD)]
        rows.append((str(row["trial"]), [*measured, *claimed, row["verdict"]]))
    of_others = [
        (name, [_shown(row) for _, row in own.iterrows()])
        for name in dict.fromkeys(runs["metric"])
        # A single reward is also measured under its own name.
        if not (own := judge(sweep, runs, name))["test"].equals(judged["test"])
    ]
    trials = [f"Trial {trial}" for trial in judged["trial"]]
    other_title = "All other metrics on test prompts, paired differences from the reference"
    return [WideTable(title, head, rows), WideTable(other_title, ["Metric", *trials], of_others)]


def metric_label(metric: str) -> str:
    """Name of a metric in tables and figures."""
    return "Trained reward" if metric == TRAINING_REWARD else metric.replace("_", " ").capitalize()


def _shown(row: pd.Series, columns: list[str] = _DIFFERENCE) -> str:
    return interval_text(Interval(*row[columns]))


def draw_confirmation(judged: pd.DataFrame, metric: str) -> Drawing:
    """Draw differences from the reference: measured again with intervals, beside those claimed by the sweep."""

    def draw(axes: Axes) -> None:
        places = np.arange(len(judged), 0, -1.0)
        blue, orange = series_colour(1), series_colour(2)
        axes.axvline(0, color=orange, linewidth=1.2, linestyle="--", label="Reference")
        axes.hlines(places, judged["low"], judged["high"], color=blue, linewidth=2)
        axes.plot(judged["difference"], places, "o", color=blue, label="Fresh seeds, test prompts, with interval")
        said = judged["claimed_difference"]
        axes.plot(said, places + 0.25, "D", color=GREY, markerfacecolor="none", label="What the sweep said")
        points = judged["point"].str.replace(", ", "\n")
        axes.set_yticks(
            places, [f"Trial {trial}\n{point}" for trial, point in zip(judged["trial"], points, strict=True)]
        )
        axes.locator_params(axis="x", nbins=5)
        axes.set_ylim(0.5, len(judged) + 0.6)
        axes.set_xlabel(f"{metric_label(metric)}: difference from the reference")

    return draw_panel(Panel("confirmation", "The best, measured again", draw, height=1.9 + 0.75 * len(judged)))
