"""How good the gradients of strategies, difficulties and advantages are, with intervals over blocks of rounds."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.gradients.estimates import (
    alignment,
    combined,
    cross_product,
    signal_to_noise,
    squared_norm,
    weighted_mean,
)
from analysis.gradients.tables import EVERYTHING, Measurement
from analysis.statistics import Interval, Resampled, Values, resampling_weights

WEIGHTS = (1.0, 2.0, 5.0, 10.0, 15.0)
"""Weights of fusion and of its control; the gradient is linear in them, so any costs nothing but a row."""
METRICS = {
    "cosine": "Cosine of one update with the reference",
    "alignment": "Cosine of the expected update with the reference",
    "snr": "Signal to noise of one update",
}
EFFECT_COLUMNS = ["checkpoint", "iteration", "set", "advantage", "weight", "updates", "metric", "value", "low", "high"]
CHECKPOINT_COLUMNS = ["checkpoint", "iteration", "prompts", "blocks", "signal", "low", "high", "minutes"]
COMPARISON_COLUMNS = ["checkpoint", "iteration", "metric", "question", "treatment", "control"]
COMPARISON_COLUMNS += ["difference", "low", "high"]


class Advantage(NamedTuple):
    """How an update weighs its samples."""

    name: str
    """unbiased, local, capability, fused or rescaled."""
    weight: float = 0.0

    def coefficients(self, kinds: Sequence[str]) -> Values:
        """``[kinds]``: as a sum of kinds that were measured."""
        added = {"fused": "global", "rescaled": "rescaling"}.get(self.name)
        parts = {"local": 1.0, added: self.weight} if added else {self.name: 1.0}
        return np.array([parts.get(kind, 0.0) for kind in kinds])

    @property
    def label(self) -> str:
        """As in "local" or "fused 5", of weight 5."""
        return f"{self.name} {self.weight:g}" if self.name in ("fused", "rescaled") else self.name


UNBIASED, LOCAL, CAPABILITY = Advantage("unbiased"), Advantage("local"), Advantage("capability")
FUSED = tuple(Advantage("fused", weight) for weight in WEIGHTS)
RESCALED = tuple(Advantage("rescaled", weight) for weight in WEIGHTS)
ADVANTAGES = (UNBIASED, CAPABILITY, LOCAL, *FUSED, *RESCALED)


class Measured:
    """Statistics of sets of updates at one checkpoint, all of the same resamples of blocks."""

    def __init__(self, tables: Measurement, checkpoint: str) -> None:
        self.tables, self.checkpoint = tables, checkpoint
        self.iteration = tables.iterations[checkpoint]
        self._counts = tables.num_blocks, len(tables.reference_counts)
        self._weights, self._reference_weights = resampling_weights(self._counts)
        self._reference_signal = squared_norm(
            tables.reference(checkpoint), tables.reference_counts, self._reference_weights
        )
        self._units = cache(lambda name: tables.units(checkpoint, name))
        self._blocks = cache(lambda name: tables.blocks(checkpoint, name))
        self.metrics = cache(self._measure)
        """``(set, advantage) -> {metric: statistic}``: each of ``METRICS`` of a set's updates with an advantage."""

    def num_updates(self, name: str) -> int:
        """How many updates a set has."""
        return len(self._units(name).rows)

    def reliability(self) -> Interval:
        """|E r|^2 / |r|^2 of the reference gradient: 1 without noise; cosines are smaller by its root."""
        return Resampled(self._reference_signal / self.tables.lengths[self.checkpoint] ** 2, self._counts).interval()

    def _measure(self, name: str, advantage: Advantage) -> dict[str, Resampled]:
        units, weights = self._units(name), self._weights
        products, with_reference = self._blocks(name)
        coefficients = advantage.coefficients(self.tables.kinds)
        signal = squared_norm(combined(products, coefficients), units.counts, weights)
        product = cross_product(
            np.einsum("k,kab->ab", coefficients, with_reference),
            units.counts,
            weights,
            self.tables.reference_counts,
            self._reference_weights,
        )
        squares = weighted_mean(units.by_block(units.squares(coefficients)), units.counts, weights)
        made = {
            "cosine": weighted_mean(units.by_block(units.cosines(coefficients)), units.counts, weights),
            "alignment": alignment(product, signal, self._reference_signal),
            "snr": signal_to_noise(signal, squares),
        }
        return {metric: Resampled(values, self._counts) for metric, values in made.items()}


def checkpoint_frame(measured: Sequence[Measured]) -> pd.DataFrame:
    """One row per checkpoint: columns ``CHECKPOINT_COLUMNS``; signal is ``Measured.reliability``, with its bounds."""
    rows = []
    for at, seconds in zip(measured, measured[0].tables.about["seconds"], strict=True):
        what = (at.checkpoint, at.iteration, at.num_updates(EVERYTHING), at.tables.num_blocks)
        rows.append((*what, *at.reliability(), sum(seconds.values()) / 60))
    return pd.DataFrame(rows, columns=CHECKPOINT_COLUMNS)


def effect_frame(measured: Sequence[Measured]) -> pd.DataFrame:
    """Every metric of every strategy and difficulty with every advantage: columns ``EFFECT_COLUMNS``.

    Sets of fewer than two updates are left out.
    """
    rows: list[tuple[Any, ...]] = []
    for at in measured:
        for name in (*at.tables.strategies, *at.tables.bins):
            updates = at.num_updates(name)
            for advantage in ADVANTAGES if updates > 1 else ():
                what = (at.checkpoint, at.iteration, name, advantage.name, advantage.weight, updates)
                rows += [(*what, metric, *found.interval()) for metric, found in at.metrics(name, advantage).items()]
    return pd.DataFrame(rows, columns=EFFECT_COLUMNS)


class Contrast(NamedTuple):
    """A comparison of two cells, each a strategy and an advantage."""

    question: str
    treatment: tuple[str, Advantage]
    control: tuple[str, Advantage]


def contrasts(strategies: Sequence[str]) -> Iterator[Contrast]:
    """The comparisons that the paper's claims call for.

    - selection: each strategy against random prompts, with local advantages.
    - fusion: fused against local advantages, by weight, for each strategy.
    - kink: fused advantages against the control that only rescales.
    - adagrpo: curriculum with fusion of weight 1 against random with local advantages.
    """
    for strategy in strategies:
        if strategy != "random":
            yield Contrast("selection", (strategy, LOCAL), ("random", LOCAL))
    for strategy in strategies:
        for fused, rescaled in zip(FUSED, RESCALED, strict=True):
            yield Contrast("fusion", (strategy, fused), (strategy, LOCAL))
            yield Contrast("kink", (strategy, fused), (strategy, rescaled))
    yield Contrast("adagrpo", ("curriculum", FUSED[0]), ("random", LOCAL))


def comparison_frame(measured: Sequence[Measured]) -> pd.DataFrame:
    """Paired differences of every metric for each of ``contrasts``: columns ``COMPARISON_COLUMNS``."""
    rows: list[tuple[Any, ...]] = []
    for at in measured:
        for question, treatment, control in contrasts(at.tables.strategies):
            ours, theirs = at.metrics(*treatment), at.metrics(*control)
            names = [f"{strategy}, {advantage.label}" for strategy, advantage in (treatment, control)]
            for metric in METRICS:
                difference = ours[metric].minus(theirs[metric]).interval()
                rows.append((at.checkpoint, at.iteration, metric, question, *names, *difference))
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)
