"""Seconds per unit of work in finished runs, on which every estimate of a study's hours is based."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from analysis.cells.logs import find_runs, load_logs

_SECONDS, _REWARD_SECONDS = "seconds/iteration", "seconds/reward"


class Rates(NamedTuple):
    """Recorded seconds per unit of work, medians over finished runs."""

    per_forward: float
    """Training time per sample passed through the network, without the reward; a trained sample counts as three."""
    per_reward_call: float
    per_picture: float
    """Evaluation time per picture, which is sampled and scored by every reward."""
    num_runs: int
    recorded_hours: float
    """Hours of training and evaluation of all runs, finished or not."""


def measured_rates(folder: Path) -> Rates | None:
    """Measure the rates of the runs in a folder; None without a folder or without a finished run in it.

    Raises:
        ConfigError: a file cannot be read; the message names it.
    """
    if not folder.is_dir() or not find_runs(folder):
        return None
    logs = load_logs(folder, (_SECONDS, _REWARD_SECONDS), skip_damaged=True)
    finished = logs.summary[logs.summary["state"] == "finished"].set_index("run_id")
    if finished.empty:
        return None
    train = logs.runs[logs.runs["split"] == "train"]
    spent = train.pivot_table(index="run_id", columns="metric", values="value", aggfunc="sum", observed=True)
    spent = spent.reindex(index=finished.index, columns=[_SECONDS, _REWARD_SECONDS])
    return Rates(
        float(((spent[_SECONDS] - spent[_REWARD_SECONDS]) / finished["compute"]).median()),
        float((spent[_REWARD_SECONDS] / finished["reward_calls"]).median()),
        float(_seconds_per_picture(logs.runs).reindex(finished.index).median()),
        len(finished),
        float(logs.summary[["train_seconds", "evaluation_seconds"]].to_numpy().sum() / 3600),
    )


def _seconds_per_picture(runs: pd.DataFrame) -> pd.Series:
    """Seconds per picture by run, without the untrained model, whose evaluation the runs of an experiment share."""
    rows = runs[(runs["split"] != "train") & (runs["iteration"] > 0)]
    rows = rows[rows["metric"].isin(["num_prompts", "num_noises", "seconds"])]
    each = rows.pivot_table(index=["run_id", "split", "iteration"], columns="metric", values="value", observed=True)
    each = each.assign(pictures=each["num_prompts"] * each["num_noises"]).groupby("run_id", observed=True).sum()
    return each["seconds"] / each["pictures"]
