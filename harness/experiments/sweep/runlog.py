"""What a run has logged so far, finished or not."""

from harness.records import read_lines
from harness.runs.directory import RunDirectory

_TOTALS = {name: f"total_{name}" for name in ("sample_forwards", "train_forwards", "reward_calls")}


def evaluations(run: RunDirectory, split: str) -> list[tuple[int, dict[str, float]]]:
    """Iteration and metrics of each evaluation on a list that a run has logged, in order."""
    records = [record for record in read_lines(run.folder / "eval.jsonl") if record["split"] == split]
    return [(record["iteration"], record["metrics"]) for record in records]


def costs(run: RunDirectory) -> dict[str, float]:
    """What a run has spent on training so far, by the names of ``COSTS``."""
    spent = read_lines(run.folder / "metrics.jsonl")
    last = spent[-1] if spent else dict.fromkeys(_TOTALS.values(), 0)
    totals = {name: float(last[key]) for name, key in _TOTALS.items()}
    return totals | {"compute": totals["sample_forwards"] + 3 * totals["train_forwards"]}
