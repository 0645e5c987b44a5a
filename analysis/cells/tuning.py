"""What tuning found: the trained reward of each method's settings on validation prompts, and which one it chooses."""

from typing import NamedTuple

import pandas as pd

from analysis.cells.logs import Logs
from analysis.claims import METRIC, choose_setting, validation_mean

COLUMNS = ["method", "eta", "learning_rate", "seed", "run_id", "value"]


class Tuned(NamedTuple):
    """A setting of a method."""

    eta: float
    learning_rate: float


def tuning_table(logs: Logs) -> pd.DataFrame:
    """One row per finished run of a base cell: columns ``COLUMNS``, ``value`` as the protocol tunes by."""
    rows = logs.runs[(logs.runs["metric"] == METRIC) & (logs.runs["split"] == "validation")]
    rows = rows[rows["iteration"] > 0].sort_values("iteration")
    values = rows.groupby("run_id", observed=True)["value"].agg(lambda of_run: float(validation_mean(of_run)))
    records = []
    for run, config in zip(logs.summary.to_dict("records"), logs.configs, strict=True):
        is_base = run["selection"] == "random" and not run["fusion"]
        if run["state"] == "finished" and is_base and run["run_id"] in values:
            setting = Tuned(float(config["method"]["eta"]), float(config["optimizer"]["learning_rate"]))
            records.append((run["method"], *setting, run["seed"], run["run_id"], values[run["run_id"]]))
    return pd.DataFrame(records, columns=COLUMNS).sort_values(COLUMNS[:4], ignore_index=True)


def chosen_settings(table: pd.DataFrame) -> dict[str, Tuned]:
    """What the protocol chooses for each method of a ``tuning_table``; nothing for one without a complete setting."""
    chosen = {}
    for method, rows in table.groupby("method"):
        values: dict[Tuned, dict[int, float]] = {}
        for row in rows.to_dict("records"):
            values.setdefault(Tuned(row["eta"], row["learning_rate"]), {})[row["seed"]] = row["value"]
        setting = choose_setting(values)
        if setting is not None:
            chosen[str(method)] = setting
    return chosen
