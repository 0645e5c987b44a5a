"""What a grid would do: runs, hours and disk, without running or writing anything."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from harness.config import RunConfig
from harness.config.cells import cell_names
from harness.foundation.records import BROKEN, read_lines
from harness.runs.directory import RUNS, RunDirectory, find_run
from harness.runs.identity import changes_of, note_on_code


@dataclass(frozen=True)
class Cost:
    """What finished runs of the same experiment took, as measured: the base of every estimate."""

    num_runs: int
    seconds_per_iteration: float
    """Of training."""
    evaluation_seconds_per_run: float
    bytes_per_run: float


def plan(configs: Sequence[RunConfig], slots: int) -> list[str]:
    """Lines to print: runs by cell and state, then iterations, hours and disk that are left.

    Args:
        configs: the runs.
        slots: runs at a time.

    Raises:
        ConfigError: as ``find_run``.
    """
    runs = [(config, find_run(config)) for config in configs]
    changed = note_on_code(map(changes_of, {run.folder for _, run in runs}))
    cells: dict[str, Counter[str]] = {}
    for cell, (_, run) in zip(cell_names(configs), runs, strict=True):
        cells.setdefault(cell, Counter())[_state(run)] += 1
    width = max(map(len, cells))
    lines = [
        f"{cell:{width}}  {', '.join(f'{n} {state}' for state, n in states.items())}" for cell, states in cells.items()
    ]
    lines += [f"{run.run_id}: {run.status()['reason']}" for _, run in runs if _state(run) in BROKEN]
    unfinished = [(config, run) for config, run in runs if _state(run) != "finished"]
    left = sum(config.iterations - run.status()["iteration"] for config, run in unfinished)
    lines += [
        "",
        f"{len(runs)} runs in {len(cells)} cells; {len(unfinished)} runs and {left:,} iterations left",
        *changed,
    ]
    cost = measured_cost({run.folder.parent.name for _, run in runs})
    if cost is None:
        return [*lines, "hours and disk: not known before a run of this experiment has finished"]
    hours = (left * cost.seconds_per_iteration + len(unfinished) * cost.evaluation_seconds_per_run) / 3600
    disk = len(unfinished) * cost.bytes_per_run / 1e6
    basis = f"measured on {cost.num_runs} finished run{'s' if cost.num_runs > 1 else ''}"
    return [*lines, f"about {hours / slots:.2f} hours on {slots} slots ({hours:.2f} of work), {disk:.0f} MB; {basis}"]


def measured_cost(experiments: set[str]) -> Cost | None:
    """Means over the finished runs of experiments in results/runs; None if there are none."""
    folders = [path.parent for name in experiments for path in (RUNS / name).glob("*/status.json")]
    finished = [run for run in map(RunDirectory, folders) if run.status()["state"] == "finished"]
    if not finished:
        return None
    training, evaluating, sizes = [], [], []
    for run in finished:
        training.append(mean(line["seconds"]["iteration"] for line in read_lines(run.folder / "metrics.jsonl")))
        evaluating.append(sum(line["seconds"] for line in read_lines(run.folder / "eval.jsonl")))
        sizes.append(sum(file.stat().st_size for file in run.folder.rglob("*") if file.is_file()))
    return Cost(len(finished), mean(training), mean(evaluating), mean(sizes))


def _state(run: RunDirectory) -> str:
    if not run.folder.exists():
        return "new"
    state = run.status()["state"]
    return state if state in ("finished", *BROKEN) else "unfinished"
