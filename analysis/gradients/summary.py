"""A measurement in words: what was measured, what it says of the paper's claims, and the tables behind it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import pandas as pd

from analysis.formats import Entry, WideTable, entry_text, markdown
from analysis.gradients.effects import CAPABILITY, FUSED, LOCAL, METRICS, RESCALED, UNBIASED
from analysis.gradients.signs import ONE_SIDED, TWO_SIDED
from analysis.gradients.tables import EVERYTHING, Measurement
from analysis.statistics import Interval

_SHOWN = (UNBIASED, LOCAL, FUSED[0], FUSED[2], RESCALED[2], FUSED[4], RESCALED[4], CAPABILITY)
_DIGITS = {"snr": 4}


class Section(NamedTuple):
    """One question, and what was found."""

    title: str
    sentences: Sequence[str]
    """Each a line of a list."""
    figures: Sequence[str]
    """Their names."""
    tables: Sequence[WideTable]


def sections(measurement: Measurement, frames: Mapping[str, pd.DataFrame]) -> list[Section]:
    """What a measurement says, question by question; first of prompts.

    Args:
        measurement: whose frames.
        frames: effects, comparisons and signs, as ``analysis.gradients.report`` writes them.
    """
    labels, effects, comparisons = measurement.labels, frames["effects"], frames["comparisons"]
    signs = frames["signs"][frames["signs"]["set"] == EVERYTHING]

    def asked(question: str, title: str, figures: str = "", tables: Iterable[WideTable] = ()) -> Section:
        rows = comparisons[comparisons["question"] == question]
        found = [_differences(rows, labels), *tables]
        return Section(title, list(_verdicts(rows, labels)), _of_metrics(figures) if figures else [], found)

    strategies = {name: name for name in measurement.strategies}
    of_strategies = _tables(effects, labels, strategies, "Strategy")
    of_bins = list(_tables(effects, labels, measurement.bins, "Reward"))
    extremes = list(_extremes(effects, labels, measurement.bins))
    which = "Which prompts teach: each strategy against random prompts, local advantages"
    both = "Both parts: curriculum prompts with fused advantages against random prompts with local ones"
    kink = "More than a rescaling: fused against rescaled advantages of the same weight"
    corrected = list(_corrected(signs, labels))
    return [
        asked("selection", which, "selection", of_strategies),
        Section("Which difficulty teaches", extremes, _of_metrics("difficulty"), of_bins),
        asked("adagrpo", both),
        asked("fusion", "Is fusion less biased: fused against local advantages", "fusion"),
        asked("kink", kink),
        Section("Wrong signs", corrected, ["mechanism-signs"], [_sign_table(signs, labels)]),
    ]


def summary(measurement: Measurement, frames: Mapping[str, pd.DataFrame]) -> str:
    """The text of summary.md, from the frames of ``sections`` and that of checkpoints."""
    opening, checkpoints = introduction(measurement, frames["checkpoints"])
    lines = ["# Gradients at fixed checkpoints", "", opening, "", *_list(checkpoints)]
    for section in sections(measurement, frames):
        lines += [f"## {section.title}", "", *_list(section.sentences)]
        lines += [f"![{name}](figures/{name}.svg)" for name in section.figures]
        lines += ["", *map(markdown, section.tables)]
    return "\n".join(lines)


def introduction(measurement: Measurement, checkpoints: pd.DataFrame) -> tuple[str, list[str]]:
    """What was measured, and a sentence a checkpoint, of its row in ``checkpoint_frame``."""
    about, labels = measurement.about, measurement.labels
    updates, groups, size = about["rounds"], about["groups_per_unit"], about["config"]["rollout"]["group_size"]
    opening = (
        f"{updates} updates ({groups * updates} groups of {size}) for each strategy at each checkpoint; the reference "
        f"gradient is made of {about['reference_prompts'] * groups * size} other samples. {about['parameters']:,} "
        f"parameters. Intervals of 95 % resample {checkpoints['blocks'].max()} blocks of rounds, and for alignment "
        "blocks of the reference. docs/mechanism.md defines all that is measured. These comparisons are exploratory: "
        "no level is adjusted for how many there are."
    )
    signals = _entries(checkpoints.assign(metric="alignment"), ["checkpoint"], "signal")
    sentences = [
        f"{labels[at['checkpoint']]} (`{at['checkpoint']}`): {at['prompts']} different prompts; the reference's "
        f"share of signal is {entry_text(signals[at['checkpoint'],])}; {at['minutes']:.0f} minutes of processor time."
        for at in checkpoints.to_dict("records")
    ]
    return opening, sentences


def _list(sentences: Sequence[str]) -> list[str]:
    return [*(f"- {sentence}" for sentence in sentences), ""] if sentences else []


def _of_metrics(name: str) -> list[str]:
    return [f"mechanism-{name}-{metric}" for metric in METRICS]


def _by_metric(rows: pd.DataFrame, labels: Mapping[str, str]) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """How a line begins, the metric, and the rows, for each checkpoint and metric."""
    for (checkpoint, metric), of_metric in rows.groupby(["checkpoint", "metric"], sort=False):
        yield f"{labels[str(checkpoint)]}, {METRICS[str(metric)].lower()}.", str(metric), of_metric


def _verdicts(rows: pd.DataFrame, labels: Mapping[str, str]) -> Iterator[str]:
    """What the differences say, one line per checkpoint and metric: which intervals are above, below and around 0."""
    for start, _, of_metric in _by_metric(rows, labels):
        above, below = of_metric["low"] > 0, of_metric["high"] < 0
        found = {"Better": above, "Worse": below}
        parts = [f"{word}: {_joined(of_metric.loc[mask, 'treatment'])}" for word, mask in found.items() if mask.any()]
        if rest := int((~above & ~below).sum()):
            parts.append(f"No difference seen: {rest} of {len(of_metric)}")
        yield f"{start} {'. '.join(parts)}."


def _joined(treatments: Iterable[str]) -> str:
    """Treatments in a row; the weights of a strategy's fused advantages together, such as "medium, fused 1, 2"."""
    together = groupby(treatments, key=lambda name: name.rsplit(" ", 1)[0])
    return "; ".join(f"{start} {', '.join(name.rsplit(' ', 1)[1] for name in names)}" for start, names in together)


