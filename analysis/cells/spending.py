"""What runs had spent when they were measured: network forwards, reward calls, seconds."""

from typing import NamedTuple

import pandas as pd

FORWARDS, REWARD_CALLS, SECONDS = "forwards", "reward_calls", "seconds"
SPENDING_METRICS = ("total_sample_forwards", "total_train_forwards", "total_reward_calls", "seconds/iteration")
"""Training metrics that spending is counted from."""


class Axis(NamedTuple):
    """A kind of cost."""

    name: str
    words: str
    label: str


AXES = (
    Axis(FORWARDS, "network forwards", "Network forwards spent on training\n(a trained sample counts 3)"),
    Axis(REWARD_CALLS, "reward calls", "Reward calls spent on training"),
    Axis(SECONDS, "seconds", "Seconds of training, as recorded"),
)


def spent(runs: pd.DataFrame) -> pd.DataFrame:
    """What runs had spent on training after each iteration.

    Args:
        runs: rows of ``Logs.runs``, with ``SPENDING_METRICS``.

    Returns:
        Columns run_id, iteration, forwards (a trained sample counts 3), reward_calls, seconds; nothing at iteration 0.
    """
    train = runs.loc[runs["split"] == "train", ["run_id", "iteration", "metric", "value"]]
    # Millions of rows, but in order and all metrics at the same iterations: side by side without a pivot.
    keyed = train.set_index(["run_id", "iteration"])
    wide = pd.DataFrame({metric: keyed.loc[keyed["metric"] == metric, "value"] for metric in SPENDING_METRICS})
    costs = {
        FORWARDS: wide["total_sample_forwards"] + 3 * wide["total_train_forwards"],
        REWARD_CALLS: wide["total_reward_calls"],
        SECONDS: wide["seconds/iteration"].groupby("run_id", observed=True).cumsum(),
    }
    return pd.DataFrame(costs).reset_index()


def with_spending(rows: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Evaluations with the columns of ``table``, as of ``spent``; those whose cost is unknown are left out."""
    costs = [axis.name for axis in AXES]
    joined = rows.merge(table, on=["run_id", "iteration"], how="left")
    # Nothing is spent before the first iteration, which writes the first line.
    joined.loc[joined["iteration"] == 0, costs] = 0.0
    return joined[joined[FORWARDS].notna()]
