"""Quality of corrections of advantages as gradients, from the tables of ``adagrpo oracle`` alone.

With an update's gradient g, the reference direction r, and E over prompts and noise:

- ``cosine``: <E g, r> / (|r| sqrt(E |g|^2)): quality of one update, bias and noise together.
- ``alignment``: <E g, E r> / (|E g| |E r|), free of noise: 1 if the direction is unbiased.
- ``noise``: tr Cov g / |E g|^2: the number of updates whose signal equals their noise.

All are independent of scale: a correction and its control of the same length differ in direction, within a group.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.estimates import alignment, cross_product, signal_to_noise, squared_norm, weighted_mean
from analysis.formats import Entry, entry_text, markdown_table, number
from analysis.statistics import Interval, Resampled, Values, resampling_weights
from harness.experiments.gradients.oracle import CONTROLLED, KINDS, SAME_LENGTH

CANDIDATES = ("uncentred", "shrinkage", "ema_std", "gated")
"""Two of these are selected for the study, beside the paper's own correction, by the rule in docs/fusion.md."""
TIE = 0.01
Table = Mapping[str, Any]


class Kind(NamedTuple):
    """Statistics of one kind of advantages at one checkpoint, from the same resamples of blocks as all other kinds."""

    cosine: Resampled
    alignment: Resampled
    noise: Resampled


def kinds_of(table: Table) -> dict[str, Kind]:
    """Statistics of every kind of a table, by name; blocks of pool and reference are resampled independently."""
    blocks, reference = table["blocks"], table["blocks"]["reference"]
    counts, of_reference = (np.array(one["counts"], dtype=float) for one in (blocks, reference))
    strata = [len(counts), len(of_reference)]
    weights, reference_weights = resampling_weights(strata)
    reference_signal = squared_norm(_symmetric(reference["products"]), of_reference, reference_weights)
    found = {}
    for name, kind in blocks["kinds"].items():
        signal = squared_norm(_symmetric(kind["products"]), counts, weights)
        product = cross_product(np.array(kind["with_reference"]), counts, weights, of_reference, reference_weights)
        squares = weighted_mean(np.array(kind["squares"]), counts, weights)
        ratio = signal_to_noise(signal, squares)
        values = (
            product / np.sqrt(squares) / reference["length"],
            alignment(product, signal, reference_signal),
            1 / np.where(ratio > 0, ratio, np.nan),  # without a visible signal, no number of updates is enough
        )
        found[name] = Kind(*(Resampled(of, strata) for of in values))
    return found


def correction_frame(tables: Sequence[Table]) -> pd.DataFrame:
    """Table with columns experiment, iteration, kind, metric, value, low, high.

    The metrics ``to_local`` and ``to_control`` are ratios of cosines: to that of local advantages, and to that of the
    control of the same length.
    """
    rows = []
    for table in tables:
        kinds, where = kinds_of(table), (table["experiment"], table["iteration"])
        for name in KINDS:
            found = kinds[name]._asdict() | {"to_local": _ratio(kinds[name], kinds["local"])}
            if name in CONTROLLED:
                found["to_control"] = _ratio(kinds[name], kinds[name + SAME_LENGTH])
            rows += [(*where, name, metric, *one.interval()) for metric, one in found.items()]
    return pd.DataFrame(rows, columns=["experiment", "iteration", "kind", "metric", "value", "low", "high"])


class Merit(NamedTuple):
    """Merit of a correction: sum of cosines over all tables, relative to that of local advantages or its control."""

    kind: str
    merit: Interval
    to_control: Interval | None
    """None if there is no such control, or it is the same as the correction."""
    alignment: float
    named: bool


def merits(tables: Sequence[Table]) -> list[Merit]:
    """Merits of all corrections, best first; the two that the rule in docs/fusion.md selects are marked."""
    of_tables = [kinds_of(table) for table in tables]

    def cosines(name: str) -> Resampled:
        first = of_tables[0][name].cosine
        return first._replace(values=np.sum([kinds[name].cosine.values for kinds in of_tables], axis=0))

    def ratio(name: str, other: str) -> Interval:
        ours, theirs = cosines(name), cosines(other)
        return ours._replace(values=ours.values / theirs.values).interval()

    found = [
        Merit(
            name,
            ratio(name, "local"),
            ratio(name, name + SAME_LENGTH) if name in CONTROLLED else None,
            float(np.nansum([kinds[name].alignment.values[0] for kinds in of_tables])),
            False,
        )
        for name in KINDS
        if not name.endswith(SAME_LENGTH)
    ]
    found.sort(key=lambda one: -one.merit.estimate)
    able = [one for one in found if one.kind in CANDIDATES and one.merit.high >= 1]
    chosen: list[str] = []
    while able and len(chosen) < 2:
        tied = [one for one in able if one.merit.estimate > able[0].merit.estimate - TIE]
        best = max(tied, key=lambda one: one.alignment)
        able.remove(best)
        chosen.append(best.kind)
    return [one._replace(named=one.kind in chosen) for one in found]


def correction_lines(tables: Sequence[Table], frame: pd.DataFrame) -> list[str]:
    """Markdown lines: a table per metric with a column per checkpoint, then the merits and the two selected ones."""
    titles = {
        "to_local": "Cosine of one update with the reference, relative to local advantages' (bias and variance)",
        "to_control": "The same, relative to the control of the same length (direction alone)",
        "alignment": "Bias: cosine of the expected update with the expected reward's gradient (1: none)",
        "noise": "Variance: updates until signal equals noise",
    }
    digits = {"noise": 0}
    lines = []
    for metric, title in titles.items():
        here = frame[frame["metric"] == metric]
        rows = []
        for kind, of_kind in here.groupby("kind", sort=False):
            bounds = of_kind[["value", "low", "high"]].itertuples(index=False)  # in the order of tables
            rows.append([str(kind), *(_interval(Interval(*of), digits.get(metric, 2)) for of in bounds)])
        head = ["advantages", *(f"{table['experiment']}, {table['iteration']}" for table in tables)]
        lines += [f"### {title}", "", markdown_table(head, rows)]
    lines += ["### Over all", "", _merit_table(merits(tables))]
    return lines


def _merit_table(found: Sequence[Merit]) -> str:
    rows = [
        [
            one.kind,
            _interval(one.merit),
            _interval(one.to_control) if one.to_control else "–",
            number(one.alignment, 2),
            "yes" if one.named else "",
        ]
        for one in found
    ]
    head = ["advantages", "merit", "to its control", "sum of alignments", "to the study"]
    return markdown_table(head, rows)


def _ratio(ours: Kind, theirs: Kind) -> Resampled:
    return ours.cosine._replace(values=ours.cosine.values / theirs.cosine.values)


def _symmetric(upper: Sequence[Sequence[float]]) -> Values:
    values = np.array(upper, dtype=float)
    return values + values.T


def _interval(of: Interval, digits: int = 3) -> str:
    return entry_text(Entry(of.estimate, interval=of, digits=digits))
