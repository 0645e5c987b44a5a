"""Cumulative training cost of runs at their evaluations: network forwards, reward calls, seconds."""

import pandas as pd

FORWARDS, REWARD_CALLS, SECONDS = "forwards", "reward_calls", "seconds"
SPENDING_METRICS = ("total_sample_forwards", "total_train_forwards", "total_reward_calls", "seconds/iteration")
"""Training metrics from which the cost is computed."""


AXES = {
    FORWARDS: "Network forwards spent on training\n(a trained sample counts 3)",
    REWARD_CALLS: "Reward calls spent on training",
    SECONDS: "Seconds of training, as recorded",
}
"""Kinds of cost, with labels of figures' axes."""


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
    joined = rows.merge(table, on=["run_id", "iteration"], how="left")
    # Costs are logged from the first iteration on; before it nothing has been spent.
    joined.loc[joined["iteration"] == 0, list(AXES)] = 0.0
    return joined[joined[FORWARDS].notna()]
