"""The best trials on fresh seeds and test prompts: better than the reference? And was the sweep too optimistic?"""

from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.drawing import GREY, Drawing, Panel, draw_panel
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
    """

    trial: int
    point: str
    num_seeds: int
    value: float
    reference_value: float
    difference: Interval
    validation_difference: float
    claimed: float

    def optimism(self, objective: Objective) -> float:
        """By how much the sweep said too much good; negative: too little."""
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
    numbers = list(dict.fromkeys(best["trial"]))
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(numbers))
    confirmed = []
    for number in numbers:
        pairs = {split: _paired(best[best["trial"] == number], references, split) for split in ("test", "validation")}
        test, validation = pairs["test"], pairs["validation"]
        if len(test) < 2:
            continue
        confirmed.append(
            Confirmed(
                int(number),
                tables.point(best[best["trial"] == number].iloc[0]),
                len(test),
                float(test["value"].mean()),
                float(test["reference"].mean()),
                paired_interval(test["value"], test["reference"], confidence),
                float((validation["value"] - validation["reference"]).mean()),
                _claimed(tables, int(number), metric),
            )
        )
    return confirmed


def _paired(ours: pd.DataFrame, references: pd.DataFrame, split: str) -> pd.DataFrame:
    """Columns ``value`` and ``reference``, one row a seed that both have."""
    values = [rows[rows["split"] == split].set_index("seed")["value"] for rows in (ours, references)]
    return pd.DataFrame(dict(zip(("value", "reference"), values, strict=True))).dropna()


def _claimed(tables: SweepTables, number: int, metric: str) -> float:
    columns = [objective.column for objective in tables.objectives if objective.metric == metric]
    reference = tables.reference
    if not columns or reference is None:
        return float("nan")
    own = tables.trials.loc[tables.trials["trial"] == number, columns[0]]
    return float(own.iloc[0] - reference[columns[0]])


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
        low, high = one.difference.low, one.difference.high
        claim = "" if pd.isna(one.claimed) else f" The sweep itself had said {one.claimed:+.3f}"
        claim += "" if pd.isna(one.claimed) else f": it was {_how_far(one.optimism(objective))}."
        sentences.append(
            f"Trial {one.trial} ({one.point}): {one.difference.estimate:+.3f} [{low:+.3f}, {high:+.3f}] against the "
            f"reference on {one.num_seeds} fresh seeds and test prompts: {one.verdict(objective)}.{claim}"
        )
    better = [one.trial for one in confirmed if one.verdict(objective) == "better"]
    if better:
        which = ", ".join(map(str, better))
        sentences.append(f"Better than the reference beyond the noise of seeds: trial {which}.")
    else:
        sentences.append("None of the best trials is better than the reference beyond the noise of seeds.")
    return sentences


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