def _extremes(effects: pd.DataFrame, labels: Mapping[str, str], bins: Mapping[str, str]) -> Iterator[str]:
    """At which difficulty a metric of local advantages is highest and lowest, one line per checkpoint and metric."""
    rows = effects[(effects["advantage"] == LOCAL.name) & effects["set"].isin(list(bins))]
    # Few updates leave an alignment without a value.
    for start, _, of_metric in _by_metric(rows.dropna(subset=["value", "low", "high"]), labels):
        in_order, entries = of_metric.sort_values("value"), _entries(of_metric, ["set"], "value")
        lowest, highest = (f"{bins[name]} ({entry_text(entries[name,])})" for name in in_order["set"].iloc[[0, -1]])
        overlap = "overlap" if in_order["low"].iloc[-1] <= in_order["high"].iloc[0] else "do not overlap"
        yield f"{start} Highest: rewards {highest}; lowest: {lowest}. These intervals {overlap}."


def _by_sides(signs: pd.DataFrame, labels: Mapping[str, str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """A name and the rows, by weight, of each checkpoint and kind of groups."""
    for checkpoint, label in labels.items():
        for sides in (TWO_SIDED, ONE_SIDED):
            rows = signs[(signs["checkpoint"] == checkpoint) & (signs["sides"] == sides)]
            yield f"{label}, {sides}", rows.sort_values("weight")


def _corrected(signs: pd.DataFrame, labels: Mapping[str, str]) -> Iterator[str]:
    """How many signs are wrong, and how many of them fusion corrects at its lightest and heaviest weight."""
    for name, rows in _by_sides(signs, labels):
        light, heavy = rows.iloc[0], rows.iloc[-1]
        start = f"{name} groups ({_percent(light['share_of_groups'])} of all)"
        corrected = " and ".join(f"{_percent(at['corrected'])} at weight {at['weight']:g}" for at in (light, heavy))
        wrong = f"{_percent(light['wrong_share'])} of samples have a wrong sign. Fusion corrects of these {corrected}."
        yield f"{start}: {wrong if light['wrong_share'] > 0 else 'no wrong sign.'}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _differences(rows: pd.DataFrame, labels: Mapping[str, str]) -> WideTable:
    head = ["", *(f"{METRICS[metric]}, {label}" for label in labels.values() for metric in METRICS)]
    found = _entries(rows, ["treatment", "control", "checkpoint", "metric"], "difference", signed=True)
    body = [
        (f"{treatment} against {control}", [found[treatment, control, c, m] for c in labels for m in METRICS])
        for treatment, control in dict.fromkeys(key[:2] for key in found)
    ]
    return WideTable("Differences, with 95 % intervals", head, body)


def _tables(
    effects: pd.DataFrame, labels: Mapping[str, str], sets: Mapping[str, str], what: str
) -> Iterator[WideTable]:
    """For each checkpoint and metric: a row per set, a column per advantage."""
    found = _entries(effects, ["checkpoint", "metric", "set", "advantage", "weight"], "value")
    updates = effects.groupby(["checkpoint", "set"])["updates"].first()
    head = [what, "Updates", *(advantage.label for advantage in _SHOWN)]
    for checkpoint, label in labels.items():
        for metric, name in METRICS.items():
            body = [
                (title, [_count(updates[checkpoint, key]), *(found[checkpoint, metric, key, *a] for a in _SHOWN)])
                for key, title in sets.items()
                if (checkpoint, key) in updates
            ]
            yield WideTable(f"{name}, {label}", head, body)


def _entries(rows: pd.DataFrame, keys: list[str], estimate: str, signed: bool = False) -> dict[tuple[Any, ...], Entry]:
    """A frame's estimates with their bounds, by its key columns; the metric says how many digits they have."""
    found = {}
    for row in rows[[*dict.fromkeys([*keys, "metric"]), estimate, "low", "high"]].to_dict("records"):
        interval, digits = Interval(row[estimate], row["low"], row["high"]), _DIGITS.get(row["metric"], 3)
        found[tuple(row[key] for key in keys)] = Entry(interval[0], interval=interval, digits=digits, signed=signed)
    return found


def _count(value: float) -> Entry:
    return Entry(float(value), digits=0)


def _share(value: float) -> Entry:
    return Entry(float(value), digits=0, percent=True)


def _sign_table(signs: pd.DataFrame, labels: Mapping[str, str]) -> WideTable:
    weights = sorted(signs["weight"].unique())
    head = ["", "Groups", "Share of groups", "Wrong signs", *(f"corrected by weight {w:g}" for w in weights)]
    body = []
    for name, rows in _by_sides(signs, labels):
        first = rows.iloc[0]
        shares = [first["share_of_groups"], first["wrong_share"], *rows["corrected"]]
        median = Entry(float(first["median_weight"]), digits=1)
        body.append((name, [_count(first["groups"]), *map(_share, shares), median]))
    title = "Samples whose local advantage has another sign than reward minus capability"
    return WideTable(title, [*head, "weight for half of them"], body)
