"""Cumulative training cost of runs at their evaluations: network forwards, reward calls, seconds."""

from typing import NamedTuple

import pandas as pd

FORWARDS, REWARD_CALLS, SECONDS = "forwards", "reward_calls", "seconds"
SPENDING_METRICS = ("total_sample_forwards", "total_train_forwards", "total_reward_calls", "seconds/iteration")
"""Training metrics from which the cost is computed."""


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
    """Cumulative training cost of runs after each iteration.

    Args:
        runs: rows of ``Logs.runs``, with ``SPENDING_METRICS``.

    Returns:
        Columns run_id, iteration, forwards (a trained sample counts 3), reward_calls, seconds; no row for iteration 0.
    """
    train = runs.loc[runs["split"] == "train", ["run_id", "iteration", "metric", "value"]]
    # Rows may be millions, but they are sorted and all metrics have the same iterations, so that no pivot is needed.
    keyed = train.set_index(["run_id", "iteration"])
    wide = pd.DataFrame({metric: keyed.loc[keyed["metric"] == metric, "value"] for metric in SPENDING_METRICS})
    costs = {
        FORWARDS: wide["total_sample_forwards"] + 3 * wide["total_train_forwards"],
        REWARD_CALLS: wide["total_reward_calls"],
        SECONDS: wide["seconds/iteration"].groupby("run_id", observed=True).cumsum(),
    }
    return pd.DataFrame(costs).reset_index()


def with_spending(rows: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Add the columns of ``table``, a result of ``spent``, to evaluations; those of unknown cost are dropped."""
    costs = [axis.name for axis in AXES]
    joined = rows.merge(table, on=["run_id", "iteration"], how="left")
    # Costs are logged from the first iteration on; before it nothing has been spent.
    joined.loc[joined["iteration"] == 0, costs] = 0.0
    return joined[joined[FORWARDS].notna()]
