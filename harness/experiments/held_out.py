"""What one real update ahead gains in held-out reward, and what choosing it could gain: from ``measure_progress``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from analysis.formats import Entry, entry_text
from analysis.statistics import Interval, Values, mean_interval
from harness.foundation.files import read_text, write_atomically

_ROUNDS, _RESAMPLES = 2000, 200


def true_spread(gains: Values) -> float:
    """Standard deviation of what updates really gain, over prompts and noises: noise has no share in it.

    The root of the halves' covariance; 0 where that is negative.

    Args:
        gains: ``[P, N, 2]``, by either half.
    """
    first, second = gains.reshape(-1, 2).T
    return float(np.sqrt(max(np.cov(first, second)[0, 1], 0)))


def gain_of_the_best(gains: Values, count: int) -> Interval:
    """What the best of ``count`` updates, each of another prompt, gains over a random one; interval over prompts.

    It is told by one half of the held-out pictures and judged by the other, both ways: without a winner's curse, and
    with the little that a half tells.
    """
    random = np.random.default_rng(0)

    def mean_gain(of: Values, rounds: int) -> float:
        prompts = random.permuted(np.tile(np.arange(len(of)), (rounds, 1)), axis=1)[:, :count]
        drawn = of[prompts, random.integers(of.shape[1], size=prompts.shape)]
        both = [drawn[np.arange(rounds), drawn[:, :, told].argmax(1), 1 - told] for told in range(2)]
        return float(np.mean(both) - drawn.mean())

    estimate = mean_gain(gains, _ROUNDS)
    resampled = [mean_gain(gains[random.integers(len(gains), size=len(gains))], 200) for _ in range(_RESAMPLES)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(estimate, float(low), float(high))


def write_progress(folder: Path) -> str:
    """Write progress.md of all tables of the folder; returns it."""
    tables = [json.loads(read_text(path)) for path in sorted(folder.glob("*.json"))]
    text = "\n".join(["# One optimiser step ahead, in held-out reward", "", *map(_sentence, tables), ""])
    write_atomically(folder / "progress.md", text)
    return text


def _sentence(table: Mapping[str, Any]) -> str:
    gains, pictures = np.array(table["gains"], dtype=float), table["pictures"]
    spread, noise = true_spread(gains), table["noise"]
    needed = f"{pictures * (noise / spread) ** 2:,.0f}" if spread else f"far more than {2 * pictures:,}"
    prompts, noises = gains.shape[:2]
    best = gain_of_the_best(gains, table["candidates"])
    return (
        f"- {table['experiment']}, iteration {table['iteration']}: {prompts} prompts x {noises} noises, two halves of "
        f"{pictures} held-out pictures. A step gains {_text(mean_interval(gains.mean(axis=(1, 2))))} in reward (from "
        f"{table['before']:.3f}). Steps differ by {spread:.4f} (standard deviation, noise taken out), where pictures "
        f"of a half leave an error of {noise:.4f}: {needed} would make both equal. The best of {table['candidates']} "
        f"gains {_text(best)} more than a random one, told by one half and judged by the other."
    )


def _text(of: Interval) -> str:
    return entry_text(Entry(of.estimate, interval=of, digits=4, signed=True))
