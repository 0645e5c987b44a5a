"""What a unit of work took in finished runs: the base of every estimate of a study's hours."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from analysis.cells.logs import find_runs, load_logs

_SECONDS, _REWARD_SECONDS = "seconds/iteration", "seconds/reward"


class Rates(NamedTuple):
    """Medians over finished runs, in recorded seconds."""

    per_forward: float
    """Training, for a sample through the network, a trained one counting three; all but the reward is in it."""
    per_reward_call: float
    per_picture: float
    """Evaluation: drawn, and scored by every reward."""
    num_runs: int
    recorded_hours: float
    """Training and evaluation of all runs, finished or not."""


def measured_rates(folder: Path) -> Rates | None:
    """Rates of the runs in a folder; None without a folder or without a finished run in it.

    Raises:
        ConfigError: names the file that cannot be read.
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
    """By run; without the untrained model, whose evaluation the runs of an experiment share."""
    rows = runs[(runs["split"] != "train") & (runs["iteration"] > 0)]
    rows = rows[rows["metric"].isin(["num_prompts", "num_noises", "seconds"])]
    each = rows.pivot_table(index=["run_id", "split", "iteration"], columns="metric", values="value", observed=True)
    each = each.assign(pictures=each["num_prompts"] * each["num_noises"]).groupby("run_id", observed=True).sum()
    return each["seconds"] / each["pictures"]
