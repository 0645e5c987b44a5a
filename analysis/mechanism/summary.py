"""A measurement in words: what was measured, what it says of the paper's claims, and the tables behind it."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from analysis.formats import Entry, WideTable, entry_text, markdown
from analysis.mechanism.effects import CAPABILITY, FUSED, LOCAL, METRICS, RESCALED, UNBIASED, Measured
from analysis.mechanism.signs import ONE_SIDED, TWO_SIDED
from analysis.mechanism.tables import EVERYTHING, MechanismTables
from analysis.statistics import Interval

_QUESTIONS = {
    "selection": "Which prompts teach: each strategy against random prompts, local advantages",
    "fusion": "Is fusion less biased: fused against local advantages",
    "kink": "More than a rescaling: fused against rescaled advantages of the same weight",
    "adagrpo": "Both parts: curriculum prompts with fused advantages against random prompts with local ones",
}
_SHOWN = (UNBIASED, LOCAL, FUSED[0], FUSED[2], RESCALED[2], FUSED[4], RESCALED[4], CAPABILITY)
_DIGITS = {"cosine": 3, "alignment": 3, "snr": 4}


def checkpoint_labels(tables: MechanismTables) -> dict[str, str]:
    """How figures and tables call the checkpoints, in order; runs are named where iterations do not tell them apart."""
    iterations = list(tables.iterations.values())
    named = {}
    for label, iteration in tables.iterations.items():
        run = f" ({label.partition('@')[0]})" if iterations.count(iteration) > 1 else ""
        named[label] = "untrained" if label == "base" else f"{iteration} iterations{run}"
    return named


def summary(measured: Sequence[Measured], effects: pd.DataFrame, comparisons: pd.DataFrame, signs: pd.DataFrame) -> str:
    """The text of summary.md."""
    tables = measured[0].tables
    labels = checkpoint_labels(tables)
    lines = ["# Gradients at fixed checkpoints", "", *_introduction(measured, labels), ""]
    for question, title in _QUESTIONS.items():
        rows = comparisons[comparisons["question"] == question]
        if len(rows):
            lines += [f"## {title}", "", *_verdicts(rows, labels), "", markdown(_differences(rows, labels)), ""]
    lines += ["## By strategy", "", *_pictures("selection"), ""]
    lines += _tables(effects, labels, {name: name for name in tables.strategies}, "Strategy")
    lines += ["## By difficulty", "", "Bins of the reward of a candidate's deterministic sample.", ""]
    lines += [*_pictures("difficulty"), ""]
    lines += _tables(effects, labels, tables.bins, "Reward")
    lines += ["## By weight of fusion", "", *_pictures("fusion"), ""]
    lines += [
        "## Wrong signs",
        "",
        "![Wrong signs corrected](figures/mechanism-signs.svg)",
        "",
        markdown(_sign_table(signs[signs["set"] == EVERYTHING], labels)),
    ]
    return "\n".join(lines)


def _pictures(name: str) -> list[str]:
    return [f"![{label}](figures/mechanism-{name}-{metric}.svg)" for metric, label in METRICS.items()]


def _introduction(measured: Sequence[Measured], labels: dict[str, str]) -> Iterator[str]:
    tables = measured[0].tables
    about = tables.about
    updates = about["rounds"]
    groups = about["groups_per_unit"] * updates
    size = about["config"]["rollout"]["group_size"]
    samples = about["reference_prompts"] * about["groups_per_unit"] * size
    yield (
        f"{updates} updates ({groups} groups of {size}) for each strategy at each checkpoint; the reference gradient "
        f"is made of {samples} other samples. {about['parameters']:,} parameters. Intervals of 95 % resample "
        f"{tables.num_blocks} blocks of rounds, and for alignment blocks of the reference. docs/mechanism.md defines "
        f"all that is measured. These comparisons are exploratory: no level is adjusted for how many there are."
    )
    yield ""
    for at, seconds in zip(measured, about["seconds"], strict=True):
        reliability, minutes = at.reliability(), sum(seconds.values()) / 60
        prompts = len(tables.units(at.checkpoint, EVERYTHING).rows)
        yield (
            f"- {labels[at.checkpoint]} (`{at.checkpoint}`): {prompts} different prompts; the reference's share "
            f"of signal is {entry_text(_entry(reliability, 'alignment'))}; {minutes:.0f} minutes of processor time."
        )


def _verdicts(rows: pd.DataFrame, labels: dict[str, str]) -> Iterator[str]:
    """What the differences say, one line a checkpoint and metric: which intervals are above, below and around 0."""
    for (checkpoint, metric), of_metric in rows.groupby(["checkpoint", "metric"], sort=False):
        above, below = of_metric["low"] > 0, of_metric["high"] < 0
        found = {"Better": above, "Worse": below}
        parts = [f"{word}: {'; '.join(of_metric.loc[mask, 'treatment'])}" for word, mask in found.items() if mask.any()]
        if rest := int((~above & ~below).sum()):
            parts.append(f"No difference seen: {rest} of {len(of_metric)}")
        yield f"- {labels[str(checkpoint)]}, {METRICS[str(metric)].lower()}. {'. '.join(parts)}."


def _differences(rows: pd.DataFrame, labels: dict[str, str]) -> WideTable:
    head = ["", *(f"{METRICS[metric]}, {label}" for label in labels.values() for metric in METRICS)]
    found = _intervals(rows, ["treatment", "control", "checkpoint", "metric"], "difference")
    body = []
    for treatment, control in dict.fromkeys(key[:2] for key in found):
        entries = [_entry(found[treatment, control, c, m], m, signed=True) for c in labels for m in METRICS]
        body.append((f"{treatment} against {control}", entries))
    return WideTable("Differences", head, body)


def _tables(effects: pd.DataFrame, labels: dict[str, str], sets: dict[str, str], what: str) -> Iterator[str]:
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
            yield markdown(WideTable(f"{name}, {label}", head, body))


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
