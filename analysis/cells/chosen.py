"""The prompts that each selection rule trained on, and how hard they were: by the model's reward and by word length."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from analysis.cells.logs import ChosenPrompts
from analysis.cells.study import Study
from analysis.formats import Entry, WideTable

CHOSEN_METRICS = ("chosen_reward_mean", "candidate_reward_mean", "reward_mean", "within_group_std")
"""Training metrics that say how hard the chosen prompts were."""
_WORD = re.compile(r'"([^"]+)"')
HEADINGS = {
    "rank": "Rank among candidates",
    "chosen_reward_mean": "Reward of the chosen",
    "candidate_reward_mean": "Reward of all candidates",
    "reward_mean": "Reward of its samples",
    "within_group_std": "sd within a group",
    "letters": "Letters",
    "distinct": "Distinct prompts",
}


def chosen_frame(study: Study) -> pd.DataFrame:
    """Summarise the prompts that each cell trained on: one row per cell, means over its finished runs.

    Args:
        study: a study whose logs were loaded with ``CHOSEN_METRICS``.

    Returns:
        Columns experiment, reward, cell, runs, and ``HEADINGS``: ``rank`` from 0 for the hardest candidate to 1 for
        the easiest; rewards of the deterministic sample of the chosen prompt, of all candidates, and of the samples
        that were trained on; ``letters`` of the quoted word; ``distinct`` prompts as a share of those trained on. NaN
        where no candidate was scored, or nothing is quoted.
    """
    runs = study.runs
    is_wanted = (runs["split"] == "train") & runs["metric"].isin(CHOSEN_METRICS)
    train = runs.loc[is_wanted, ["run_id", "metric", "value"]]
    logged = train.groupby(["run_id", "metric"], observed=True)["value"].mean().unstack("metric")
    records = []
    for cell, members in study.cells:
        members = members[members["state"] == "finished"]
        runs_of_cell = zip(members["chosen_prompts"], members["config"], strict=True)
        of_runs = [_measures(chosen, config) for chosen, config in runs_of_cell if len(chosen.prompts)]
        means = pd.DataFrame(of_runs).mean().to_dict() | logged.reindex(members["run_id"]).mean().to_dict()
        head = {"experiment": study.experiment, "reward": study.reward, "cell": cell.label, "runs": len(of_runs)}
        records.append(head | {name: means.get(name, np.nan) for name in HEADINGS})
    return pd.DataFrame(records)


def chosen_table(study: Study, frame: pd.DataFrame) -> WideTable | None:
    """Format ``chosen_frame`` for display, without variants of cells; None if nothing was logged."""
    frame = frame[frame["cell"].isin([cell.label for cell, _ in study.grid_cells]) & (frame["runs"] > 0)]
    if frame.empty:
        return None
    rows = [
        (str(row["cell"]), [Entry(row["runs"], digits=0), *(Entry(row[name], digits=2) for name in HEADINGS)])
        for row in frame.to_dict("records")
    ]
    title = f"Experiment {study.experiment}, trained on {study.reward}: prompts trained on, mean over finished runs"
    return WideTable(title, ["Cell", "Runs", *HEADINGS.values()], rows)


def quoted_word(prompt: str) -> str:
    """The quoted word that a prompt asks for; empty if nothing is quoted."""
    match = _WORD.search(prompt)
    return match[1] if match else ""


@cache  # Runs share prompts.
def _num_letters(prompt: str) -> int:
    return len(quoted_word(prompt))


def _measures(chosen: ChosenPrompts, config: Mapping[str, Any]) -> dict[str, float]:
    candidates = int(config.get("rollout", {}).get("candidates", 0))
    distinct = chosen.prompts.dictionary.to_pylist()
    lengths = np.array([_num_letters(prompt) for prompt in distinct])
    letters = lengths[chosen.prompts.indices.to_numpy()]
    ranked = chosen.ranks[np.isfinite(chosen.ranks)]
    return {
        "rank": float(ranked.mean() / (candidates - 1)) if len(ranked) and candidates > 1 else np.nan,
        "letters": float(letters[letters > 0].mean()) if letters.any() else np.nan,
        "distinct": len(distinct) / len(letters),
    }
