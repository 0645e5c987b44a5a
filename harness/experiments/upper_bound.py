"""Upper bound of the gain from choosing prompts, one update ahead, from the tables of ``adagrpo oracle`` alone.

An update's *progress* is the inner product of its gradient with the reference direction, which is proportional to the
increase of the expected reward by a small step; its *quality* is expected progress divided by root mean squared length,
which no rescaling changes. Both are relative to random prompts with local advantages. They are of first order, for the
plain gradient and not for Adam's step, and as noisy as the reference.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import Tensor
from torch.nn.functional import pad

from analysis.figures.drawing import GREY, INK, Panel, draw_together, series_colour
from analysis.formats import MISSING, Entry, entry_text, markdown_table, number, write_frame
from analysis.statistics import Interval, Values, resampling_weights
from harness.adagrpo import CapabilityTracker
from harness.config.selection import PREDICTING, needs_of
from harness.experiments.choices import COMPARED, Compared
from harness.experiments.corrections import correction_frame, correction_lines
from harness.foundation.files import read_text, write_atomically
from harness.prompts.lists import generator_for
from harness.rules.ledger import Ledger, Prediction

ROUNDS = 5_000
ORACLES = ("oracle", "oracle, same reference")
"""Both take the prompt whose mean progress over the *other* noises is largest. The first chooses by one half of the
reference and is judged by the other, both ways: the gain from so much knowledge, without any winner's curse. The second
chooses and is judged by all of it, which flatters it: the noise of the reference favours the same prompts twice.
"""
ALL_KNOWN = "oracle, all known"
"""Takes the prompt whose expected progress is the largest of B: an estimate from a normal model, see ``_all_known``."""
LARGER = "random, larger group"
"""Control that costs no more than candidates do: local advantages in larger groups."""
TOLD = (*COMPARED, *(Compared(rule) for rule in ("preview", *PREDICTING)))
Numbers = NDArray[np.int64]
Chooser = Callable[[Numbers, Numbers], tuple[Numbers, Numbers]]
"""Function from candidates' prompts ``[T, B]`` and noises ``[T, B, 2]`` to the two arrays of candidates ``[T]`` that
the first and the second half of the reference judge."""


def upper_bound(table: Mapping[str, Any], rounds: int | None = None) -> pd.DataFrame:
    """Progress and quality of every rule that the table has data for, of a larger group, and of the oracles.

    Args:
        table: result of ``harness.experiments.gradients.oracle.measure``, with more than B prompts.
        rounds: number of draws of candidates; None for ``ROUNDS``.

    Returns:
        Columns ``rule``, ``forwards`` (sample forward passes per trained prompt beyond those of random selection,
        missing if no number of samples suffices), and value, low and high of ``progress`` and ``quality``.
    """
    updates = {
        # Progress by each half of the reference, and squared length: [P, N, 3].
        kind: np.concatenate([np.array(of["projections"]), np.array(of["squares"])[:, :, None]], axis=2)
        for kind, of in table["updates"].items()
    }
    rounds = rounds or ROUNDS
    local, candidates, steps = updates["local"], int(table["candidates"]), int(table["num_steps"])
    at_random = _resampled(local.mean(1))
    rows: list[dict[str, Any]] = []

    def add(name: str, forwards: float, found: Values) -> None:
        progress, length = (found / at_random).T
        length = np.where(length > 0, length, np.nan)  # not positive by chance, in the smallest tables
        row: dict[str, Any] = {"rule": name, "forwards": forwards}
        for column, values in (("progress", progress), ("quality", progress / np.sqrt(length))):
            low, high = np.quantile(values[1:], [0.025, 0.975])
            row |= {column: values[0], f"{column}_low": low, f"{column}_high": high}
        rows.append(row)

    add("random", 0, at_random)
    if "larger" in updates:
        of_sibling = sum(steps - 1 - index for index in table["config"]["rollout"]["branch_indices"])
        more = table["larger_group"] - table["group_size"]
        add(LARGER, more * of_sibling, _resampled(updates["larger"].mean(1)))
    for compared in TOLD:
        if compared.rule == "random" or not _is_told(compared, table):
            continue
        found = _chosen(_by_rule(compared, table), local, compared.count(candidates), rounds)
        add(compared.name, compared.forwards(candidates, steps), found)
    for name in ORACLES:
        add(name, np.nan, _chosen(_by_oracle(local, name != "oracle"), local, candidates, rounds))
    add(ALL_KNOWN, np.nan, _all_known(local, candidates))
    return pd.DataFrame(rows)


def write_upper_bound(folder: Path) -> str:
    """Write rules.csv, corrections.csv, oracle.md and quality.svg of a folder's tables; return oracle.md's text."""
    tables = sorted(
        (json.loads(read_text(path)) for path in folder.glob("*.json")),
        key=lambda one: (one["experiment"], one["iteration"]),
    )
    frames = [
        upper_bound(table).assign(experiment=table["experiment"], iteration=table["iteration"]) for table in tables
    ]
    rules = pd.concat(frames, ignore_index=True)
    write_frame(rules[["experiment", "iteration", *rules.columns[:-2]]], folder / "rules.csv")
    corrections = correction_frame(tables)
    write_frame(corrections, folder / "corrections.csv")
    rows = []
    for name in dict.fromkeys(rules["rule"]):
        cells = [frame[frame["rule"] == name] for frame in frames]
        rows.append([name, *(_text(cell.iloc[0]) if len(cell) else MISSING for cell in cells)])
    lines = [
        "# An update's quality, relative to random prompts with local advantages",
        "",
        *map(_about, tables),
        "",
        "Expected progress by root mean squared length [95 % interval over the pool's prompts, given the reference]; "
        "extra forwards.",
        "",
        markdown_table(["rule", *map(_called, tables)], rows),
        f"## Corrections of advantages, at weight {tables[0]['fusion_weight']:g}, on random prompts",
        "",
        "95 % intervals are over blocks of the pool's prompts and of the reference's.",
        "",
        *correction_lines(tables, corrections),
    ]
    text = "\n".join(lines)
    write_atomically(folder / "oracle.md", text)
    note = "Points: expected progress by root mean squared length; lines: 95 % intervals over prompts. Rules by extra "
    note += "forwards (in brackets); on top, black: bounds."
    panels = [
        Panel(f"quality-{number}", _called(table).replace(", ", ",\n"), partial(_draw, frame), 5.6, note)
        for number, (table, frame) in enumerate(zip(tables, frames, strict=True))
    ]
    title = "Quality of an update, relative to random prompts"
    replace(draw_together("quality", title, panels, 3), png=None).save(folder)
    return text


def _chosen(choose: Chooser, updates: Values, count: int, rounds: int) -> Values:
    """Same as ``_resampled``, for the prompts that are chosen among ``count``.

    A prompt's share is (P - 1) times the loss from leaving out the rounds that drew it (jackknife). Gains are measured
    from the mean of a round's own candidates, which has less noise and the same expectation.
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
    """Same as ``_resampled``, for the best of ``count`` prompts whose expected progress is normal: the true bound.

    mean + std E[max of B standard normals]. The variance of prompts' expected progress is that of products of different
    noises by different halves of the reference, less those of different prompts, so that noise does not contribute.
    Squared length is assumed to be that of random prompts.
    """
    [weights] = resampling_weights([len(updates)])
    first, second = np.moveaxis(updates[:, :, :2], 2, 0)
    noises, means = first.shape[1], (first.mean(1), second.mean(1))
    same = (noises * means[0] * means[1] - (first * second).mean(1)) / (noises - 1)
    squared = weights**2
    apart = (weights @ means[0]) * (weights @ means[1]) - squared @ (means[0] * means[1])
    with np.errstate(invalid="ignore"):  # undefined for a resample that has only one prompt
        std = np.sqrt(np.fmax(weights @ same - apart / (1 - squared.sum(1)), 0))
    z = np.linspace(-8, 8, 4001)
    best = np.trapezoid(z * np.gradient(ndtr(z) ** count, z), z)
    base = _resampled(updates.mean(1))
    return base + np.stack([best * std, np.zeros_like(std)], axis=1)


