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

PROMPTS, FUSION = "prompts", "fusion"
"""Topics: which prompts teach, and what fusion does."""
_SHOWN = (UNBIASED, LOCAL, FUSED[0], FUSED[2], RESCALED[2], FUSED[4], RESCALED[4], CAPABILITY)
_DIGITS = {"cosine": 3, "alignment": 3, "snr": 4}


class Section(NamedTuple):
    """One question, and what was found."""

    topic: str
    """``PROMPTS`` or ``FUSION``."""
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
    labels, effects = measurement.labels, frames["effects"]
    strategies = {name: name for name in measurement.strategies}

    def compared(question: str) -> tuple[list[str], WideTable]:
        rows = frames["comparisons"][frames["comparisons"]["question"] == question]
        return list(_verdicts(rows, labels)), _differences(rows, labels)

    (selection, by_selection), (both, by_both) = compared("selection"), compared("adagrpo")
    (fusion, by_fusion), (kink, by_kink) = compared("fusion"), compared("kink")
    signs = frames["signs"][frames["signs"]["set"] == EVERYTHING]
    of_strategies = _tables(effects, labels, strategies, "Strategy")
    of_bins = _tables(effects, labels, measurement.bins, "Reward")
    difficulty = list(_extremes(effects, labels, measurement.bins))
    return [
        Section(
            PROMPTS,
            "Which prompts teach: each strategy against random prompts, local advantages",
            selection,
            _of_metrics("selection"),
            [by_selection, *of_strategies],
        ),
        Section(PROMPTS, "Which difficulty teaches", difficulty, _of_metrics("difficulty"), list(of_bins)),
        Section(
            PROMPTS,
            "Both parts: curriculum prompts with fused advantages against random prompts with local ones",
            both,
            [],
            [by_both],
        ),
        Section(
            FUSION,
            "Is fusion less biased: fused against local advantages",
            fusion,
            _of_metrics("fusion"),
            [by_fusion],
        ),
        Section(
            FUSION,
            "More than a rescaling: fused against rescaled advantages of the same weight",
            kink,
            [],
            [by_kink],
        ),
        Section(
            FUSION, "Wrong signs", list(_corrected(signs, labels)), ["mechanism-signs"], [_sign_table(signs, labels)]
        ),
    ]


def summary(measurement: Measurement, frames: Mapping[str, pd.DataFrame]) -> str:
    """The text of summary.md.

    Args:
        measurement: whose frames.
        frames: those of ``sections``, and checkpoints.
    """
    opening, checkpoints = introduction(measurement, frames["checkpoints"])
    lines = ["# Gradients at fixed checkpoints", "", opening, "", *_list(checkpoints)]
    for section in sections(measurement, frames):
        lines += [f"## {section.title}", "", *_list(section.sentences)]
        lines += [f"![{name}](figures/{name}.svg)" for name in section.figures]
        lines += ["", *map(markdown, section.tables)]
    return "\n".join(lines)


def introduction(measurement: Measurement, checkpoints: pd.DataFrame) -> tuple[str, list[str]]:
    """What was measured, and a sentence a checkpoint.

    Args:
        measurement: that is described.
        checkpoints: of ``analysis.gradients.effects.checkpoint_frame``.
    """
    about, labels = measurement.about, measurement.labels
    updates = about["rounds"]
    groups = about["groups_per_unit"] * updates
    size = about["config"]["rollout"]["group_size"]
    samples = about["reference_prompts"] * about["groups_per_unit"] * size
    opening = (
        f"{updates} updates ({groups} groups of {size}) for each strategy at each checkpoint; the reference gradient "
        f"is made of {samples} other samples. {about['parameters']:,} parameters. Intervals of 95 % resample "
        f"{checkpoints['blocks'].max()} blocks of rounds, and for alignment blocks of the reference. docs/mechanism.md "
        f"defines all that is measured. These comparisons are exploratory: no level is adjusted for how many there are."
    )
    sentences = []
    for at in checkpoints.to_dict("records"):
        signal = _entry(Interval(at["signal"], at["low"], at["high"]), "alignment")
        sentences.append(
            f"{labels[at['checkpoint']]} (`{at['checkpoint']}`): {at['prompts']} different prompts; the reference's "
            f"share of signal is {entry_text(signal)}; {at['minutes']:.0f} minutes of processor time."
        )
    return opening, sentences


def _list(sentences: Sequence[str]) -> list[str]:
    return [*(f"- {sentence}" for sentence in sentences), ""] if sentences else []


def _of_metrics(name: str) -> list[str]:
    return [f"mechanism-{name}-{metric}" for metric in METRICS]


def _verdicts(rows: pd.DataFrame, labels: dict[str, str]) -> Iterator[str]:
    """What the differences say, one line a checkpoint and metric: which intervals are above, below and around 0."""
    for (checkpoint, metric), of_metric in rows.groupby(["checkpoint", "metric"], sort=False):
        above, below = of_metric["low"] > 0, of_metric["high"] < 0
        found = {"Better": above, "Worse": below}
        parts = [f"{word}: {_joined(of_metric.loc[mask, 'treatment'])}" for word, mask in found.items() if mask.any()]
        if rest := int((~above & ~below).sum()):
            parts.append(f"No difference seen: {rest} of {len(of_metric)}")
        yield f"{labels[str(checkpoint)]}, {METRICS[str(metric)].lower()}. {'. '.join(parts)}."


