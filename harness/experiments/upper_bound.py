"""What choosing prompts could gain at most, one update ahead: from the table of ``adagrpo oracle`` alone.

An update's *progress* is the inner product of its gradient with the reference direction, which is proportional to what
a small step raises the expected reward by; its *quality* is expected progress by root mean squared length, which no
rescaling changes. Both are relative to random prompts with local advantages. First order, of the plain gradient and not
of Adam's step, and as noisy as the reference.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.special import ndtr

from analysis.figures.drawing import GREY, INK, Panel, draw_panel, series_colour
from analysis.formats import Entry, entry_text, markdown_table, number, write_frame
from analysis.statistics import Interval, Values, resampling_weights
from harness.adagrpo import CapabilityTracker
from harness.experiments.choices import COMPARED, Compared
from harness.foundation.files import write_atomically
from harness.prompts.lists import generator_for

ROUNDS = 20_000
ORACLES = ("oracle", "oracle, same reference")
"""Both take the prompt whose mean progress over the *other* noises is largest. The first is told by one half of the
reference and judged by the other, both ways: what can be had with so much knowledge, without any winner's curse. The
second is told and judged by all of it: flattered by the noise of the reference, which favours the same prompts twice.
"""
ALL_KNOWN = "oracle, all known"
"""Takes the prompt whose expected progress is the largest of B: an estimate by a normal model, see ``_all_known``."""
_COLOURS = {"rule": series_colour(2), "advantage": series_colour(1)}
Numbers = NDArray[np.int64]
Chooser = Callable[[Numbers, Numbers], tuple[Numbers, Numbers]]
"""From candidates' prompts ``[T, B]`` and noises ``[T, B, 2]`` to the candidates ``[T]`` that either half of the
reference is to judge."""


def upper_bound(table: Mapping[str, Any], rounds: int = ROUNDS) -> pd.DataFrame:
    """Progress and quality of every rule that needs no history, of the oracles and of every kind of advantage.

    Args:
        table: of ``harness.experiments.gradients.oracle.measure``, of more than B prompts.
        rounds: draws of candidates.

    Returns:
        Columns ``what`` (rule or advantage), ``name``, ``forwards`` (sample forwards more than at random per trained
        prompt, missing where no number of samples does it), and value, low and high of ``progress`` and ``quality``.
    """
    halves = {kind: np.array(values, dtype=float) for kind, values in table["projections"].items()}
    squares = {kind: np.array(values, dtype=float) for kind, values in table["squares"].items()}
    # Progress by either half, and squared length: [P, N, 3].
    updates = {kind: np.concatenate([halves[kind], squares[kind][:, :, None]], axis=2) for kind in squares}
    local, rewards = updates["local"], np.array(table["rewards"], dtype=float)
    candidates, steps = int(table["candidates"]), int(table["num_steps"])
    at_random = {kind: _resampled(of.mean(1)) for kind, of in updates.items()}
    rows: list[dict[str, Any]] = []

    def add(what: str, name: str, forwards: float, found: Values) -> None:
        progress, length = (found / at_random["local"]).T
        row: dict[str, Any] = {"what": what, "name": name, "forwards": forwards}
        for column, values in (("progress", progress), ("quality", progress / np.sqrt(length))):
            low, high = np.quantile(values[1:], [0.025, 0.975])
            row |= {column: values[0], f"{column}_low": low, f"{column}_high": high}
        rows.append(row)

    for compared in COMPARED:
        chosen = at_random["local"]
        if compared.rule != "random":
            chosen = _chosen(_by_rule(compared, rewards), local, compared.count(candidates), rounds)
        add("rule", compared.name, compared.forwards(candidates, steps), chosen)
    for name in ORACLES:
        add("rule", name, np.nan, _chosen(_by_oracle(local, name != "oracle"), local, candidates, rounds))
    add("rule", ALL_KNOWN, np.nan, _all_known(local, candidates))
    for kind, found in at_random.items():
        add("advantage", kind, 0 if kind in ("local", "unbiased") else (candidates - 1) * steps, found)
    return pd.DataFrame(rows)


def write_upper_bound(folder: Path) -> str:
    """Write oracle.csv, oracle.md and quality.svg beside oracle.json; the lines of oracle.md."""
    table = json.loads((folder / "oracle.json").read_text(encoding="utf-8"))
    frame, reference = upper_bound(table), table["reference"]
    write_frame(frame, folder / "oracle.csv")
    cells = [
        [
            _called(row),
            _cost(row),
            *(_text(row, column) for column in ("progress", "quality")),
        ]
        for _, row in frame.iterrows()
    ]
    head = ["at random but for", "extra forwards", "progress", "quality"]
    num_prompts, num_noises = np.shape(table["rewards"])
    lines = (
        f"{num_prompts} training prompts with {num_noises} noises each, checkpoint {table['checkpoint']}, "
        f"B {table['candidates']}; the halves of the reference ({reference['prompts']} prompts) have a cosine of "
        f"{number(reference['cosine_of_halves'], 2)}. Relative to random prompts with local advantages; 95 % intervals "
        f"are over the pool's prompts, given the reference.\n\n{markdown_table(head, cells).strip()}\n"
    )
    write_atomically(folder / "oracle.md", lines)
    note = (
        "Expected progress by root mean squared length, with 95 % intervals over prompts; in brackets: extra forwards. "
        "Orange: rules; blue: advantages at random; on top: the bounds"
    )
    panel = Panel("quality", "Quality of an update", partial(_draw, frame), height=5.4, note=note)
    draw_panel(panel).save(folder)
    return lines


def _chosen(choose: Chooser, updates: Values, count: int, rounds: int) -> Values:
    """As ``_resampled``, of what is chosen of ``count`` prompts.

    A prompt's share in it is (P - 1) times what is lost without the rounds that drew it (the jackknife's). Gains are
    over the mean of a round's own candidates, which have less noise and the same expectation.
    """
    random, (num_prompts, noises) = np.random.default_rng(1), updates.shape[:2]
    prompts = random.permuted(np.tile(np.arange(num_prompts), (rounds, 1)), axis=1)[:, :count]
    first = random.integers(noises, size=prompts.shape)
    second = (first + random.integers(1, noises, size=prompts.shape)) % noises
    taken = choose(prompts, np.stack([first, second], axis=2))
    candidates = updates[prompts, first]
    by_half = [candidates[np.arange(rounds), of, half] for half, of in enumerate(taken)]
    lengths = [candidates[np.arange(rounds), of, 2] for of in taken]
    gains = np.stack([*by_half, np.mean(lengths, axis=0)], axis=1) - candidates.mean(1)
    drawn = np.zeros((rounds, num_prompts))
    drawn[np.arange(rounds)[:, None], prompts] = 1
    without = (1 - drawn).T @ gains / (rounds - drawn.sum(0))[:, None]
    gain = gains.mean(0)
    return _resampled(updates.mean(1) + gain + (num_prompts - 1) * (gain - without), gain + updates.mean((0, 1)))


def _all_known(updates: Values, count: int) -> Values:
    """As ``_resampled``, of the best of ``count`` prompts, each with a normal expected progress: the true bound.

    mean + std E[max of B standard normals]. The variance of prompts' expected progress is that of products of different
    noises by different halves of the reference, less those of different prompts: no noise has a share in it. Squared
    length is taken to be that of random prompts.
    """
    [weights] = resampling_weights([len(updates)])
    first, second = np.moveaxis(updates[:, :, :2], 2, 0)
    noises, means = first.shape[1], (first.mean(1), second.mean(1))
    same = (noises * means[0] * means[1] - (first * second).mean(1)) / (noises - 1)
    squared = weights**2
    apart = (weights @ means[0]) * (weights @ means[1]) - squared @ (means[0] * means[1])
    with np.errstate(invalid="ignore"):  # a resample of one prompt alone has none
        std = np.sqrt(np.fmax(weights @ same - apart / (1 - squared.sum(1)), 0))
    z = np.linspace(-8, 8, 4001)
    best = np.trapezoid(z * np.gradient(ndtr(z) ** count, z), z)
    base = _resampled(updates.mean(1))
    return base + np.stack([best * std, np.zeros_like(std)], axis=1)


def _resampled(shares: Values, estimate: Values | None = None) -> Values:
    """Progress and squared length, ``[1 + resamples, 2]``, the estimate first: means of prompts' shares ``[P, 3]``."""
    [weights] = resampling_weights([len(shares)])
    estimate = shares.mean(0) if estimate is None else estimate
    values = estimate + weights @ (shares - shares.mean(0))
    return np.stack([values[:, :2].mean(1), values[:, 2]], axis=1)