def _resampled(shares: Values, estimate: Values | None = None) -> Values:
    """Progress and squared length, ``[1 + resamples, 2]``, estimate first: means over prompts' shares ``[P, 3]``."""
    [weights] = resampling_weights([len(shares)])
    estimate = shares.mean(0) if estimate is None else estimate
    values = estimate + weights @ (shares - shares.mean(0))
    return np.stack([values[:, :2].mean(1), values[:, 2]], axis=1)


class _Foretold(Ledger):
    """Ledger whose predictions are those in the table; a prompt's embedding is its number."""

    def __init__(self, foretold: Mapping[str, Any]) -> None:
        super().__init__()
        self._foretold = foretold
        outcomes = torch.tensor(foretold["outcomes"], dtype=torch.float64)
        self.record(1, outcomes, pad(outcomes, (0, 3)), torch.arange(len(outcomes)))

    @property
    def can_predict(self) -> bool:
        return True

    def mean_of(self, embeddings: Tensor) -> Prediction:
        return self._of("m", embeddings)

    def spread_of(self, embeddings: Tensor) -> Prediction:
        return self._of("s", embeddings)

    def _of(self, name: str, embeddings: Tensor) -> Prediction:
        mean, std = (torch.tensor(self._foretold[name][of], dtype=torch.float64) for of in ("mean", "std"))
        return Prediction(mean[embeddings[:, 0]], std[embeddings[:, 0]])