def _joined(treatments: Iterable[str]) -> str:
    """Treatments in a row; the weights of a strategy's fused advantages together, such as "medium, fused 1, 2"."""
    together = groupby(treatments, key=lambda name: name.rsplit(" ", 1)[0])
    return "; ".join(f"{start} {', '.join(name.rsplit(' ', 1)[1] for name in names)}" for start, names in together)


def _extremes(effects: pd.DataFrame, labels: dict[str, str], bins: dict[str, str]) -> Iterator[str]:
    """At which difficulty a metric of local advantages is highest and lowest, one line a checkpoint and metric."""
    rows = effects[(effects["advantage"] == LOCAL.name) & effects["set"].isin(list(bins))]
    # Few updates leave an alignment without a value.
    rows = rows.dropna(subset=["value", "low", "high"])
    for (checkpoint, metric), of_metric in rows.groupby(["checkpoint", "metric"], sort=False):
        in_order = of_metric.sort_values("value").to_dict("records")
        worst, best = in_order[0], in_order[-1]
        named = [
            f"{bins[at['set']]} ({entry_text(_entry(Interval(at['value'], at['low'], at['high']), str(metric)))})"
            for at in (best, worst)
        ]
        overlap = "overlap" if best["low"] <= worst["high"] else "do not overlap"
        yield (
            f"{labels[str(checkpoint)]}, {METRICS[str(metric)].lower()}. Highest: rewards {named[0]}; lowest: "
            f"{named[1]}. These intervals {overlap}."
        )


def _corrected(signs: pd.DataFrame, labels: dict[str, str]) -> Iterator[str]:
    """How many signs are wrong, and how many of them fusion corrects at its lightest and heaviest weight."""
    for checkpoint, label in labels.items():
        for sides in (TWO_SIDED, ONE_SIDED):
            rows = signs[(signs["checkpoint"] == checkpoint) & (signs["sides"] == sides)].sort_values("weight")
            light, heavy = rows.iloc[0], rows.iloc[-1]
            start = f"{label}, {sides} groups ({_percent(light['share_of_groups'])} of all)"
            if not light["wrong_share"] > 0:
                yield f"{start}: no wrong sign."
                continue
            corrected = " and ".join(f"{_percent(at['corrected'])} at weight {at['weight']:g}" for at in (light, heavy))
            wrong = _percent(light["wrong_share"])
            yield f"{start}: {wrong} of samples have a wrong sign. Fusion corrects of these {corrected}."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _differences(rows: pd.DataFrame, labels: dict[str, str]) -> WideTable:
    head = ["", *(f"{METRICS[metric]}, {label}" for label in labels.values() for metric in METRICS)]
    found = _intervals(rows, ["treatment", "control", "checkpoint", "metric"], "difference")
    body = []
    for treatment, control in dict.fromkeys(key[:2] for key in found):
        entries = [_entry(found[treatment, control, c, m], m, signed=True) for c in labels for m in METRICS]
        body.append((f"{treatment} against {control}", entries))
    return WideTable("Differences, with 95 % intervals", head, body)


def _tables(effects: pd.DataFrame, labels: dict[str, str], sets: dict[str, str], what: str) -> Iterator[WideTable]:
    """For each checkpoint and metric: a row a set, a column an advantage."""
    found = _intervals(effects, ["checkpoint", "metric", "set", "advantage", "weight"], "value")
    updates = dict(zip(zip(effects["checkpoint"], effects["set"], strict=True), effects["updates"], strict=True))
    for checkpoint, label in labels.items():
        for metric, name in METRICS.items():
            body = []
            for key, title in sets.items():
                if (checkpoint, key) in updates:
                    entries = [_entry(found[checkpoint, metric, key, *advantage], metric) for advantage in _SHOWN]
                    body.append((title, [Entry(int(updates[checkpoint, key]), digits=0), *entries]))
            head = [what, "Updates", *(advantage.label for advantage in _SHOWN)]
            yield WideTable(f"{name}, {label}", head, body)


def _intervals(rows: pd.DataFrame, keys: list[str], estimate: str) -> dict[tuple[Any, ...], Interval]:
    """A frame's estimates with their bounds, by its key columns."""
    numbers = rows[[estimate, "low", "high"]].to_numpy(dtype=float)
    named = zip(*(rows[key] for key in keys), strict=True)
    return {key: Interval(*interval) for key, interval in zip(named, numbers.tolist(), strict=True)}


def _entry(interval: Interval, metric: str, signed: bool = False) -> Entry:
    return Entry(interval.estimate, interval=interval, digits=_DIGITS[metric], signed=signed)


def _sign_table(signs: pd.DataFrame, labels: dict[str, str]) -> WideTable:
    weights = sorted(signs["weight"].unique())
    head = ["", "Groups", "Share of groups", "Wrong signs", *(f"corrected by weight {w:g}" for w in weights)]
    head.append("weight for half of them")
    body = []
    for checkpoint, label in labels.items():
        for sides in (TWO_SIDED, ONE_SIDED):
            rows = signs[(signs["checkpoint"] == checkpoint) & (signs["sides"] == sides)].set_index("weight")
            first = rows.iloc[0]
            entries = [
                Entry(float(first["groups"]), digits=0),
                Entry(float(first["share_of_groups"]), digits=0, percent=True),
                Entry(float(first["wrong_share"]), digits=0, percent=True),
            ]
            entries += [Entry(float(rows.loc[w, "corrected"]), digits=0, percent=True) for w in weights]
            entries.append(Entry(float(first["median_weight"]), digits=1))
            body.append((f"{label}, {sides}", entries))
    return WideTable("Samples whose local advantage has another sign than reward minus capability", head, body)
