"""The best trials on fresh seeds and test prompts: better than the reference? And was the sweep too optimistic?"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.drawing import GREY, Drawing, Panel, draw_panel
from analysis.formats import Entry, entry_text, interval_text, number
from analysis.statistics import Interval, paired_interval
from analysis.sweep.marks import BLUE, ORANGE
from analysis.sweep.tables import TRAINING_REWARD, Objective, SweepTables

CONFIDENCE = 0.95
"""That all intervals of a metric hold at once: each has 1 - (1 - .95) / (number of best trials), after Bonferroni."""


@dataclass(frozen=True)
class Confirmed:
    """One of the best trials against the reference.

    Attributes:
        trial: its number.
        point: its parameters, as text.
        num_seeds: fresh seeds that both have finished.
        value: its mean on test prompts.
        reference_value: the reference's, on the same seeds.
        difference: value - reference_value, with its interval.
        validation_difference: the same on validation prompts, where the sweep looked.
        claimed: what the sweep said the difference was; NaN where the reference was no trial.
        sweep_value: what the sweep said the value was, on validation prompts; NaN for a metric that it did not seek.
        lost: sweep_value - the value on fresh seeds and the same validation prompts, with its interval.
    """

    trial: int
    point: str
    num_seeds: int
    value: float
    reference_value: float
    difference: Interval
    validation_difference: float
    claimed: float
    sweep_value: float
    lost: Interval

    def too_good(self, objective: Objective) -> Interval:
        """By how much the sweep's own value was too good, on the prompts where it looked."""
        if objective.is_maximized:
            return self.lost
        return Interval(-self.lost.estimate, -self.lost.high, -self.lost.low)

    def optimism(self, objective: Objective) -> float:
        """By how much the sweep said too much good of the difference; negative: too little."""
        return objective.sign * (self.claimed - self.difference.estimate)

    def verdict(self, objective: Objective) -> str:
        """better, worse, or no difference shown: whether the interval leaves 0 out."""
        if self.difference.low > 0 or self.difference.high < 0:
            return "better" if (self.difference.estimate > 0) == objective.is_maximized else "worse"
        return "no difference shown"


def main_objective(tables: SweepTables) -> Objective:
    """What is judged: the first objective that is measured on prompts, else the trained reward."""
    assert tables.confirmation is not None
    measured = set(tables.confirmation["metric"])
    sought = [objective for objective in tables.objectives if objective.metric in measured]
    return sought[0] if sought else Objective(TRAINING_REWARD, "", True)


def judge(tables: SweepTables, metric: str) -> list[Confirmed]:
    """Each of the best trials against the reference, in a metric on test prompts.

    Seeds count that both have finished. Without two of them, a trial is left out.
    """
    runs = tables.confirmation
    assert runs is not None
    own = runs[runs["metric"] == metric]
    references = own[own["is_reference"]]
    best = own[~own["is_reference"]]
    trials = list(dict.fromkeys(best["trial"]))
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(trials))
    confirmed = []
    for trial in trials:
        pairs = {split: _paired(best[best["trial"] == trial], references, split) for split in ("test", "validation")}
        test, validation = pairs["test"], pairs["validation"]
        if len(test) < 2:
            continue
        said = _said(tables, int(trial), metric)
        confirmed.append(
            Confirmed(
                int(trial),
                tables.point(best[best["trial"] == trial].iloc[0]),
                len(test),
                float(test["value"].mean()),
                float(test["reference"].mean()),
                paired_interval(test["value"], test["reference"], confidence),
                float((validation["value"] - validation["reference"]).mean()),
                _claimed(tables, int(trial), metric),
                said,
                _lost(said, validation["value"], confidence),
            )
        )
    return confirmed


def _paired(ours: pd.DataFrame, references: pd.DataFrame, split: str) -> pd.DataFrame:
    """Columns ``value`` and ``reference``, one row a seed that both have."""
    values = [rows[rows["split"] == split].set_index("seed")["value"] for rows in (ours, references)]
    return pd.DataFrame(dict(zip(("value", "reference"), values, strict=True))).dropna()


def _said(tables: SweepTables, number: int, metric: str) -> float:
    """A trial's own value; NaN for a metric that was not sought."""
    columns = [objective.column for objective in tables.objectives if objective.metric == metric]
    return float(tables.trials.loc[tables.trials["trial"] == number, columns[0]].iloc[0]) if columns else float("nan")


def _lost(said: float, measured: pd.Series, confidence: float) -> Interval:
    """What a trial's own value is above its mean on fresh seeds; NaN where either is not known."""
    if pd.isna(said) or len(measured) < 2:
        return Interval(float("nan"), float("nan"), float("nan"))
    return paired_interval(np.full(len(measured), said), measured, confidence)


def _claimed(tables: SweepTables, number: int, metric: str) -> float:
    reference = tables.reference
    if reference is None:
        return float("nan")
    return _said(tables, number, metric) - _said(tables, int(reference["trial"]), metric)