def _by_rule(compared: Compared, rewards: Values) -> Chooser:
    """A rule, told the reward of one or two deterministic samples of each candidate."""
    capability, generator = CapabilityTracker(), generator_for("upper bound")
    capability.update(torch.from_numpy(rewards).flatten())

    def choose(prompts: Numbers, noises: Numbers) -> tuple[Numbers, Numbers]:
        seen = torch.from_numpy(rewards[prompts[:, :, None], noises[:, :, : compared.samples]])
        taken = np.array([compared.choose(one, capability, generator) for one in seen])
        return taken, taken

    return choose


def _by_oracle(updates: Values, same: bool) -> Chooser:
    """The prompt that has the largest mean progress over the other noises, see ``ORACLES``."""
    halves = updates[:, :, :2]
    told = np.repeat(halves.mean(2, keepdims=True), 2, axis=2) if same else halves[:, :, ::-1]
    others = (told.sum(1, keepdims=True) - told) / (told.shape[1] - 1)

    def choose(prompts: Numbers, noises: Numbers) -> tuple[Numbers, Numbers]:
        first, second = np.moveaxis(others[prompts, noises[:, :, 0]].argmax(1), 1, 0)
        return first, second

    return choose


def _called(row: "pd.Series[Any]") -> str:
    return f"{row['name']} advantages" if row["what"] == "advantage" else str(row["name"])


def _cost(row: "pd.Series[Any]") -> str:
    return "–" if np.isnan(row["forwards"]) else f"{row['forwards']:.0f}"


def _text(row: "pd.Series[Any]", column: str) -> str:
    value, low, high = (float(row[name]) for name in (column, f"{column}_low", f"{column}_high"))
    return entry_text(Entry(value, interval=Interval(value, low, high), digits=2))


def _draw(frame: pd.DataFrame, axes: Axes) -> None:
    """A line a rule or kind of advantages, by cost, and those of equal cost by quality; the oracles on top."""
    shown = frame.sort_values(["forwards", "quality"], na_position="last").reset_index()
    for position, (_, row) in enumerate(shown.iterrows()):
        colour = INK if np.isnan(row["forwards"]) else _COLOURS[row["what"]]
        axes.hlines(position, row["quality_low"], row["quality_high"], color=colour, linewidth=1.6)
        axes.plot(row["quality"], position, "o", color=colour, markersize=5)
    axes.axvline(1, color=GREY, linewidth=1)
    axes.set_yticks(range(len(shown)), [f"{_called(row)} ({_cost(row)})" for _, row in shown.iterrows()], fontsize=9)
    axes.set_xlabel("Relative to random, local advantages")