def _is_told(compared: Compared, table: Mapping[str, Any]) -> bool:
    """Whether the table has the data that the rule reads."""
    needs = needs_of(compared.rule)
    return "foretold" in table or not (needs.reads_ledger or needs.step_share < 1)


def _by_rule(compared: Compared, table: Mapping[str, Any]) -> Chooser:
    """Chooser by a rule that receives the rewards of one or two samples per candidate, or a ledger's predictions."""
    needs = needs_of(compared.rule)
    rewards = np.array(table["previews" if needs.step_share < 1 else "rewards"], dtype=float)
    ledger = _Foretold(table["foretold"]) if needs.reads_ledger else None
    capability, generator = CapabilityTracker(), generator_for("upper bound")
    capability.update(torch.from_numpy(rewards).flatten())

    def choose(prompts: Numbers, noises: Numbers) -> tuple[Numbers, Numbers]:
        seen = torch.from_numpy(rewards[prompts[:, :, None], noises[:, :, : compared.samples]])
        numbers = torch.from_numpy(prompts)[:, :, None]
        both = zip(seen, numbers, strict=True)
        taken = np.array([compared.choose(one, capability, generator, ledger, number) for one, number in both])
        return taken, taken

    return choose


def _by_oracle(updates: Values, same: bool) -> Chooser:
    """Chooser of the prompt with the largest mean progress over the other noises, see ``ORACLES``."""
    halves = updates[:, :, :2]
    told = np.repeat(halves.mean(2, keepdims=True), 2, axis=2) if same else halves[:, :, ::-1]
    others = (told.sum(1, keepdims=True) - told) / (told.shape[1] - 1)

    def choose(prompts: Numbers, noises: Numbers) -> tuple[Numbers, Numbers]:
        first, second = np.moveaxis(others[prompts, noises[:, :, 0]].argmax(1), 1, 0)
        return first, second

    return choose


def _called(table: Mapping[str, Any]) -> str:
    after = f"after {table['iteration']} iterations" if table["iteration"] else "untrained"
    return f"{table['experiment']}, {after}"


def _about(table: Mapping[str, Any]) -> str:
    num_prompts, num_noises = np.shape(table["rewards"])
    reference = table["blocks"]["reference"]
    return (
        f"- {_called(table)}: {num_prompts} training prompts with {num_noises} noises each, B {table['candidates']}; "
        f"the halves of the reference ({sum(reference['counts'])} prompts) have a cosine of "
        f"{number(reference['cosine_of_halves'], 2)}."
    )


def _cost(forwards: float) -> str:
    return MISSING if np.isnan(forwards) else f"{forwards:.0f}"


def _text(row: "pd.Series[Any]") -> str:
    value, low, high = (float(row[name]) for name in ("quality", "quality_low", "quality_high"))
    return f"{entry_text(Entry(value, interval=Interval(value, low, high), digits=2))}; {_cost(row['forwards'])}"


def _draw(frame: pd.DataFrame, axes: Axes) -> None:
    """Draw one line per rule, sorted by cost, then in the order of the table; the oracles are on top."""
    shown = frame.sort_values("forwards", kind="stable", na_position="last").reset_index()
    for position, (_, row) in enumerate(shown.iterrows()):
        colour = INK if np.isnan(row["forwards"]) else series_colour(2 if row["forwards"] else 3)
        axes.hlines(position, row["quality_low"], row["quality_high"], color=colour, linewidth=1.6)
        axes.plot(row["quality"], position, "o", color=colour, markersize=5)
    axes.axvline(1, color=GREY, linewidth=1)
    axes.set_yticks(
        range(len(shown)), [f"{row['rule']} ({_cost(row['forwards'])})" for _, row in shown.iterrows()], fontsize=9
    )
    axes.set_xlim(-1, 3.5)