def confirmed_table(confirmed: list[Confirmed], objective: Objective) -> pd.DataFrame:
    """One row a trial, with all digits."""
    rows = [
        {
            "trial": one.trial,
            "point": one.point,
            "seeds": one.num_seeds,
            "test": one.value,
            "reference_test": one.reference_value,
            "difference": one.difference.estimate,
            "low": one.difference.low,
            "high": one.difference.high,
            "validation_difference": one.validation_difference,
            "claimed_difference": one.claimed,
            "optimism": one.optimism(objective),
            "sweep_value": one.sweep_value,
            "validation": one.sweep_value - one.lost.estimate,
            "too_good": one.too_good(objective).estimate,
            "too_good_low": one.too_good(objective).low,
            "too_good_high": one.too_good(objective).high,
            "verdict": one.verdict(objective),
        }
        for one in confirmed
    ]
    return pd.DataFrame(rows)


def conclusion(confirmed: list[Confirmed], objective: Objective) -> list[str]:
    """What may be said, in sentences."""
    if not confirmed:
        return ["Nothing can be concluded: no trial and the reference have two finished seeds in common."]
    sentences = []
    for one in confirmed:
        claim = "" if pd.isna(one.claimed) else f" The sweep itself had said {number(one.claimed, signed=True)}"
        claim += "" if pd.isna(one.claimed) else f": it was {_how_far(one.optimism(objective))}."
        claim += "" if pd.isna(one.lost.estimate) else f" {_own_value(one, objective)}"
        sentences.append(
            f"Trial {one.trial} ({one.point}): {interval_text(one.difference)} against the reference on "
            f"{one.num_seeds} fresh seeds and test prompts: {one.verdict(objective)}.{claim}"
        )
    better = [one.trial for one in confirmed if one.verdict(objective) == "better"]
    if better:
        which = ", ".join(map(str, better))
        sentences.append(f"Better than the reference beyond the noise of seeds: trial {which}.")
    else:
        sentences.append("None of the best trials is better than the reference beyond the noise of seeds.")
    return sentences


def unmeasured(tables: SweepTables) -> list[str]:
    """That the sweep went on and found something better since; nothing where its best was measured again."""
    assert tables.confirmation is not None
    best = tables.best()
    measured = tables.confirmation.drop_duplicates([parameter.column for parameter in tables.parameters])
    points = [tables.point(row) for _, row in measured.iterrows()]
    if best.empty or tables.point(best.iloc[0]) in points:
        return []
    return [
        f"Trial {best.iloc[0]['trial']} ({tables.point(best.iloc[0])}), the sweep's best by now, has not been measured "
        "again: `adagrpo sweep confirm` does."
    ]


def reference_sentence(tables: SweepTables, objective: Objective) -> str:
    """What the reference is, and what it has itself on all of its fresh seeds; without two of them, only the former."""
    assert tables.confirmation is not None
    runs = tables.confirmation
    own = runs[(runs["metric"] == objective.metric) & runs["is_reference"]]
    about = tables.about["reference"]
    point = tables.point(pd.Series(about)) if about else "the sweep's settings without its space"
    values = {split: own.loc[own["split"] == split, "value"].to_numpy(dtype=float) for split in ("test", "validation")}
    if len(values["test"]) < 2:
        return f"The reference is {point}."
    mean = paired_interval(values["test"], np.zeros(len(values["test"])), CONFIDENCE)
    sentence = (
        f"The reference is {point}: {entry_text(Entry(mean.estimate, interval=mean))} on {len(values['test'])} fresh "
        "seeds and test prompts."
    )
    trial = tables.reference
    said = float("nan") if trial is None else _said(tables, int(trial["trial"]), objective.metric)
    if pd.isna(said):
        return sentence
    return (
        f"{sentence} On validation prompts it had {said:.3f} in the sweep and has {values['validation'].mean():.3f} "
        "on fresh seeds; it was not chosen for its value, so this is what the seeds alone do."
    )


def _own_value(one: Confirmed, objective: Objective) -> str:
    return (
        f"Its own value in the sweep, {one.sweep_value:.3f}, is {one.sweep_value - one.lost.estimate:.3f} on fresh "
        f"seeds and the same validation prompts: too good by {interval_text(one.too_good(objective))}."
    )


def _how_far(optimism: float) -> str:
    return f"too optimistic by {optimism:.3f}" if optimism >= 0 else f"too pessimistic by {-optimism:.3f}"


def draw_confirmation(confirmed: list[Confirmed], objective: Objective) -> Drawing:
    """Differences from the reference: measured again with intervals, beside what the sweep said."""

    def draw(axes: Axes) -> None:
        places = range(len(confirmed), 0, -1)
        axes.axvline(0, color=ORANGE, linewidth=1.2, linestyle="--", label="Reference")
        for place, one in zip(places, confirmed, strict=True):
            first = place == len(confirmed)
            axes.plot([one.difference.low, one.difference.high], [place, place], color=BLUE, linewidth=2)
            label = "Fresh seeds, test prompts, with interval" if first else None
            axes.plot(one.difference.estimate, place, "o", color=BLUE, markersize=7, label=label)
            label = "What the sweep said" if first else None
            axes.plot(one.claimed, place + 0.25, "D", color=GREY, markerfacecolor="none", markersize=6, label=label)
        axes.set_yticks(list(places), [f"Trial {one.trial}\n{one.point.replace(', ', chr(10))}" for one in confirmed])
        axes.locator_params(axis="x", nbins=5)
        axes.set_ylim(0.5, len(confirmed) + 0.6)
        axes.set_xlabel(f"{objective.label}: difference from the reference")

    title = "The best, measured again"
    return draw_panel(Panel("confirmation", title, draw, height=1.9 + 0.75 * len(confirmed)))
