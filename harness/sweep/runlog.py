"""What a run has logged so far, finished or not."""

import json
from typing import Any

from harness.runs import RunDirectory

_TOTALS = {name: f"total_{name}" for name in ("sample_forwards", "train_forwards", "reward_calls")}


def evaluations(run: RunDirectory, split: str) -> list[tuple[int, dict[str, float]]]:
    """Iteration and metrics of each evaluation on a list that a run has logged, in order."""
    records = [record for record in _records(run, "eval.jsonl") if record["split"] == split]
    return [(record["iteration"], record["metrics"]) for record in records]


def costs(run: RunDirectory) -> dict[str, float]:
    """What a run has spent on training so far, by the names of ``COSTS``."""
    spent = _records(run, "metrics.jsonl")
    last = spent[-1] if spent else dict.fromkeys(_TOTALS.values(), 0)
    totals = {name: float(last[key]) for name, key in _TOTALS.items()}
    return totals | {"compute": totals["sample_forwards"] + 3 * totals["train_forwards"]}


def _records(run: RunDirectory, name: str) -> list[dict[str, Any]]:
    """Lines of a log; a last one that a kill tore is none."""
    path = run.folder / name
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
